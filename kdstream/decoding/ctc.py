"""Searches over the posteriors of the CTC head, which has no predictor: ctc_greedy_search and ctc_prefix_beam_search.

A model trained with --use-ctc 1 has the head.  <unk> counts as blank, as in the other searches.

Shapes: N streams, B prefixes per stream, T output frames (40 ms), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from kdstream.config.decoding import SearchConfig
from kdstream.decoding.paths import (
    NO_TOKENS,
    History,
    add_lens,
    extend_histories,
    result_of,
    trace_back,
    with_token,
)
from kdstream.decoding.search import Result, Search
from kdstream.errors import UserError, option
from kdstream.models.transducer import Transducer


@dataclass
class CtcState:
    """B prefixes of each of N streams between two calls.  Dimension 0 of all tensors and lists is the stream.

    last: (N, B) int64, the prefix's last token (greedy: the last frame's best symbol).  Of an empty prefix: the last
      token before the endpoint, or blank where there was none.
    by_blank, by_token: (N, B) float32, log probability of all alignments of the prefix that end with blank, and of all
      that end with its last token (greedy: of the one alignment, in by_blank).
    key: (N, B) int64, a hash of the prefix: equal keys are equal prefixes.
    histories: N lists of B, one of each prefix.
    frames: output frames that each stream has consumed.
    """

    last: Tensor
    by_blank: Tensor
    by_token: Tensor
    key: Tensor
    histories: list[list[History]]
    frames: list[int]

    @classmethod
    def stack(cls, states: Sequence[CtcState]) -> CtcState:
        """One state of all the streams of `states`."""
        return cls(
            torch.cat([state.last for state in states]),
            torch.cat([state.by_blank for state in states]),
            torch.cat([state.by_token for state in states]),
            torch.cat([state.key for state in states]),
            [prefixes for state in states for prefixes in state.histories],
            [frames for state in states for frames in state.frames],
        )

    def row(self, n: int) -> CtcState:
        """The state of stream n alone (views of the tensors)."""
        one = slice(n, n + 1)
        return CtcState(
            self.last[one], self.by_blank[one], self.by_token[one], self.key[one], self.histories[one], self.frames[one]
        )

    def results(self) -> list[Result]:
        """The most probable prefix of each stream so far."""
        return [result_of(prefix, log_prob) for prefix, log_prob in self._best()]

    def last_frames(self) -> list[int]:
        """The output frame of the last token of each stream's most probable prefix; -1 where it has none."""
        return [prefix.timestamps[-1] if prefix.timestamps else -1 for prefix, _ in self._best()]

    def _best(self) -> list[tuple[History, float]]:
        log_prob, best = torch.logaddexp(self.by_blank, self.by_token).max(dim=1)
        chosen = zip(self.histories, best.tolist(), log_prob.tolist(), strict=True)
        return [(prefixes[b], total) for prefixes, b, total in chosen]


def start_prefixes(model: Transducer, num_streams: int, num_prefixes: int, method: str) -> CtcState:
    """The state of streams that have heard nothing: one empty prefix each, and room for others.

    Raises UserError for a model without a CTC head.
    """
    if not model.config.use_ctc:
        fix = "train with --use-ctc 1, or use greedy_search or modified_beam_search"
        raise UserError("the model has no CTC head", flag=option("decoding_method", method), fix=fix)
    device = next(model.parameters()).device
    last = torch.full((num_streams, num_prefixes), model.config.blank_id, device=device)
    by_token = torch.full((num_streams, num_prefixes), -torch.inf, device=device)
    by_blank = by_token.clone()
    by_blank[:, 0] = 0.0
    histories = [[NO_TOKENS] * num_prefixes for _ in range(num_streams)]
    return CtcState(last, by_blank, by_token, torch.zeros_like(last), histories, [0] * num_streams)


def ctc_log_probs(model: Transducer, encoder_out: Tensor) -> Tensor:
    """(N, T, V) log probabilities; those of <unk> are blank's."""
    log_probs = model.ctc_output(encoder_out).float()
    if model.unk_id is None:
        return log_probs
    symbols = torch.arange(model.config.vocab_size, device=log_probs.device)
    silent = (symbols == model.config.blank_id) | (symbols == model.unk_id)
    blank = log_probs.masked_fill(~silent, -torch.inf).logsumexp(dim=2, keepdim=True)
    return torch.where(symbols == model.config.blank_id, blank, log_probs.masked_fill(silent, -torch.inf))


class CtcSearch(Search[CtcState]):
    """What both searches share."""

    def restart(self, model: Transducer, state: CtcState) -> CtcState:
        """As `Search.restart`, but the last symbol is kept: where it goes on after the endpoint, it is no new token."""
        fresh, total = self.start(model, 1), torch.logaddexp(state.by_blank, state.by_token)
        best = total.argmax(dim=1, keepdim=True)  # (1, 1)
        fresh.last[:, :1] = state.last.gather(1, best)
        fresh.by_blank[:, :1] = (state.by_blank - total).gather(1, best)
        fresh.by_token[:, :1] = (state.by_token - total).gather(1, best)
        fresh.frames = state.frames
        return fresh


