"""fast_beam_search: k2's RnntDecodingStreams over many streams at once, at most one symbol per frame.

Where modified beam search keeps B paths, k2 keeps a lattice of all paths within `beam` of the best one, pruned to
so many predictor contexts and states per frame.  The graph is trivial: any token may follow any other.  What is
answered is chosen from the lattice as modified beam search chooses among its paths: close to icefall's
fast_beam_search_nbest, but without chance; its fast_beam_search takes the best alignment.

Importing this needs k2 (local/setup_env.sh --k2, or the wheel for your torch).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

import k2
import numpy as np
import torch
from torch import Tensor, nn

from kdstream.decoding.search import Result, joiner_log_probs, predict

KEPT = 64  # token sequences among which the answer is chosen
NEVER = -1e9  # log probability of what must not happen; with -inf k2 would compute inf - inf


@dataclass
class LatticeState:
    """Lattices of N streams between two calls: a search.State, but one that k2 continues in place.

    streams: N, with what k2 has kept of each.
    times: for each stream the output frame of every frame of its lattice.
    frames: output frames that each stream has consumed.
    config: k2.RnntDecodingConfig, the same in all.
    """

    streams: list[k2.RnntDecodingStream]
    times: list[list[int]]
    frames: list[int]
    config: k2.RnntDecodingConfig

    @staticmethod
    def stack(states: Sequence[LatticeState]) -> LatticeState:
        """One state of all the streams of `states`."""
        return LatticeState(
            [stream for state in states for stream in state.streams],
            [times for state in states for times in state.times],
            [frames for state in states for frames in state.frames],
            states[0].config,
        )

    def unstack(self) -> list[LatticeState]:
        """States of one stream each."""
        each = zip(self.streams, self.times, self.frames, strict=True)
        return [LatticeState([stream], [times], [frames], self.config) for stream, times, frames in each]

    def results(self) -> list[Result]:
        """The best token sequence of each stream so far, with the timestamps of its best alignment.

        k2 leaves a lattice's last frame out of its paths, so each gets one more, a blank that costs nothing and
        takes no time; the search goes on after it as if it had not been.
        """
        streams = k2.RnntDecodingStreams(self.streams, self.config)
        contexts = streams.get_contexts()[1]
        scores = torch.full((contexts.size(0), self.config.vocab_size), NEVER, device=contexts.device)
        scores[:, 0] = 0.0
        streams.advance(scores)
        streams.terminate_and_flush_to_streams()
        for times, frames in zip(self.times, self.frames, strict=True):
            times.append(frames)
        lattice = streams.format_output([len(times) for times in self.times], allow_partial=True)
        lattice = k2.connect(lattice)  # without what cannot reach the end
        context_size = self.config.decoder_history_len
        return [most_probable(lattice[n], times, context_size) for n, times in enumerate(self.times)]


class Path(NamedTuple):
    """A token sequence in a lattice: the state it has come to, the sum over its alignments, and the best of them."""

    state: int
    log_prob: float
    best: Result


def most_probable(lattice: k2.Fsa, times: Sequence[int], context_size: int) -> Result:
    """The token sequence with the highest log probability per symbol, counted as in SearchState.results.

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
    paths = {(): Path(0, 0.0, Result([], [], 0.0))}
    for t in times:
        longer: dict[tuple[int, ...], Path] = {}
        for tokens, (state, log_prob, best) in paths.items():
            for target, label, score in arcs[state]:
                after = _after(best, label, t, score)
                said = tokens + (label,) if label > 0 else tokens
                total = log_prob + score
                if said in longer:
                    other = longer[said]
                    total = float(np.logaddexp(total, other.log_prob))
                    after = max(after, other.best, key=attrgetter("log_prob"))
                longer[said] = Path(target, total, after)
        paths = dict(heapq.nlargest(KEPT, longer.items(), key=lambda item: item[1].log_prob))
    _, total, best = max(paths.values(), key=lambda path: path.log_prob / (context_size + len(path.best.tokens)))
    return replace(best, log_prob=total)


def _after(path: Result, label: int, t: int, score: float) -> Result:
    """A path after one more arc."""
    log_prob = path.log_prob + score
    if label <= 0:
        return Result(path.tokens, path.timestamps, log_prob, path.token_log_probs)
    return Result([*path.tokens, label], [*path.timestamps, t], log_prob, [*path.token_log_probs, score])


def start(model: nn.Module, num_streams: int, beam: float, max_contexts: int, max_states: int) -> LatticeState:
    """The state of `num_streams` streams that have heard nothing."""
    vocab_size = model.config.vocab_size
    graph = k2.trivial_graph(vocab_size - 1, next(model.parameters()).device)
    config = k2.RnntDecodingConfig(vocab_size, model.config.context_size, beam, max_states, max_contexts)
    streams = [k2.RnntDecodingStream(graph) for _ in range(num_streams)]
    return LatticeState(streams, [[] for _ in streams], [0] * num_streams, config)


@torch.inference_mode(False)  # k2 counts the versions of its tensors, which those of inference mode do not have
@torch.no_grad()
def fast_beam_search(
    model: nn.Module, encoder_out: Tensor, encoder_out_lens: Tensor, state: LatticeState
) -> LatticeState:
    """Hears more frames, as search.greedy_search does; `state` is continued, not copied."""
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
            streams.advance(joiner_log_probs(model, frames, predict(model, context)))
        streams.terminate_and_flush_to_streams()
        begin = end
    frames = [done + more for done, more in zip(state.frames, lens, strict=True)]
    for times, done, more in zip(state.times, state.frames, frames, strict=True):
        times.extend(range(done, more))
    return LatticeState(state.streams, state.times, frames, state.config)
