"""Greedy search and modified beam search over many streams at once, continuing where they stopped.

`fast_beam_search.py` beside it is k2's search behind the same `Search`.

A search never asks whether it was given whole utterances or one chunk: `Search.advance` takes the
encoder's output for some more frames and a `SearchState`, and returns the state after them.  Decoding
a whole utterance is one call; decoding chunk by chunk is one call per chunk, on the same functions.

Both searches make one predictor call and one joiner call per frame for all paths of all streams, and
keep every path in tensors; Python sees tokens once per call.

Unknown token: like icefall's recipes, whose models define no unk_id, both searches skip nothing but blank,
so <unk> is emitted like any other token.

Shapes: N streams, B paths per stream, T output frames (40 ms), C predictor context, D joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import ModuleType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kdstream.config.sections import DECODING_METHODS
from kdstream.errors import UserError
from kdstream.transcription import mean_probability

HASH_MULTIPLIER = 0x5851F42D4C957F2D  # odd, so that multiplication modulo 2^64 loses nothing


@dataclass(frozen=True)
class Result:
    """What a stream says: token ids, the output frame (40 ms, from the stream's start) of each, log probability.

    token_log_probs: of each token, given those before it, on the frame where the path took it.
    """

    tokens: list[int]
    timestamps: list[int]
    log_prob: float
    token_log_probs: list[float] = field(default_factory=list)

    @property
    def confidence(self) -> float | None:
        """The geometric mean of the tokens' probabilities, in (0, 1]; None where nothing is said."""
        return mean_probability(self.token_log_probs)


class State(Protocol):
    """What a search knows of N streams between two calls: a SearchState, or fast_beam_search's lattices.

    frames: output frames that each stream has consumed.
    """

    frames: list[int]

    @staticmethod
    def stack(states: Sequence[State]) -> State:
        """One state of all the streams of `states`."""

    def unstack(self) -> list[State]:
        """States of one stream each."""

    def results(self) -> list[Result]:
        """The best path of each stream so far."""


class Segment(NamedTuple):
    """Tokens that one call appended to a path, and the path before them; `count` tokens in all.

    Paths that share a past share its segments, so that no call copies what was said before it.
    """

    tokens: list[int]
    timestamps: list[int]
    log_probs: list[float]
    previous: Segment | None
    count: int


NOTHING = Segment([], [], [], None, 0)


@dataclass
class SearchState:
    """Paths of N streams between two calls.  Dimension 0 of every tensor, and of every list, is the stream.

    context: (N, B, C) int64, the tokens that the predictor sees next; -1 before the first one.
    predicted: (N, B, D), what it makes of them.
    log_prob: (N, B) float32; -inf marks a path that is not in use.
    key: (N, B) int64, a hash of the path's tokens: equal keys are equal paths (one path: unused).
    histories: N lists of B segments.
    frames: output frames that each stream has consumed.
    """

    context: Tensor
    predicted: Tensor
    log_prob: Tensor
    key: Tensor
    histories: list[list[Segment]]
    frames: list[int]

    @staticmethod
    def stack(states: Sequence[SearchState]) -> SearchState:
        """One state of all the streams of `states`."""
        return SearchState(
            torch.cat([state.context for state in states]),
            torch.cat([state.predicted for state in states]),
            torch.cat([state.log_prob for state in states]),
            torch.cat([state.key for state in states]),
            [paths for state in states for paths in state.histories],
            [frames for state in states for frames in state.frames],
        )

    def unstack(self) -> list[SearchState]:
        """States of one stream each (views of the tensors)."""
        tensors = zip(*(x.split(1) for x in (self.context, self.predicted, self.log_prob, self.key)), strict=True)
        return [
            SearchState(*row, [paths], [frames])
            for row, paths, frames in zip(tensors, self.histories, self.frames, strict=True)
        ]

    def results(self) -> list[Result]:
        """The best path of each stream so far: the highest log probability per symbol.

        As in icefall, the symbols counted are the path's tokens and the C that stand before the first one.
        """
        context_size = self.context.size(2)
        answers = []
        for paths, log_probs in zip(self.histories, self.log_prob.tolist(), strict=True):
            best = max(range(len(paths)), key=lambda b: log_probs[b] / (context_size + paths[b].count))
            tokens, timestamps, token_log_probs = _unroll(paths[best])
            answers.append(Result(tokens, timestamps, log_probs[best], token_log_probs))
        return answers


@dataclass(frozen=True)
class Search:
    """A decoding method and its settings.

    method: greedy_search (the best symbol at every step, at most `max_sym_per_frame` symbols per frame),
      modified_beam_search (`beam_size` paths, at most one symbol per frame) or fast_beam_search (k2's lattice of the
      paths within `beam` of the best, with so many predictor contexts and states per frame).
    """

    method: str = "greedy_search"
    beam_size: int = 4
    max_sym_per_frame: int = 1
    beam: float = 20.0
    max_contexts: int = 8
    max_states: int = 64

    def __post_init__(self) -> None:
        if self.method not in DECODING_METHODS:
            raise UserError(f"--decoding-method {self.method}: unknown; use one of {', '.join(DECODING_METHODS)}")
        if self.beam_size < 1:
            raise UserError(f"--beam-size {self.beam_size}: must be at least 1")
        if self.max_sym_per_frame < 1:
            raise UserError(f"--max-sym-per-frame {self.max_sym_per_frame}: must be at least 1")
        for name, value in (("beam", self.beam), ("max-contexts", self.max_contexts), ("max-states", self.max_states)):
            if value <= 0:
                raise UserError(f"--{name} {value}: must be positive")
        if self.method == "fast_beam_search":
            _k2_search()

    @property
    def name(self) -> str:
        """The method and its settings, as icefall's decode.py names it in its summaries."""
        return "_".join([self.method, *self.settings])

    @property
    def settings(self) -> list[str]:
        """What distinguishes two searches of one method, in icefall's spelling; empty for plain greedy search."""
        if self.method == "modified_beam_search":
            return [f"beam-size-{self.beam_size}"]
        if self.method == "fast_beam_search":
            return [f"beam-{self.beam}", f"max-contexts-{self.max_contexts}", f"max-states-{self.max_states}"]
        return [] if self.max_sym_per_frame == 1 else [f"max-sym-per-frame-{self.max_sym_per_frame}"]

    def start(self, model: nn.Module, num_streams: int) -> State:
        """The state of `num_streams` streams that have heard nothing."""
        if self.method == "fast_beam_search":
            return _k2_search().start(model, num_streams, self.beam, self.max_contexts, self.max_states)
        paths = 1 if self.method == "greedy_search" else self.beam_size
        device = next(model.parameters()).device
        context = torch.full((num_streams, paths, model.config.context_size), -1, device=device)
        context[:, :, -1] = model.config.blank_id
        log_prob = torch.full((num_streams, paths), -torch.inf, device=device)
        log_prob[:, 0] = 0.0
        key = torch.zeros(num_streams, paths, dtype=torch.int64, device=device)
        histories = [[NOTHING] * paths for _ in range(num_streams)]
        with torch.no_grad():
            predicted = predict(model, context)
        return SearchState(context, predicted, log_prob, key, histories, [0] * num_streams)

    def advance(self, model: nn.Module, encoder_out: Tensor, encoder_out_lens: Tensor, state: State) -> State:
        """Hears `encoder_out_lens` (N,) more frames of `encoder_out` (N, T, encoder width)."""
        if self.method == "fast_beam_search":
            return _k2_search().fast_beam_search(model, encoder_out, encoder_out_lens, state)
        if self.method == "greedy_search":
            return greedy_search(model, encoder_out, encoder_out_lens, state, self.max_sym_per_frame)
        return modified_beam_search(model, encoder_out, encoder_out_lens, state)


def _k2_search() -> ModuleType:
    """fast_beam_search.py, which imports only where k2 does."""
    try:
        from kdstream.decoding import fast_beam_search
    except ImportError as error:
        raise UserError(
            f"--decoding-method fast_beam_search: needs k2 ({error}); run `bash local/setup_env.sh --k2` and decode "
            "with `.venv-k2/bin/python ... --checkpoint EXP_DIR/pretrained.pt`, or use modified_beam_search"
        ) from error
    return fast_beam_search


@torch.no_grad()
def greedy_search(
    model: nn.Module, encoder_out: Tensor, encoder_out_lens: Tensor, state: SearchState, max_sym_per_frame: int = 1
) -> SearchState:
    """Takes the best symbol; moves to the next frame at a blank or after `max_sym_per_frame` symbols.

    Args:
      model: a transducer (`config`, `decoder`, `joiner`).
      encoder_out: (N, T, encoder width).
      encoder_out_lens: (N,); frames at and after it change nothing.
      state: of N streams with one path each; not modified.
    Returns:
      The state after these frames; log_prob sums the log probabilities of the symbols taken, blanks included.
    """
    blank = model.config.blank_id
    encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    lens = encoder_out_lens.to(encoded.device)
    context, predicted, log_prob = (x[:, 0] for x in (state.context, state.predicted, state.log_prob))  # (N, ...)
    frames: list[int] = []
    emissions: list[Tensor] = []
    scores: list[Tensor] = []
    for t in range(encoded.size(1)):
        active = t < lens  # (N,)
        for _ in range(max_sym_per_frame):
            best, token = joiner_log_probs(model, encoded[:, t], predicted).max(dim=1)  # (N,), (N,)
            token = token.masked_fill(~active, blank)
            log_prob = log_prob + best.masked_fill(~active, 0.0)
            active = token != blank
            if not active.any():
                break
            context = _append(context, token, active)
            predicted = predict(model, context)
            frames.append(t)
            emissions.append(token)
            scores.append(best)
    histories = state.histories
    if emissions:
        tokens, token_log_probs = torch.stack(emissions).unsqueeze(2), torch.stack(scores).unsqueeze(2)  # (K, N, 1)
        histories = _extend(state, torch.zeros_like(state.key), frames, tokens, token_log_probs, blank)
    after = (x.unsqueeze(1) for x in (context, predicted, log_prob))
    return SearchState(*after, state.key, histories, _later(state.frames, encoder_out_lens))


@torch.no_grad()
def modified_beam_search(
    model: nn.Module, encoder_out: Tensor, encoder_out_lens: Tensor, state: SearchState
) -> SearchState:
    """Keeps the B best paths, at most one symbol per frame; paths with the same tokens become one.

    Per frame, the B best of all B * V continuations are kept, and of those the ones with equal tokens are merged:
    the more probable one stays, with the sum of the probabilities (icefall's modified_beam_search).

    Args and returns as greedy_search; the state has B paths.
    """
    blank = model.config.blank_id
    num_streams, num_paths = state.log_prob.shape
    encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
    lens = encoder_out_lens.to(encoded.device).unsqueeze(1)  # (N, 1)
    context, predicted, log_prob, key = state.context, state.predicted, state.log_prob, state.key
    itself = torch.arange(num_paths, device=encoded.device).expand(num_streams, num_paths)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in range(encoded.size(1)):
        active = t < lens  # (N, 1)
        step = joiner_log_probs(model, encoded[:, t : t + 1].expand_as(predicted), predicted)  # (N, B, V)
        best, index = (log_prob.unsqueeze(2) + step).flatten(1).topk(num_paths)  # (N, B), (N, B)
        parent = torch.div(index, step.size(2), rounding_mode="floor")
        parent = torch.where(active, parent, itself)
        token = (index % step.size(2)).masked_fill(~active, blank)
        emits = token != blank
        context = context.gather(1, parent.unsqueeze(2).expand_as(context))
        context = _append(context.flatten(0, 1), token.flatten(), emits.flatten()).view_as(context)
        predicted = predict(model, context)
        key = key.gather(1, parent)
        key = torch.where(emits, (key ^ (key >> 31)) * HASH_MULTIPLIER + token + 1, key)
        log_prob = torch.where(active, _merge_equal_paths(best, key), log_prob)
        steps.append((parent, token, step.flatten(1).gather(1, index)))
    origin, tokens, token_log_probs = _trace_back(steps, itself)
    histories = _extend(state, origin, range(len(steps)), tokens, token_log_probs, blank)
    return SearchState(context, predicted, log_prob, key, histories, _later(state.frames, encoder_out_lens))


def predict(model: nn.Module, context: Tensor) -> Tensor:
    """(..., C) token ids to the predictor's part of the joiner's input (..., D)."""
    out = model.decoder(context.flatten(0, -2), need_pad=False)  # (M, 1, decoder width)
    return model.joiner.decoder_proj(out).view(*context.shape[:-1], -1)


def joiner_log_probs(model: nn.Module, encoded: Tensor, predicted: Tensor) -> Tensor:
    """(..., D) from the encoder and (..., D) from the predictor to (..., V) log probabilities."""
    return model.joiner(encoded, predicted, project_input=False).float().log_softmax(dim=-1)


def _append(context: Tensor, token: Tensor, emits: Tensor) -> Tensor:
    """(M, C) contexts after (M,) tokens, where `emits` (M,) says so."""
    return torch.where(emits.unsqueeze(1), torch.cat([context[:, 1:], token.unsqueeze(1)], dim=1), context)


def _merge_equal_paths(log_prob: Tensor, key: Tensor) -> Tensor:
    """(N, B) log probabilities, best first: the first of equal paths gets their sum, the others -inf."""
    equal = key.unsqueeze(2) == key.unsqueeze(1)  # (N, B, B)
    total = log_prob.unsqueeze(1).masked_fill(~equal, -torch.inf).logsumexp(dim=2)
    return total.masked_fill(equal.tril(-1).any(dim=2), -torch.inf)


def _trace_back(steps: list[tuple[Tensor, Tensor, Tensor]], itself: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def _extend(
    state: SearchState, origin: Tensor, frames: Sequence[int], tokens: Tensor, log_probs: Tensor, blank: int
) -> list[list[Segment]]:
    """Histories after `tokens` (K, N, B), taken at `frames` (K) of this call, on top of the paths `origin` (N, B)."""
    histories = [[paths[b] for b in row] for paths, row in zip(state.histories, origin.tolist(), strict=True)]
    tokens, log_probs = tokens.permute(1, 2, 0), log_probs.permute(1, 2, 0)  # (N, B, K)
    places = (tokens != blank).nonzero()  # rows (n, b, k) in ascending order
    spoken = zip(places.tolist(), tokens[tuple(places.T)].tolist(), log_probs[tuple(places.T)].tolist(), strict=True)
    for (n, b), said in groupby(spoken, key=lambda item: item[0][:2]):
        said = list(said)
        times = [state.frames[n] + frames[k] for (_, _, k), _, _ in said]
        before = histories[n][b]
        count = before.count + len(said)
        histories[n][b] = Segment([token for _, token, _ in said], times, [score for *_, score in said], before, count)
    return histories


def _later(frames: list[int], encoder_out_lens: Tensor) -> list[int]:
    return [before + more for before, more in zip(frames, encoder_out_lens.tolist(), strict=True)]


def _unroll(segment: Segment | None) -> tuple[list[int], list[int], list[float]]:
    """All tokens of a path, their timestamps and their log probabilities, first to last."""
    segments = []
    while segment is not None:
        segments.append(segment)
        segment = segment.previous
    segments.reverse()
    return (
        [token for s in segments for token in s.tokens],
        [time for s in segments for time in s.timestamps],
        [log_prob for s in segments for log_prob in s.log_probs],
    )
