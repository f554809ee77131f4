"""An LSTM over tokens, with the parameter names of icefall's RNN-LM, so that each reads the other's weights.

Shapes: N sentences, L tokens, V vocabulary, H hidden width, K layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.checkpoints.store import PRETRAINED, StateDict, load_strictly, load_weights
from kdstream.config.experiment import TOKENS_FILE
from kdstream.data.tokenizer import Tokenizer, difference_of_tokens, read_tokens
from kdstream.errors import UserError, option
from kdstream.lm.text import SOS_EOS_ID

EMBEDDING = "input_embedding.weight"  # which no other model has

LstmState = tuple[Tensor, Tensor]  # hidden and cell, (K, N, H) each


class RnnLm(nn.Module):
    """Embedding, LSTM layers and output.

    Args:
      dropout: in training, of what each layer hears and of what the output hears.
    """

    def __init__(
        self, vocab_size: int, embedding_dim: int, hidden_dim: int, num_layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(vocab_size, embedding_dim)
        between = dropout if num_layers > 1 else 0.0
        self.rnn = nn.LSTM(embedding_dim, hidden_dim, num_layers, batch_first=True, dropout=between)
        self.output_linear = nn.Linear(hidden_dim, vocab_size)
        self.dropout = nn.Dropout(dropout)

    @property
    def vocab_size(self) -> int:
        return self.output_linear.out_features

    def start(self, count: int) -> LstmState:
        """The state of `count` sentences before <sos/eos>."""
        weight = self.output_linear.weight
        zeros = weight.new_zeros(self.rnn.num_layers, count, self.rnn.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        """Tokens (N, L) to what the output layer hears after each of them (N, L, H), and the state after the last."""
        hidden, state = self.rnn(self.dropout(self.input_embedding(x)), state)
        return self.dropout(hidden), state

    def log_probs(self, hidden: Tensor) -> Tensor:
        """(..., H) to the log probabilities (..., V) of the next token."""
        return self.output_linear(hidden).log_softmax(dim=-1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The negative log probability of each sentence, <sos/eos> at its end counted.

        Args:
          x: (N, L) tokens, of which row n has the first lengths[n].
          lengths: (N,).
        Returns:
          (N,).
        """
        heard = F.pad(x, (1, 0), value=SOS_EOS_ID)  # (N, L + 1)
        place = torch.arange(heard.size(1), device=x.device)
        said = F.pad(x, (0, 1)).masked_fill(place == lengths.unsqueeze(1), SOS_EOS_ID)
        hidden, _ = self.step(heard, self.start(len(x)))
        losses = F.cross_entropy(self.output_linear(hidden).transpose(1, 2), said, reduction="none")
        return losses.masked_fill(place > lengths.unsqueeze(1), 0.0).sum(dim=1)


def is_lm(weights: StateDict) -> bool:
    """Whether these weights are those of an `RnnLm`, by their names."""
    return EMBEDDING in weights


def model_of(weights: StateDict, name: Path | str) -> RnnLm:
    """The model that these weights are of, in eval mode.

    Raises UserError, which names the file, where they are not those of an `RnnLm`.
    """
    try:
        vocab_size, embedding_dim = weights[EMBEDDING].shape
        hidden_dim = weights["rnn.weight_hh_l0"].size(1)
    except (KeyError, ValueError, IndexError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else "its first weights are no matrices"
        raise UserError(f"{name}: not an RNN-LM: {problem}", fix="give what kdstream train-lm wrote") from error
    layers = sum(key.startswith("rnn.weight_ih_l") for key in weights)
    model = RnnLm(vocab_size, embedding_dim, hidden_dim, layers)
    load_strictly(model, weights, name)
    return model.eval()


def load_lm(exp_dir: Path, tokenizer: Tokenizer) -> RnnLm:
    """The language model in EXP_DIR/pretrained.pt, of kdstream train-lm or of icefall.

    Raises:
      UserError: there is none, or it is one of other tokens.
    """
    path, tokens = exp_dir / PRETRAINED, exp_dir / TOKENS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file", flag=option("lm_exp_dir"), fix="train one with kdstream train-lm")
    model = model_of(load_weights(path), path)
    different = difference_of_tokens(read_tokens(tokens), tokenizer.tokens) if tokens.is_file() else ""
    if model.vocab_size != tokenizer.vocab_size:
        different = f"it has {model.vocab_size} tokens, the student {tokenizer.vocab_size}"
    if different:
        raise UserError(
            f"{path}: not a model of these tokens ({different})",
            flag=option("lm_exp_dir"),
            fix="train it with the bpe.model of the model that it is to help",
        )
    return model
