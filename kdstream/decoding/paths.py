"""The paths that searches keep: tokens, times and log probabilities.

A path's newest part lies in tensors, so that one call of the predictor and one of the joiner serve all paths of all
streams; Python sees tokens once per chunk.

Shapes: as in search.py, and B paths per stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kdstream.decoding.search import Result, Scorer, predict
from kdstream.models.transducer import Transducer


class History(NamedTuple):
    """Tokens that one call appended to a path, and the path before them; `length` tokens in all.

    Paths that share a past share its objects, so that no call copies what was said before it.
    """

    tokens: list[int]
    timestamps: list[int]
    log_probs: list[float]
    previous: History | None
    length: int


HASH_MULTIPLIER = 0x5851F42D4C957F2D  # odd, so that multiplication modulo 2^64 loses nothing
NO_TOKENS = History([], [], [], None, 0)


@dataclass
class PathState:
    """B paths of each of N streams between two calls.  Dimension 0 of every tensor, and of every list, is the stream.

    context: (N, B, C) int64, the tokens that the predictor sees next; -1 before the first one.
    predicted: (N, B, D), what it makes of them.
    log_prob: (N, B) float32; -inf marks a path that is not in use.
    key: (N, B) int64, a hash of the path's tokens: equal keys are equal paths (one path: unused).
    scored: for each scorer of the search, its tensors (N, B, ...).
    owed: (N, B) float32, what of log_prob scorers take back where the path ends here.
    histories: N lists of B, one of each path.
    frames: output frames that each stream has consumed.
    nbest: paths of each stream that results list.
    """

    context: Tensor
    predicted: Tensor
    log_prob: Tensor
    key: Tensor
    scored: list[tuple[Tensor, ...]]
    owed: Tensor
    histories: list[list[History]]
    frames: list[int]
    nbest: int = 0

    @classmethod
    def stack(cls, states: Sequence[PathState]) -> PathState:
        """One state of all the streams of `states`."""
        return cls(
            torch.cat([state.context for state in states]),
            torch.cat([state.predicted for state in states]),
            torch.cat([state.log_prob for state in states]),
            torch.cat([state.key for state in states]),
            [
                tuple(map(torch.cat, zip(*parts, strict=True)))
                for parts in zip(*(s.scored for s in states), strict=True)
            ],
            torch.cat([state.owed for state in states]),
            [paths for state in states for paths in state.histories],
            [frames for state in states for frames in state.frames],
            states[0].nbest,
        )

    def row(self, n: int) -> PathState:
        """The state of stream n alone (views of the tensors)."""
        one = slice(n, n + 1)
        return PathState(
            self.context[one],
            self.predicted[one],
            self.log_prob[one],
            self.key[one],
            [tuple(tensor[one] for tensor in tensors) for tensors in self.scored],
            self.owed[one],
            self.histories[one],
            self.frames[one],
            self.nbest,
        )

    def results(self) -> list[Result]:
        """The best path of each stream so far: the highest log probability per symbol.

        As in icefall, the symbols counted are the path's tokens and the C that stand before the first one.
        """
        answers = []
        for paths, ranked in zip(self.histories, self._ranked(), strict=True):
            best, *others = [result_of(paths[b], log_prob) for b, log_prob in ranked[: max(1, self.nbest)]]
            answers.append(replace(best, nbest=[best, *others]) if self.nbest else best)
        return answers

    def last_frames(self) -> list[int]:
        """The output frame of the last token of each stream's best path; -1 where it has none."""
        last = (paths[ranked[0][0]].timestamps for paths, ranked in zip(self.histories, self._ranked(), strict=True))
        return [times[-1] if times else -1 for times in last]

    def _ranked(self) -> list[list[tuple[int, float]]]:
        """The paths of each stream and their log probabilities, the best ones first."""
        context_size = self.context.size(2)
        ranked = []
        for paths, log_probs in zip(self.histories, (self.log_prob - self.owed).tolist(), strict=True):
            used = [b for b in range(len(paths)) if log_probs[b] != -math.inf]
            used.sort(key=lambda b: log_probs[b] / (context_size + paths[b].length), reverse=True)
            ranked.append([(b, log_probs[b]) for b in used])
        return ranked


