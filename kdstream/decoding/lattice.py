"""fast_beam_search: k2's RnntDecodingStreams over many streams at once, with at most one symbol per frame.

Where modified beam search keeps B paths, k2 keeps a lattice of all paths within `beam` of the best one, pruned to
so many predictor contexts and states per frame.  The graph is trivial: any token may follow any other.  The answer is
chosen from the lattice as modified beam search chooses among its paths.  That is close to icefall's
fast_beam_search_nbest, but without chance; icefall's fast_beam_search takes the best alignment.

k2 is imported when the search is built, not before: this module is there without it.

Shapes: as in search.py.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdstream.config.decoding import SearchConfig
from kdstream.decoding.search import Result, Search, joiner_log_probs, predict
from kdstream.errors import UserError, option
from kdstream.models.transducer import Transducer

KEPT = 64  # token sequences among which the answer is chosen
NEVER = -1e9  # log probability of what must not happen; with -inf k2 would compute inf - inf

RnntDecodingStream = Any  # k2's classes, which are not there without it
RnntDecodingStreams = Any
RnntDecodingConfig = Any
Fsa = Any


def import_k2() -> Any:
    """k2.  Raises UserError, with what to do about it, where it is not installed."""
    try:
        import k2  # pyright: ignore[reportMissingImports]  # it is not there in most environments
    except (ImportError, OSError) as error:  # OSError: a wheel built against another torch
        raise UserError(
            f"needs k2 ({error})",
            flag=option("decoding_method", FastBeamSearch.method),
            fix="install k2 as docs/k2.md says, or use modified_beam_search",
        ) from error
    return k2


@dataclass
class LatticeState:
    """Lattices of N streams between two calls.

    k2 leaves the last frame of a lattice out of the paths that it returns.  So each call ends with one frame more, on
    which every path takes a blank at no cost.  Results can then be read at any time, and reading appends nothing.

    streams: N; k2 appends to them in place.
    readers: N, one for each stream.  k2 returns lattices only through an object that advances no more; such an object
      reads all that its stream holds by then.
    times: for each stream the output frame of every frame of its lattice.
    frames: output frames that each stream has consumed.
    config: the same in all.
    """

    streams: list[RnntDecodingStream]
    readers: list[RnntDecodingStreams]
    times: list[list[int]]
    frames: list[int]
    config: RnntDecodingConfig

    @classmethod
    def stack(cls, states: Sequence[LatticeState]) -> LatticeState:
        """One state of all the streams of `states`."""
        return cls(
            [stream for state in states for stream in state.streams],
            [reader for state in states for reader in state.readers],
            [times for state in states for times in state.times],
            [frames for state in states for frames in state.frames],
            states[0].config,
        )

    def row(self, n: int) -> LatticeState:
        """The state of stream n alone."""
        one = slice(n, n + 1)
        return LatticeState(self.streams[one], self.readers[one], self.times[one], self.frames[one], self.config)

    def results(self) -> list[Result]:
        """The best token sequence of each stream so far, with the timestamps of its best alignment."""
        k2, context_size = import_k2(), self.config.decoder_history_len
        answers = []
        with torch.inference_mode(False), torch.no_grad():
            for reader, times in zip(self.readers, self.times, strict=True):
                lattice = reader.format_output([len(times)], allow_partial=True)
                lattice = k2.connect(lattice)  # without what cannot reach the end
                answers.append(most_probable(lattice[0], times, context_size))
        return answers

    def last_frames(self) -> list[int]:
        """The output frame of the last token of each stream's best path; -1 where it has none."""
        return [result.timestamps[-1] if result.timestamps else -1 for result in self.results()]


