"""For whom an ONNX graph is made: for any runtime, or for the one in which kdstream runs a step itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_for_ourselves = ContextVar("_for_ourselves", default=False)


def exporting() -> bool:
    """Whether a file for other programs is being written: its operators stay those that they have been tested with."""
    return torch.onnx.is_in_onnx_export() and not _for_ourselves.get()


@contextmanager
def exporting_for_ourselves() -> Iterator[None]:
    """Exports within it take the forms that are fast on a CPU, in onnxruntime as in torch."""
    token = _for_ourselves.set(True)
    try:
        yield
    finally:
        _for_ourselves.reset(token)
