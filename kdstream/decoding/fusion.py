"""Shallow fusion: a language model's log probabilities are added to those of paths, scaled; LODR subtracts a bigram's.

The LSTM is asked about the tokens that the transducer has chosen, as in icefall's modified_beam_search_LODR and in
sherpa-onnx (online-rnn-lm.cc, ComputeLMScoreSF).  The end of a sentence is not scored.

Shapes: N streams, B paths, M paths that say something, V vocabulary, K layers, H hidden width, P pairs of the bigram.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.lm.bigram import Bigram
from kdstream.lm.model import RnnLm
from kdstream.lm.text import SOS_EOS_ID


class ShallowFusion:
    """An LSTM language model as a `Scorer`.  Its tensors are the hidden and the cell state, (N, B, K, H) each.

    The state has heard everything that the path has said.  So a frame in which nobody says anything costs nothing, and
    any other one costs one step of the LSTM for the paths that do.

    Args:
      lm: in eval mode.
      scale: of its log probabilities.
    """

    def __init__(self, lm: RnnLm, scale: float) -> None:
        self.lm, self.scale = lm, scale

    @torch.no_grad()
    def start(self, num_streams: int, num_paths: int, device: torch.device) -> tuple[Tensor, ...]:
        """As `Scorer.start`."""
        self.lm.to(device)
        _, state = self.lm.step(torch.tensor([[SOS_EOS_ID]], device=device), self.lm.start(1))
        shape = (num_streams, num_paths, -1, -1)
        return tuple(part.transpose(0, 1).unsqueeze(1).expand(shape).contiguous() for part in state)

    @torch.no_grad()
    def advance(self, state: tuple[Tensor, ...], token: Tensor, emits: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `Scorer.advance`."""
        if token.is_cuda:  # how many paths speak is not for the host to know: it would have to wait
            score, said = self._say(tuple(part.flatten(0, 1) for part in state), token.flatten())
            score = score.view_as(token).masked_fill(~emits, 0.0)
            mask = emits[:, :, None, None]
            return score, tuple(torch.where(mask, new.view_as(old), old) for new, old in zip(said, state, strict=True))
        score = torch.zeros(token.shape)
        if not emits.any():
            return score, state
        score[emits], said = self._say(tuple(part[emits] for part in state), token[emits])
        after = tuple(part.clone() for part in state)
        for part, new in zip(after, said, strict=True):
            part[emits] = new
        return score, after

    def owed(self, state: tuple[Tensor, ...]) -> Tensor:
        """As `Scorer.owed`: nothing."""
        return state[0].new_zeros(state[0].shape[:2])

    def _say(self, state: tuple[Tensor, ...], token: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """States (M, K, H) and tokens (M,) to what these add (M,), and the states after them."""
        log_probs = self.lm.log_probs(state[0][:, -1])  # (M, V), of what the last layer has heard
        score = self.scale * log_probs.gather(1, token.unsqueeze(1)).squeeze(1)
        hidden, cell = (part.transpose(0, 1).contiguous() for part in state)
        _, said = self.lm.step(token.unsqueeze(1), (hidden, cell))
        return score, tuple(part.transpose(0, 1) for part in said)


class Lodr:
    """A bigram as a `Scorer`, whose scale is negative.  Its tensor (N, B) is the last token that the path has said."""

    def __init__(self, bigram: Bigram, scale: float) -> None:
        self.scale, self.vocab_size = scale, len(bigram.unigram)
        self._pairs = torch.from_numpy(bigram.pairs)
        self._pair, self._unigram, self._backoff = map(torch.from_numpy, (bigram.pair, bigram.unigram, bigram.backoff))

    def start(self, num_streams: int, num_paths: int, device: torch.device) -> tuple[Tensor, ...]:
        """As `Scorer.start`."""
        if self._pairs.device != device:
            for name, table in vars(self).items():
                if isinstance(table, Tensor):
                    setattr(self, name, table.to(device))
        return (torch.full((num_streams, num_paths), SOS_EOS_ID, device=device),)

    def advance(self, state: tuple[Tensor, ...], token: Tensor, emits: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `Scorer.advance`."""
        (last,) = state
        key = last * self.vocab_size + token
        place = torch.searchsorted(self._pairs, key).clamp(max=len(self._pairs) - 1)
        unseen = self._backoff[last] + self._unigram[token]
        log_prob = torch.where(self._pairs[place] == key, self._pair[place], unseen)
        return self.scale * log_prob.masked_fill(~emits, 0.0), (torch.where(emits, token, last),)

    def owed(self, state: tuple[Tensor, ...]) -> Tensor:
        """As `Scorer.owed`: nothing."""
        return torch.zeros(state[0].shape, device=state[0].device)