@dataclass(frozen=True)
class FastBeamSearch(Search[LatticeState]):
    """Keeps the paths within `beam` of the best in k2's lattice, in so many predictor contexts and states per frame.

    Raises UserError where k2 is not installed.
    """

    method = "fast_beam_search"
    beam: float = SearchConfig.beam
    max_contexts: int = SearchConfig.max_contexts
    max_states: int = SearchConfig.max_states

    def __post_init__(self) -> None:
        for name in ("beam", "max_contexts", "max_states"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        import_k2()

    @property
    def settings(self) -> list[str]:
        own = [f"beam-{self.beam}", f"max-contexts-{self.max_contexts}", f"max-states-{self.max_states}"]
        return [*own, *self._settings_beyond(fields(FastBeamSearch))]

    @property
    def streaming_name(self) -> str:
        return "_".join(self.settings)

    def file_suffix(self, context_size: int) -> str:
        return "_" + "_".join(self.settings)

    @torch.inference_mode(False)  # k2 counts the versions of its tensors, which those of inference mode do not have
    @torch.no_grad()
    def start(self, model: Transducer, num_streams: int) -> LatticeState:
        k2, vocab_size = import_k2(), model.config.vocab_size
        graph = k2.trivial_graph(vocab_size - 1, next(model.parameters()).device)
        config = k2.RnntDecodingConfig(
            vocab_size, model.config.context_size, self.beam, self.max_states, self.max_contexts
        )
        streams = [k2.RnntDecodingStream(graph) for _ in range(num_streams)]
        readers = [_append_blank([stream], config) for stream in streams]
        return LatticeState(streams, readers, [[0] for _ in streams], [0] * num_streams, config)

    @torch.inference_mode(False)
    @torch.no_grad()
    def advance(
        self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: LatticeState
    ) -> LatticeState:
        k2 = import_k2()
        encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        lens = encoder_out_lens.tolist()
        begin = 0
        for end in sorted({*lens} - {0}):  # between two lengths the same streams go on
            rows = [n for n, length in enumerate(lens) if length >= end]
            streams = k2.RnntDecodingStreams([state.streams[n] for n in rows], state.config)
            for frames in encoded[rows, begin:end].unbind(1):  # (N', D)
                shape, context = streams.get_contexts()
                context = context.to(torch.int64)  # (M, C) of all streams together
                # k2 begins with blanks only; before the last one of them stands nothing, as in training
                context[:, :-1] = context[:, :-1].masked_fill(context[:, 1:] == model.config.blank_id, -1)
                frames = frames[shape.row_ids(1).to(torch.int64)]  # (M, D)
                streams.advance(_unknown_as_blank(model, joiner_log_probs(model, frames, predict(model, context))))
            streams.terminate_and_flush_to_streams()
            begin = end
        if any(lens):
            _append_blank([stream for stream, more in zip(state.streams, lens, strict=True) if more], state.config)
        frames = [done + more for done, more in zip(state.frames, lens, strict=True)]
        times = [
            [*before, *range(done, after), after] if after > done else before
            for before, done, after in zip(state.times, state.frames, frames, strict=True)
        ]
        return LatticeState(state.streams, state.readers, times, frames, state.config)


def _unknown_as_blank(model: Transducer, log_probs: Tensor) -> Tensor:
    """(M, V) log probabilities where blank has that of <unk> too: neither says anything, and paths are sums."""
    if model.unk_id is None:
        return log_probs
    log_probs = log_probs.clone()
    log_probs[:, model.config.blank_id] = log_probs[:, [model.config.blank_id, model.unk_id]].logsumexp(dim=1)
    log_probs[:, model.unk_id] = NEVER
    return log_probs


def _append_blank(streams: list[RnntDecodingStream], config: RnntDecodingConfig) -> RnntDecodingStreams:
    """Appends a frame to each lattice on which every path takes a blank at no cost.

    On a blank, k2 adds to each state a second one in which the graph ends.  There is room for both, so nothing is
    pruned, and the search goes on as if the frame were not there.

    Returns:
      An object that can read these lattices from now on.
    """
    k2 = import_k2()
    room = k2.RnntDecodingConfig(
        config.vocab_size, config.decoder_history_len, config.beam, 2 * config.max_states, config.max_contexts
    )
    batch = k2.RnntDecodingStreams(streams, room)
    contexts = batch.get_contexts()[1]
    scores = torch.full((contexts.size(0), config.vocab_size), NEVER, device=contexts.device)
    scores[:, 0] = 0.0
    batch.advance(scores)
    batch.terminate_and_flush_to_streams()
    return batch


class LatticePath(NamedTuple):
    """A token sequence in a lattice: the state it has come to, the sum over its alignments, and the best of them."""

    state: int
    log_prob: float
    best: Result


def most_probable(lattice: Fsa, times: Sequence[int], context_size: int) -> Result:
    """The token sequence with the highest log probability per symbol, counted as in PathState.results.

    That of a sequence is the sum over its alignments.  The single best alignment would not do: where a model is
    unsure of the time of a token, saying nothing is more probable than the token at any one time.

    Args:
      lattice: every path has one arc for each of `times`, labelled 0 for blank and -1 for the last one.
    """
    arcs: dict[int, list[tuple[int, int, float]]] = defaultdict(list)  # by the state that they leave
    for (source, target, label), score in zip(
        lattice.arcs.values()[:, :3].tolist(), lattice.scores.tolist(), strict=True
    ):
        arcs[source].append((target, label, score))
    paths: dict[tuple[int, ...], LatticePath] = {(): LatticePath(0, 0.0, Result([], [], 0.0))}
    for t in times:
        longer: dict[tuple[int, ...], LatticePath] = {}
        for tokens, (state, log_prob, best) in paths.items():
            for target, label, score in arcs[state]:
                after = _after(best, label, t, score)
                said = tokens + (label,) if label > 0 else tokens
                total = log_prob + score
                if said in longer:
                    other = longer[said]
                    total = float(np.logaddexp(total, other.log_prob))
                    after = max(after, other.best, key=attrgetter("log_prob"))
                longer[said] = LatticePath(target, total, after)
        paths = dict(heapq.nlargest(KEPT, longer.items(), key=lambda item: item[1].log_prob))
    _, total, best = max(paths.values(), key=lambda path: path.log_prob / (context_size + len(path.best.tokens)))
    return replace(best, log_prob=total)


def _after(path: Result, label: int, t: int, score: float) -> Result:
    """A path after one more arc."""
    log_prob = path.log_prob + score
    if label <= 0:
        return Result(path.tokens, path.timestamps, log_prob, path.token_log_probs)
    return Result([*path.tokens, label], [*path.timestamps, t], log_prob, [*path.token_log_probs, score])
