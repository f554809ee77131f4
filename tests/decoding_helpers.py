"""A model that says many different things, and scripts run in this process: what the tests of decoding share."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from helpers import tiny_test_model
from kdstream.models.transducer import Transducer


def talkative_model(causal: bool = True, seed: int = 0, **overrides) -> Transducer:
    """A random model whose hypotheses have blanks, repeated and different tokens."""
    model = tiny_test_model(causal, seed, **overrides)
    with torch.no_grad():
        output = model.joiner.output_linear
        output.weight.normal_(std=0.5)
        output.bias.zero_()
        output.bias[0] = 3.0
        model.decoder.embedding.weight.normal_(std=2.0)
    return model


def run_script(monkeypatch, path: str, *args: Any) -> str:
    """Runs a script of this repository as its command line would; returns its one line of error, or ""."""
    script = Path(__file__).resolve().parents[1] / path
    monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return str(end.code)
    return ""
