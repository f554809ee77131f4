"""A language model as the files that sherpa-onnx takes: --lm, and --lodr-fst where there is a bigram."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdstream.data.tokenizer import Tokenizer
from kdstream.export.onnx import TRACED_STREAMS, write_onnx
from kdstream.lm.bigram import BIGRAM_FILE, FST_FILE, Bigram, load_bigram, write_fst
from kdstream.lm.model import RnnLm, load_lm
from kdstream.lm.text import SOS_EOS_ID

LM_FILE = "lm.onnx"


class LmStep(nn.Module):
    """One token, with the states of icefall's `score_token_onnx`.  Shapes: as in kdstream/lm/model.py."""

    def __init__(self, lm: RnnLm) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N, 1) and states (K, N, H) to log probabilities of the next token (N, V) and the new states."""
        hidden, (next_h0, next_c0) = self.lm.step(x, (h0, c0))
        return self.lm.log_probs(hidden[:, 0]), next_h0, next_c0


def read_lm(exp_dir: Path, tokenizer: Tokenizer, lodr: bool) -> tuple[RnnLm, Bigram | None]:
    """The model in EXP_DIR, and its bigram where there is one.

    Args:
      lodr: the bigram is needed.
    Raises:
      UserError: it is not there, or not of these tokens.
    """
    needed = lodr or (exp_dir / BIGRAM_FILE).is_file()
    return load_lm(exp_dir, tokenizer), load_bigram(exp_dir, tokenizer.vocab_size) if needed else None


def export_lm(lm: RnnLm, bigram: Bigram | None, folder: Path) -> list[Path]:
    """Writes lm.onnx, and 2gram.fst where there is a bigram, into `folder`.

    Args:
      lm: in eval mode, on the CPU.
    """
    h0, c0 = lm.start(TRACED_STREAMS)
    write_onnx(
        folder / LM_FILE,
        LmStep(lm),
        {"x": torch.full((TRACED_STREAMS, 1), SOS_EOS_ID), "h0": h0, "c0": c0},
        {"x": 0, "h0": 1, "c0": 1, "log_softmax": 0, "next_h0": 1, "next_c0": 1},
        {
            "model_type": "rnnlm",
            "version": 1,
            "model_author": "kdstream",
            "sos_id": SOS_EOS_ID,
            "eos_id": SOS_EOS_ID,
            "vocab_size": lm.vocab_size,
            "num_layers": lm.rnn.num_layers,
            "hidden_size": lm.rnn.hidden_size,
            "embedding_dim": lm.rnn.input_size,
        },
    )
    if bigram is None:
        return [folder / LM_FILE]
    write_fst(bigram, folder / FST_FILE)
    return [folder / LM_FILE, folder / FST_FILE]
