"""A model that says many different things, its slow scores, and scripts run in this process, for tests of decoding."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, Tuple

import torch
from torch import Tensor

from helpers import tiny_test_model
from kdstream.models.transducer import Transducer


def talkative_model(causal: bool = True, seed: int = 0, blank: float = 3.0, **overrides) -> Transducer:
    """A random model whose hypotheses have blanks (the more, the higher `blank`), repeated and different tokens."""
    model = tiny_test_model(causal, seed, **overrides)
    with torch.no_grad():
        output = model.joiner.output_linear
        output.weight.normal_(std=0.5)
        output.bias.zero_()
        output.bias[0] = blank
        model.decoder.embedding.weight.normal_(std=2.0)
    return model


@torch.no_grad()
def log_probs(model: Transducer, frame: Tensor, tokens: Tuple[int, ...]) -> Tensor:
    """(V,) after `tokens`, computed from scratch."""
    size = model.config.context_size
    context = ([-1] * (size - 1) + [0] + list(tokens))[-size:]
    return model.joiner(frame, model.decoder(torch.tensor([context]), need_pad=False)[0, 0]).log_softmax(dim=-1)


def run_script(monkeypatch, path: str, *args: Any) -> str:
    """Runs a script of this repository as its command line would; returns its one line of error, or ""."""
    script = Path(__file__).resolve().parents[1] / path
    monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return str(end.code)
    return ""