def start_paths(model: Transducer, num_streams: int, num_paths: int, scorers: Sequence[Scorer] = ()) -> PathState:
    """The state of streams that have heard nothing: one empty path each, and room for others."""
    device = next(model.parameters()).device
    context = torch.full((num_streams, num_paths, model.config.context_size), -1, device=device)
    context[:, :, -1] = model.config.blank_id
    log_prob = torch.full((num_streams, num_paths), -torch.inf, device=device)
    log_prob[:, 0] = 0.0
    key = torch.zeros(num_streams, num_paths, dtype=torch.int64, device=device)
    histories = [[NO_TOKENS] * num_paths for _ in range(num_streams)]
    with torch.no_grad():
        predicted = predict(model, context)
    scored = [scorer.start(num_streams, num_paths, device) for scorer in scorers]
    return PathState(
        context, predicted, log_prob, key, scored, torch.zeros_like(log_prob), histories, [0] * num_streams
    )


def append_tokens(context: Tensor, token: Tensor, emits: Tensor) -> Tensor:
    """(M, C) contexts after (M,) tokens, where `emits` (M,) says so."""
    return torch.where(emits.unsqueeze(1), torch.cat([context[:, 1:], token.unsqueeze(1)], dim=1), context)


def with_token(key: Tensor, token: Tensor, emits: Tensor) -> Tensor:
    """Hashes of paths with one more token, where `emits` says so."""
    return torch.where(emits, (key ^ (key >> 31)) * HASH_MULTIPLIER + token + 1, key)


def of_parents(tensor: Tensor, parent: Tensor) -> Tensor:
    """(N, B, ...) of the paths `parent` (N, B)."""
    index = parent.view(*parent.shape, *[1] * (tensor.dim() - 2))
    return tensor.gather(1, index.expand(*parent.shape, *tensor.shape[2:]))


def trace_back(steps: list[tuple[Tensor, Tensor, Tensor]], itself: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (N, B) paths that the last ones began as, and the (T, N, B) tokens on the way with their log probabilities.

    steps: T times the parent, the token and the token's log probability of each path, all (N, B).
    """
    path, tokens, log_probs = itself, [], []
    for parent, token, log_prob in reversed(steps):
        tokens.append(token.gather(1, path))
        log_probs.append(log_prob.gather(1, path))
        path = parent.gather(1, path)
    if not steps:
        empty = itself.new_empty(0, *itself.shape)
        return path, empty, empty
    return path, torch.stack(tokens[::-1]), torch.stack(log_probs[::-1])


class Told(Protocol):
    """A state that keeps what its paths have said; see `PathState`."""

    histories: list[list[History]]
    frames: list[int]


def extend_histories(
    state: Told, origin: Tensor, frames: Sequence[int], tokens: Tensor, log_probs: Tensor, blank: int
) -> list[list[History]]:
    """Histories after `tokens` (K, N, B), taken at `frames` (K) of this call, on top of the paths `origin` (N, B)."""
    histories = [[paths[b] for b in row] for paths, row in zip(state.histories, origin.tolist(), strict=True)]
    tokens, log_probs = tokens.permute(1, 2, 0), log_probs.permute(1, 2, 0)  # (N, B, K)
    places = (tokens != blank).nonzero()  # rows (n, b, k) in ascending order
    spoken = zip(places.tolist(), tokens[tuple(places.T)].tolist(), log_probs[tuple(places.T)].tolist(), strict=True)
    for (n, b), group in groupby(spoken, key=lambda item: item[0][:2]):
        said = list(group)
        times = [state.frames[n] + frames[k] for (_, _, k), _, _ in said]
        before = histories[n][b]
        length = before.length + len(said)
        histories[n][b] = History([token for _, token, _ in said], times, [score for *_, score in said], before, length)
    return histories


def add_lens(frames: list[int], encoder_out_lens: Tensor) -> list[int]:
    """Frames that each stream has consumed after `encoder_out_lens` (N,) more."""
    return [before + more for before, more in zip(frames, encoder_out_lens.tolist(), strict=True)]


def result_of(path: History, log_prob: float) -> Result:
    """All tokens of a path, first to last."""
    parts: list[History] = []
    part: History | None = path
    while part is not None:
        parts.append(part)
        part = part.previous
    parts.reverse()
    return Result(
        [token for part in parts for token in part.tokens],
        [time for part in parts for time in part.timestamps],
        log_prob,
        [own for part in parts for own in part.log_probs],
    )
