"""greedy_search: the best symbol at every step.  Shapes: as in search.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdstream.config.flags import flag
from kdstream.decoding.paths import PathState, add_lens, append_tokens, extend_histories, start_paths
from kdstream.decoding.search import Search, joiner_log_probs, predict, without_unknown
from kdstream.models.transducer import Transducer


@dataclass(frozen=True)
class GreedySearch(Search[PathState]):
    """Takes the best symbol; moves to the next frame at a blank or after `max_sym_per_frame` symbols."""

    method = "greedy_search"
    max_sym_per_frame: int = flag(1, "Symbols that greedy_search may emit in one 40 ms frame.")

    def __post_init__(self) -> None:
        self._require("max_sym_per_frame", self.max_sym_per_frame >= 1, "must be at least 1")

    @property
    def settings(self) -> list[str]:
        return [] if self.max_sym_per_frame == 1 else [f"max-sym-per-frame-{self.max_sym_per_frame}"]

    @property
    def streaming_name(self) -> str:
        return "_".join(["greedy-search", *self.settings])

    def file_suffix(self, context_size: int) -> str:
        return f"_context-{context_size}_max-sym-per-frame-{self.max_sym_per_frame}"

    def start(self, model: Transducer, num_streams: int) -> PathState:
        return start_paths(model, num_streams, num_paths=1)

    @torch.no_grad()
    def advance(self, model: Transducer, encoder_out: Tensor, encoder_out_lens: Tensor, state: PathState) -> PathState:
        """As `Search.advance`; log_prob sums the log probabilities of the symbols taken, blanks included."""
        blank = model.config.blank_id
        encoded = model.joiner.encoder_proj(encoder_out)  # (N, T, D)
        lens = encoder_out_lens.to(encoded.device)
        context, predicted, log_prob = (x[:, 0] for x in (state.context, state.predicted, state.log_prob))  # (N, ...)
        frames: list[int] = []
        emissions: list[Tensor] = []
        scores: list[Tensor] = []
        for t in range(encoded.size(1)):
            active = t < lens  # (N,)
            for _ in range(self.max_sym_per_frame):
                best, token = joiner_log_probs(model, encoded[:, t], predicted).max(dim=1)  # (N,), (N,)
                token = without_unknown(model, token).masked_fill(~active, blank)
                log_prob = log_prob + best.masked_fill(~active, 0.0)
                active = token != blank
                if not active.any():
                    break
                context = append_tokens(context, token, active)
                predicted = predict(model, context)
                frames.append(t)
                emissions.append(token)
                scores.append(best)
        histories = state.histories
        if emissions:
            tokens, token_log_probs = torch.stack(emissions).unsqueeze(2), torch.stack(scores).unsqueeze(2)  # (K, N, 1)
            origin = torch.zeros_like(state.key)
            histories = extend_histories(state, origin, frames, tokens, token_log_probs, blank)
        context, predicted, log_prob = (x.unsqueeze(1) for x in (context, predicted, log_prob))  # (N, 1, ...)
        return PathState(context, predicted, log_prob, state.key, histories, add_lens(state.frames, encoder_out_lens))
