"""modified_beam_search: the best paths, with at most one symbol per frame.

Shapes: as in search.py, and B paths per stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from kdstream.checkpoints.store import PRETRAINED
from kdstream.config.decoding import ScoringConfig, SearchConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.fusion import Lodr, ShallowFusion
from kdstream.decoding.hotwords import ContextGraph
from kdstream.decoding.paths import (
    PathState,
    add_lens,
    append_tokens,
    extend_histories,
    of_parents,
    start_paths,
    trace_back,
    with_token,
)
from kdstream.decoding.search import Scorer, Search, joiner_log_probs, penalise_blank, predict, without_unknown
from kdstream.errors import UserError, option
from kdstream.hotwords import read_hotwords, shown
from kdstream.lm.bigram import BIGRAM_FILE, load_bigram
from kdstream.lm.model import load_lm
from kdstream.models.transducer import Transducer


@dataclass(frozen=True)
class ModifiedBeamSearch(Search[PathState]):
    """Keeps the B best paths, with at most one symbol per frame; paths with the same tokens become one.

    Per frame, the B best of all B * V continuations are kept, and of those the ones with equal tokens are merged:
    the more probable one stays, with the sum of the probabilities (icefall's modified_beam_search).
    Hotwords are preferred as hotwords.py says, and a language model is asked as fusion.py says.

    scorers: what adds to the scores of paths.
    """

    method = "modified_beam_search"
    beam_size: int = SearchConfig.beam_size
    blank_penalty: float = SearchConfig.blank_penalty
    hotwords_file: str = SearchConfig.hotwords_file
    hotwords_score: float = SearchConfig.hotwords_score
    lm_exp_dir: str = SearchConfig.lm_exp_dir
    lm_scale_decode: float = SearchConfig.lm_scale_decode
    lodr_scale: float = SearchConfig.lodr_scale
    nbest: int = ScoringConfig.nbest
    scorers: tuple[Scorer, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._require("beam_size", self.beam_size >= 1, "must be at least 1")
        self._require("nbest", self.nbest <= self.beam_size, f"{option('beam_size', self.beam_size)} has fewer paths")
        self._require("lodr_scale", self.lodr_scale <= 0, "must be at most 0: the bigram is taken away")
        self._require("lodr_scale", bool(self.lm_exp_dir) or not self.lodr_scale, f"goes with {option('lm_exp_dir')}")

    @property
    def settings(self) -> list[str]:
        return [f"beam-size-{self.beam_size}", *self._other_settings]

    @property
    def _other_settings(self) -> list[str]:
        names = [f"blank-penalty-{self.blank_penalty:g}"] if self.blank_penalty else []
        if self.hotwords_file:
            names.append(f"hotwords-{Path(self.hotwords_file).stem}-{self.hotwords_score:g}")
        if self.lm_exp_dir:
            names.append(f"{Path(self.lm_exp_dir).resolve().name}-lm-scale-{self.lm_scale_decode:g}")
        lodr = [f"LODR-2gram-scale-{self.lodr_scale:g}"] if self.lodr_scale else []
        return [*names, *lodr, *self._settings_beyond(fields(ModifiedBeamSearch))]

    @property
    def files(self) -> list[Path]:
        hotwords = [Path(self.hotwords_file)] if self.hotwords_file else []
        of_lm = [PRETRAINED] * bool(self.lm_exp_dir) + [BIGRAM_FILE] * bool(self.lodr_scale)
        return [*hotwords, *(Path(self.lm_exp_dir, name) for name in of_lm)]

    @property
    def streaming_name(self) -> str:
        return "-".join([f"num-active-paths-{self.beam_size}", *self._other_settings])

    def file_suffix(self, context_size: int) -> str:
        return "-".join([f"__modified_beam_search__beam-size-{self.beam_size}", *self._other_settings])

    def for_tokens(self, tokenizer: Tokenizer) -> ModifiedBeamSearch:
        scorers = (*self._hotwords(tokenizer), *self._language_model(tokenizer))
        search = replace(self)
        object.__setattr__(search, "scorers", scorers)
        return search

    def _hotwords(self, tokenizer: Tokenizer) -> list[Scorer]:
        if not self.hotwords_file:
            return []
        hotwords = read_hotwords(Path(self.hotwords_file), self.hotwords_score, tokenizer.unknown_letters)
        spelt = [(ids, hotword) for hotword in hotwords for ids in tokenizer.spellings(hotword.phrase)]
        for ids, hotword in spelt:
            if not ids:  # it has signs alone that the tokens do without, such as a blank of no width
                problem = f"{shown(hotword.phrase)} says nothing"
                raise UserError(problem, flag=option("hotwords_file", self.hotwords_file), fix="take its line out")
        tokens, scores = [ids for ids, _ in spelt], [hotword.score for _, hotword in spelt]
        return [ContextGraph(tokens, scores, tokenizer.vocab_size)]

    def _language_model(self, tokenizer: Tokenizer) -> list[Scorer]:
        if not self.lm_exp_dir:
            return []
        scorers: list[Scorer] = [ShallowFusion(load_lm(Path(self.lm_exp_dir), tokenizer), self.lm_scale_decode)]
        if self.lodr_scale:
            scorers.append(Lodr(load_bigram(Path(self.lm_exp_dir), tokenizer.vocab_size), self.lodr_scale))
        return scorers

    def start(self, model: Transducer, num_streams: int) -> PathState:
        biased = bool(self.hotwords_file or self.lm_exp_dir)
        assert biased == bool(self.scorers), "fit the search to the model's tokens with for_tokens"
        return replace(start_paths(model, num_streams, self.beam_size, self.scorers), nbest=self.nbest)

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
            own = joiner_log_probs(model, encoded[:, t : t + 1].expand_as(predicted), predicted)  # (N, B, V)
            step = penalise_blank(model, own, self.blank_penalty)
            best, index = (log_prob.unsqueeze(2) + step).flatten(1).topk(num_paths)  # (N, B), (N, B)
            parent = torch.div(index, step.size(2), rounding_mode="floor")
            parent = torch.where(active, parent, itself)
            token = without_unknown(model, index % step.size(2)).masked_fill(~active, blank)
            emits = token != blank
            context = of_parents(context, parent)
            context = append_tokens(context.flatten(0, 1), token.flatten(), emits.flatten()).view_as(context)
            predicted = predict(model, context)
            key = with_token(key.gather(1, parent), token, emits)
            for n, scorer in enumerate(self.scorers):
                before = tuple(of_parents(tensor, parent) for tensor in scored[n])
                score, scored[n] = scorer.advance(before, token, emits)
                best = best + score
            log_prob = torch.where(active, _merge_equal_paths(best, key), log_prob)
            steps.append((parent, token, own.flatten(1).gather(1, index)))
        origin, tokens, token_log_probs = trace_back(steps, itself)
        histories = extend_histories(state, origin, range(len(steps)), tokens, token_log_probs, blank)
        owed = torch.zeros_like(log_prob)
        for scorer, tensors in zip(self.scorers, scored, strict=True):
            owed = owed + scorer.owed(tensors)
        frames = add_lens(state.frames, encoder_out_lens)
        return PathState(context, predicted, log_prob, key, scored, owed, histories, frames, state.nbest)


def _merge_equal_paths(log_prob: Tensor, key: Tensor) -> Tensor:
    """(N, B) log probabilities: the first of equal paths gets their sum, the others -inf."""
    equal = key.unsqueeze(2) == key.unsqueeze(1)  # (N, B, B)
    total = log_prob.unsqueeze(1).masked_fill(~equal, -torch.inf).logsumexp(dim=2)
    return total.masked_fill(equal.tril(-1).any(dim=2), -torch.inf)
