"""One step of the streaming encoder as a function of tensors alone: in Python, traced, or in onnxruntime.

A chunk of a small model is hundreds of operations of a few microseconds each.  On a CPU, Python takes as long between
them as they take themselves.  A traced step (TorchScript) runs the same operations without Python, and computes once
whatever depends on weights and sizes alone (position encodings, the scales of chunk borders).  onnxruntime runs them
too (onnx_chunk_step.py).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from kdstream.decoding.onnx_chunk_step import OnnxStep
from kdstream.errors import UserError, option
from kdstream.models.streaming import ChunkConfig, EncoderState
from kdstream.models.transducer import Transducer

Step = Callable[[Tensor, EncoderState], tuple[Tensor, EncoderState]]

PATIENCE = 200  # chunks in Python; an engine pays after about 400, and what has lasted so long mostly lasts longer


class ChunkStep(nn.Module):
    """`model.encode` on the next chunk of every stream."""

    def __init__(self, model: Transducer, chunk: ChunkConfig) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """One chunk of N streams.  N may be any number, in a traced step too.

        Args:
          features: (N, chunk.input_frames, F).
          state: the tensors of the streams' EncoderState.
        Returns:
          The encoder's output (N, T, D) and the tensors of the new state.
        """
        lens = torch.full((features.size(0),), self.chunk.input_frames, device=features.device)
        out, _, new_state = self.model.encode(features, lens, self.chunk, EncoderState.from_tensors(state))
        assert new_state is not None  # as one was given
        return (out, *new_state.tensors())


def by_columns(model: Transducer) -> Transducer:
    """A copy whose linear layers' weights lie in memory as products with few frames read them best."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model


def numbers_in_float32(graph: torch.Graph) -> None:
    """Makes the numbers in a traced computation float32.  Python's are float64, and would be cast at every step."""
    for node in graph.findAllNodes("prim::Constant"):  # pyright: ignore[reportAttributeAccessIssue]  # no stub
        if node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").dtype == torch.float64:
            node.t_("value", node.t("value").float())


def traced_step(model: Transducer, chunk: ChunkConfig) -> torch.jit.ScriptModule:
    """`ChunkStep` of a model in eval mode, traced, with its weights as they are now."""
    step = ChunkStep(by_columns(model), chunk).eval()
    features, state = silence(model, chunk, streams=2)  # a dimension of size 1 would become a constant
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of sizes that become constants; only the number of streams changes later
        traced = torch.jit.freeze(torch.jit.trace(step, (features, *state.tensors()), check_trace=False))
    numbers_in_float32(traced.graph)
    return traced


def silence(model: Transducer, chunk: ChunkConfig, streams: int) -> tuple[Tensor, EncoderState]:
    """What a step takes: features (N, chunk.input_frames, F) of zeros, and the state of new streams."""
    device = next(model.parameters()).device
    features = torch.zeros(streams, chunk.input_frames, model.config.feature_dim, device=device)
    return features, model.init_state(streams, chunk, device)


def in_torch(step: Callable[..., tuple[Tensor, ...]]) -> Step:
    """A `ChunkStep`, or a traced one, as a function of states."""

    def encode(features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        # TorchScript's optimiser would spend seconds on kernels for every new number of streams, and round differently.
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]  # documented, unlisted
            out, *tensors = step(features, *state.tensors())
        return out, EncoderState.from_tensors(tensors)

    return encode


def chunk_step(model: Transducer, chunk: ChunkConfig, engine: str = "") -> Step:
    """The step of a transducer in eval mode, as a function of a chunk's features and the state of the encoder.

    Args:
      engine: "" is Python.  "torch" (traced) and "onnxruntime" (on a CPU, for one stream) take a second or two to
        build, and less time for each step; later changes of the weights have no effect on them.
    Raises:
      UserError: a chunk that does not fit the encoder, or an engine that is not installed.
    """
    fresh = silence(model, chunk, streams=1)  # refuses a chunk that does not fit, before anything is built
    if engine == "torch":
        return in_torch(traced_step(model, chunk))
    step = ChunkStep(model, chunk).eval()
    return OnnxStep(step, *fresh) if engine == "onnxruntime" else in_torch(step)


def choose_engine(name: str, model: Transducer, streams: int) -> str:
    """The engine of --engine: for `auto` the one that is faster.

    Args:
      streams: decoded at once, at most.
    Raises:
      UserError: onnxruntime for several streams, or elsewhere than on a CPU.
    """
    fits = streams == 1 and next(model.parameters()).device.type == "cpu"
    if name == "onnxruntime" and not fits:
        fix = "give --num-decode-streams 1 --device cpu, or --engine torch"
        raise UserError("decodes one stream at a time, on a CPU", flag=option("engine", name), fix=fix)
    installed = all(find_spec(package) for package in ("onnx", "onnxruntime"))
    return ("onnxruntime" if fits and installed else "torch") if name == "auto" else name


class PatientStep:
    """A step in Python at first, and by an engine from the chunk on at which that has paid: neither a short file nor an
    hour takes twice what it must.

    Args:
      build: makes the step of the engine.
      patience: chunks that Python takes.
    """

    def __init__(self, python: Step, build: Callable[[], Step], patience: int = PATIENCE) -> None:
        self._step, self._left = python, patience
        self._build: Callable[[], Step] | None = build

    def __call__(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        if self._left <= 0:
            self.hurry()
        self._left -= features.size(0)
        return self._step(features, state)

    def hurry(self) -> None:
        """Builds the engine now, if it is not there yet."""
        if self._build is not None:
            self._step, self._build = self._build(), None
