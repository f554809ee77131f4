"""modified_beam_search: the best paths, with at most one symbol per frame.

Shapes: as in search.py, and B paths per stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kdstream.config.sections import DecodeConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.hotwords import ContextGraph
from kdstream.decoding.paths import PathState, add_lens, append_tokens, extend_histories, start_paths
from kdstream.decoding.search import Scorer, Search, joiner_log_probs, predict, without_unknown
from kdstream.hotwords import read_hotwords
from kdstream.models.transducer import Transducer

HASH_MULTIPLIER = 0x5851F42D4C957F2D  # odd, so that multiplication modulo 2^64 loses nothing


@dataclass(frozen=True)
class ModifiedBeamSearch(Search[PathState]):
    """Keeps the B best paths, with at most one symbol per frame; paths with the same tokens become one.

    Per frame, the B best of all B * V continuations are kept, and of those the ones with equal tokens are merged:
    the more probable one stays, with the sum of the probabilities (icefall's modified_beam_search).
    Hotwords are preferred as hotwords.py says.

    scorers: what adds to the scores of paths.
    """

    method = "modified_beam_search"
    beam_size: int = DecodeConfig.beam_size
    hotwords_file: str = DecodeConfig.hotwords_file
    hotwords_score: float = DecodeConfig.hotwords_score
    scorers: tuple[Scorer, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._require("beam_size", self.beam_size >= 1, "must be at least 1")

    @property
    def settings(self) -> list[str]:
        return [f"beam-size-{self.beam_size}", *self._biasing]

    @property
    def _biasing(self) -> list[str]:
        return [f"hotwords-{Path(self.hotwords_file).stem}-{self.hotwords_score:g}"] if self.hotwords_file else []

    @property
    def streaming_name(self) -> str:
        return "-".join([f"num-active-paths-{self.beam_size}", *self._biasing])

    def file_suffix(self, context_size: int) -> str:
        return "-".join([f"__modified_beam_search__beam-size-{self.beam_size}", *self._biasing])

    def for_tokens(self, tokenizer: Tokenizer) -> ModifiedBeamSearch:
        if not self.hotwords_file:
            return self
        hotwords = read_hotwords(Path(self.hotwords_file), self.hotwords_score, tokenizer.unknown_letters)
        tokens = tokenizer.encode([hotword.phrase for hotword in hotwords])
        graph = ContextGraph(tokens, [hotword.score for hotword in hotwords], tokenizer.vocab_size)
        search = replace(self)
        object.__setattr__(search, "scorers", (graph,))
        return search

    def start(self, model: Transducer, num_streams: int) -> PathState:
        assert bool(self.hotwords_file) == bool(self.scorers), "fit the search to the model's tokens with for_tokens"
        return start_paths(model, num_streams, self.beam_size, self.scorers)

    @torch.no_grad()
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: PathState) -> PathState:
        blank = model.config.blank_id
        num_streams, num_paths = state.log_prob.shape
        encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        lens = encoder_out_lens.to(encoded.device).unsqueeze(1)  # (N, 1)
        context, predicted, log_prob, key = state.context, state.predicted, state.log_prob, state.key
        itself = torch.arange(num_paths, device=encoded.device).expand(num_streams, num_paths)
        scored = list(state.scored)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(encoded.size(1)):
            active = t < lens  # (N, 1)
            step = joiner_log_probs(model, encoded[:, t : t + 1].expand_as(predicted), predicted)  # (N, B, V)
            best, index = (log_prob.unsqueeze(2) + step).flatten(1).topk(num_paths)  # (N, B), (N, B)
            parent = torch.div(index, step.size(2), rounding_mode="floor")
            parent = torch.where(active, parent, itself)
            token = without_unknown(model, index % step.size(2)).masked_fill(~active, blank)
            emits = token != blank
            context = _of_parents(context, parent)
            context = append_tokens(context.flatten(0, 1), token.flatten(), emits.flatten()).view_as(context)
            predicted = predict(model, context)
            key = key.gather(1, parent)
            key = torch.where(emits, (key ^ (key >> 31)) * HASH_MULTIPLIER + token + 1, key)
            for n, scorer in enumerate(self.scorers):
                before = tuple(_of_parents(tensor, parent) for tensor in scored[n])
                score, scored[n] = scorer.advance(before, token, emits)
                best = best + score
            log_prob = torch.where(active, _merge_equal_paths(best, key), log_prob)
            steps.append((parent, token, step.flatten(1).gather(1, index)))
        origin, tokens, token_log_probs = _trace_back(steps, itself)
        histories = extend_histories(state, origin, range(len(steps)), tokens, token_log_probs, blank)
        owed = torch.zeros_like(log_prob)
        for scorer, tensors in zip(self.scorers, scored, strict=True):
            owed = owed + scorer.owed(tensors)
        frames = add_lens(state.frames, encoder_out_lens)
        return PathState(context, predicted, log_prob, key, scored, owed, histories, frames)


def _of_parents(tensor: Tensor, parent: Tensor) -> Tensor:
    """(N, B, ...) of the paths `parent` (N, B)."""
    index = parent.view(*parent.shape, *[1] * (tensor.dim() - 2))
    return tensor.gather(1, index.expand(*parent.shape, *tensor.shape[2:]))


def _merge_equal_paths(log_prob: Tensor, key: Tensor) -> Tensor:
    """(N, B) log probabilities: the first of equal paths gets their sum, the others -inf."""
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
