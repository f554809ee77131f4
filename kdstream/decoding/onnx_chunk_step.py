"""The step of one stream in onnxruntime.

torch takes about a microsecond to begin each of a step's 850 operations, and a step of one stream is not much more than
that.  onnxruntime begins them faster.  With several streams arithmetic weighs more, and torch's is faster.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdstream.errors import option, packages_of
from kdstream.models.streaming import EncoderState

STEP_OPSET = 17


@dataclass
class BoundState(EncoderState):
    """A state that onnxruntime reads where it lies, and the one that it writes then.

    binding: onnxruntime's; it knows all these tensors by their addresses.
    """

    binding: Any
    after: BoundState | None = None


class OnnxStep:
    """A `ChunkStep` of one stream; built once, for all streams that come.

    Args:
      step: in eval mode, on the CPU.
      features, state: what it takes, for one stream; their sizes become constants.
    Raises:
      UserError: onnxruntime or onnx is not installed.
    """

    def __init__(self, step: nn.Module, features: Tensor, state: EncoderState) -> None:
        with packages_of("export", option("engine", "onnxruntime")):
            import onnx  # noqa: F401  # torch needs it for the export
            import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.onnx"
            export(step, features, state.tensors(), path)
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            out, *_ = step(features, *state.tensors())
        self._features, self._out = torch.empty_like(features), torch.empty_like(out)

    def __call__(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """features (1, chunk.input_frames, F) and the state before them to (1, T, D) and the state after them.

        A state that it returns holds until it has been called with it and then with the next one.
        """
        bound = state if isinstance(state, BoundState) else self._bind(state)
        self._features.copy_(features)
        self._session.run_with_iobinding(bound.binding)
        assert bound.after is not None
        return self._out.clone(), bound.after

    def _bind(self, state: EncoderState) -> BoundState:
        """A copy of the state, and another one: each is what comes after the other."""
        before, after = ([x.clone(memory_format=torch.contiguous_format) for x in state.tensors()] for _ in range(2))
        there = BoundState(*_fields(before), self._binding(before, after))
        back = BoundState(*_fields(after), self._binding(after, before), there)
        there.after = back
        return there

    def _binding(self, before: list[Tensor], after: list[Tensor]) -> Any:
        binding = self._session.io_binding()
        inputs, outputs = [self._features, *before], [self._out, *after]
        for item, x in zip(self._session.get_inputs(), inputs, strict=True):
            binding.bind_input(item.name, "cpu", 0, _type(x), tuple(x.shape), x.data_ptr())
        for item, x in zip(self._session.get_outputs(), outputs, strict=True):
            binding.bind_output(item.name, "cpu", 0, _type(x), tuple(x.shape), x.data_ptr())
        return binding


def export(step: nn.Module, features: Tensor, state: list[Tensor], path: Path) -> None:
    """Writes a step of one stream as an ONNX file that nobody else reads."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of sizes that become constants
        # the newer exporter (dynamo) takes half a minute
        torch.onnx.export(step, (features, *state), str(path), opset_version=STEP_OPSET, dynamo=False)


def _fields(tensors: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    *layers, embed, processed = tensors
    return layers, embed, processed


def _type(x: Tensor) -> Any:
    return np.int64 if x.dtype == torch.int64 else np.float32
