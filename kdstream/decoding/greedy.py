"""greedy_search: the best symbol at every step.  Shapes: as in search.py.

A blank changes nothing that the joiner sees.  So the joiner is asked about several frames at once, and what it says
holds up to the first symbol that is no blank.  Streams that have taken one ask again about the frames that are left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from kdstream.config.decoding import SearchConfig
from kdstream.decoding.paths import History, PathState, add_lens, start_paths
from kdstream.decoding.search import Search, joiner_log_probs, penalise_blank, predict
from kdstream.models.transducer import Transducer

TOGETHER = 8  # frames about which the joiner is asked at once; measured, flat between 4 and 16


@dataclass
class Walk:
    """The way of one stream through the frames of a call.

    length: frames in all.
    frame: that of the next symbol; `symbols` have been taken there.
    total: the log probability of all symbols, blanks included.
    log_probs: the model's own, of the tokens.
    """

    length: int
    frame: int = 0
    symbols: int = 0
    total: float = 0.0
    tokens: list[int] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def take(self, best: Sequence[tuple[int, float, float]], begin: int, silent: Collection[int], most: int) -> bool:
        """Takes the best symbols of the frames from `begin` on, up to one that is not silent or to the end.

        Args:
          best: of each frame a token, its log probability in the search, and the model's own.
          most: symbols in a frame.
        Returns:
          Whether the last one is not silent.
        """
        for token, log_prob, own in best[self.frame - begin :]:
            if self.frame == self.length:
                return False
            self.total += log_prob
            self.symbols += 1
            spoken = token not in silent
            if spoken:
                self.tokens.append(token)
                self.timestamps.append(self.frame)
                self.log_probs.append(own)
            if not spoken or self.symbols == most:
                self.frame, self.symbols = self.frame + 1, 0
            if spoken:
                return True
        return False

    def after(self, path: History, frames: int) -> History:
        """`path`, which ends after `frames` frames, with what has been said since."""
        if not self.tokens:
            return path
        times = [frames + t for t in self.timestamps]
        return History(self.tokens, times, self.log_probs, path, path.length + len(self.tokens))


@dataclass(frozen=True)
class GreedySearch(Search[PathState]):
    """Takes the best symbol; moves to the next frame at a blank or after `max_sym_per_frame` symbols."""

    method = "greedy_search"
    max_sym_per_frame: int = SearchConfig.max_sym_per_frame
    blank_penalty: float = SearchConfig.blank_penalty

    def __post_init__(self) -> None:
        self._require("max_sym_per_frame", self.max_sym_per_frame >= 1, "must be at least 1")

    @property
    def settings(self) -> list[str]:
        several = [] if self.max_sym_per_frame == 1 else [f"max-sym-per-frame-{self.max_sym_per_frame}"]
        return [*several, *self._other_settings]

    @property
    def _other_settings(self) -> list[str]:
        penalty = [f"blank-penalty-{self.blank_penalty:g}"] if self.blank_penalty else []
        return [*penalty, *self._settings_beyond(fields(GreedySearch))]

    @property
    def streaming_name(self) -> str:
        return "_".join(["greedy-search", *self.settings])

    def file_suffix(self, context_size: int) -> str:
        always = f"_context-{context_size}_max-sym-per-frame-{self.max_sym_per_frame}"
        return "_".join([always, *self._other_settings])

    def start(self, model: Transducer, num_streams: int) -> PathState:
        return start_paths(model, num_streams, num_paths=1)

    @torch.no_grad()
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: PathState) -> PathState:
        """As `Search.advance`; log_prob sums the log probabilities of the symbols taken, blanks included."""
        encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        context, predicted = state.context[:, 0], state.predicted[:, 0]  # (N, C), (N, D)
        walks = [Walk(length) for length in encoder_out_lens.tolist()]
        for begin in range(0, encoded.size(1), TOGETHER):
            end = begin + TOGETHER
            rows = [n for n, walk in enumerate(walks) if begin < walk.length]
            while rows:
                spoke = self._ask(model, encoded[:, :end], predicted, walks, rows)
                if spoke:
                    context, predicted = _say(model, context, predicted, walks, spoke)
                rows = [n for n in spoke if walks[n].frame < min(end, walks[n].length)]
        paths = zip(walks, state.histories, state.frames, strict=True)
        histories = [[walk.after(path, frames)] for walk, (path,), frames in paths]
        log_prob = state.log_prob + torch.tensor([[walk.total] for walk in walks], device=encoded.device)
        frames = add_lens(state.frames, encoder_out_lens)
        context, predicted = context.unsqueeze(1), predicted.unsqueeze(1)
        return replace(
            state, context=context, predicted=predicted, log_prob=log_prob, histories=histories, frames=frames
        )

    def _ask(
        self, model: Transducer, encoded: Tensor, predicted: Tensor, walks: Sequence[Walk], rows: list[int]
    ) -> list[int]:
        """Moves the streams `rows` on, each to its next symbol or to the end of `encoded`; returns those that spoke."""
        begin = min(walks[n].frame for n in rows)
        encoded = _select(encoded, rows)[:, begin:]
        own = joiner_log_probs(model, encoded, _select(predicted, rows).unsqueeze(1))
        log_probs, tokens = penalise_blank(model, own, self.blank_penalty).max(dim=2)
        own = own.gather(2, tokens.unsqueeze(2)).squeeze(2) if self.blank_penalty else log_probs
        silent, most = {model.config.blank_id, model.unk_id}, self.max_sym_per_frame
        best = zip(rows, tokens.tolist(), log_probs.tolist(), own.tolist(), strict=True)
        return [n for n, *of_frames in best if walks[n].take(list(zip(*of_frames, strict=True)), begin, silent, most)]


def _select(x: Tensor, rows: list[int]) -> Tensor:
    """The rows of x, whose numbers ascend."""
    return x if len(rows) == x.size(0) else x[rows]


def _say(
    model: Transducer, context: Tensor, predicted: Tensor, walks: Sequence[Walk], rows: list[int]
) -> tuple[Tensor, Tensor]:
    """The contexts (N, C) and the predictor's outputs (N, D) after the last tokens of the streams `rows`."""
    tokens = torch.tensor([[walks[n].tokens[-1]] for n in rows], device=context.device)
    said = torch.cat([_select(context, rows)[:, 1:], tokens], dim=1)
    heard = predict(model, said)
    if len(rows) == context.size(0):
        return said, heard
    index = torch.tensor(rows, device=context.device)
    return context.index_copy(0, index, said), predicted.index_copy(0, index, heard)