@dataclass(frozen=True)
class CtcGreedySearch(CtcSearch):
    """Takes the best symbol of each frame; repetitions without a blank between them are one token."""

    method = "ctc_greedy_search"

    def start(self, model: Transducer, num_streams: int) -> CtcState:
        return start_prefixes(model, num_streams, 1, self.method)

    @torch.no_grad()
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: CtcState) -> CtcState:
        """As `Search.advance`; log_prob is that of the one alignment."""
        log_prob, best = ctc_log_probs(model, encoder_out).max(dim=2)  # (N, T)
        lens = encoder_out_lens.to(best.device).unsqueeze(1)  # (N, 1)
        symbols = torch.cat([state.last, best], dim=1)  # (N, 1 + T), with the one before
        inside = torch.arange(best.size(1), device=best.device) < lens
        emits = (best != symbols[:, :-1]) & (best != model.config.blank_id) & inside
        tokens = best.masked_fill(~emits, model.config.blank_id)
        origin = torch.zeros_like(state.last)
        frames = range(best.size(1))
        histories = extend_histories(
            state, origin, frames, tokens.t().unsqueeze(2), log_prob.t().unsqueeze(2), model.config.blank_id
        )
        total = state.by_blank + log_prob.masked_fill(~inside, 0.0).sum(dim=1, keepdim=True)
        after = add_lens(state.frames, encoder_out_lens)
        return replace(state, last=symbols.gather(1, lens), by_blank=total, histories=histories, frames=after)


@dataclass(frozen=True)
class CtcPrefixBeamSearch(CtcSearch):
    """Keeps the B most probable prefixes, each with the probability of all of its alignments.

    The recursion is that of Hannun et al., "First-pass large vocabulary continuous speech recognition using
    bi-directional recurrent DNNs" (2014), without a language model.
    """

    method = "ctc_prefix_beam_search"
    beam_size: int = SearchConfig.beam_size

    def __post_init__(self) -> None:
        self._require("beam_size", self.beam_size >= 1, "must be at least 1")

    @property
    def settings(self) -> list[str]:
        return [f"beam-size-{self.beam_size}", *self._settings_beyond(fields(CtcPrefixBeamSearch))]

    def start(self, model: Transducer, num_streams: int) -> CtcState:
        return start_prefixes(model, num_streams, self.beam_size, self.method)

    @torch.no_grad()
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: CtcState) -> CtcState:
        blank, log_probs = model.config.blank_id, ctc_log_probs(model, encoder_out)
        lens = encoder_out_lens.to(log_probs.device).unsqueeze(1)  # (N, 1)
        itself = torch.arange(self.beam_size, device=log_probs.device).expand_as(state.last)
        now = state
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(log_probs.size(1)):
            active, frame = t < lens, log_probs[:, t]  # (N, 1), (N, V)
            stay_blank, stay_token, extended = _continue(now, frame, blank)
            stay = torch.logaddexp(stay_blank, stay_token)
            best, index = torch.cat([stay, extended.flatten(1)], dim=1).topk(self.beam_size)  # (N, B)
            grows = (index >= self.beam_size) & active
            place = (index - self.beam_size).clamp(min=0)
            parent = torch.where(grows, torch.div(place, frame.size(1), rounding_mode="floor"), index)
            parent = torch.where(active, parent, itself)
            token = torch.where(grows, place % frame.size(1), blank)
            by_blank, by_token = (
                torch.where(active, x.gather(1, parent), before)
                for x, before in ((stay_blank, now.by_blank), (stay_token, now.by_token))
            )
            now = replace(
                now,
                last=torch.where(grows, token, now.last.gather(1, parent)),
                by_blank=by_blank.masked_fill(grows, -torch.inf),
                by_token=torch.where(grows, best, by_token),
                key=with_token(now.key.gather(1, parent), token, grows),
            )
            steps.append((parent, token, frame.gather(1, token)))
        origin, tokens, token_log_probs = trace_back(steps, itself)
        histories = extend_histories(state, origin, range(len(steps)), tokens, token_log_probs, blank)
        return replace(now, histories=histories, frames=add_lens(state.frames, encoder_out_lens))


def _continue(state: CtcState, frame: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """What one more frame (N, V) makes of each prefix.

    Returns:
      Log probabilities of the prefix itself, ending with blank and with its last token, (N, B) each, and of the prefix
      with each token after it, (N, B, V); -inf where that is another prefix of the beam, to which it was added.
    """
    total = torch.logaddexp(state.by_blank, state.by_token)
    last = frame.gather(1, state.last)
    stay_blank = total + frame[:, blank : blank + 1]
    stay_token = state.by_token + last  # -inf where nothing was said
    extended = total.unsqueeze(2) + frame.unsqueeze(1)  # (N, B, V)
    # after its last token the same one is another only if there was a blank between
    extended = extended.scatter(2, state.last.unsqueeze(2), (state.by_blank + last).unsqueeze(2))
    extended[:, :, blank] = -torch.inf
    ends = state.last.unsqueeze(1).expand(-1, state.last.size(1), -1)  # (N, B, B'): the last token of prefix b'
    longer = with_token(state.key.unsqueeze(2), ends, ends != blank)  # the key of prefix b with it
    same = (longer == state.key.unsqueeze(1)) & (ends != blank) & (total > -torch.inf).unsqueeze(1)
    joined = extended.gather(2, ends).masked_fill(~same, -torch.inf)
    stay_token = torch.logaddexp(stay_token, joined.logsumexp(dim=1))
    counted = torch.zeros_like(extended).scatter_add(2, ends, same.to(extended.dtype)) > 0
    return stay_blank, stay_token, extended.masked_fill(counted, -torch.inf)
