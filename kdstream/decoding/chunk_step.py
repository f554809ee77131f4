"""One step of the streaming encoder as a function of tensors alone, in Python or traced.

A chunk of a small model is hundreds of operations of a few microseconds each, so that on a CPU Python between
them takes as long as they do.  Traced (TorchScript), the same operations run without it, and whatever depends on
weights and sizes alone (position encodings, the scales of chunk borders) is computed once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdstream.models.streaming import ChunkConfig, EncoderState

Step = Callable[[Tensor, EncoderState], tuple[Tensor, EncoderState]]


class ChunkStep(nn.Module):
    """`model.encode` on the next chunk of every stream."""

    def __init__(self, model: nn.Module, chunk: ChunkConfig) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(self, features: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(N, chunk.input_frames, F) and the tensors of N streams' EncoderState to the encoder's output (N, T, D) and
        the new state's tensors; any N, also once traced."""
        lens = torch.full((features.size(0),), self.chunk.input_frames, device=features.device)
        out, _, new_state = self.model.encode(features, lens, self.chunk, EncoderState.from_tensors(state))
        return (out, *new_state.tensors())


def by_columns(model: nn.Module) -> nn.Module:
    """A copy whose linear layers' weights lie in memory as products with few frames read them best."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model


def numbers_in_float32(graph: torch.Graph) -> None:
    """Makes the numbers in a traced computation float32; from Python they come in float64, to be cast at every step."""
    for node in graph.findAllNodes("prim::Constant"):
        if node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").dtype == torch.float64:
            node.t_("value", node.t("value").float())


def traced_step(model: nn.Module, chunk: ChunkConfig) -> torch.jit.ScriptModule:
    """`ChunkStep` of a model in eval mode, traced, with its weights as they are now."""
    device = next(model.parameters()).device
    state = model.init_state(2, chunk, device)  # of a single stream, its dimension would pass for a constant
    features = torch.zeros(2, chunk.input_frames, model.config.feature_dim, device=device)
    step = ChunkStep(by_columns(model), chunk).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # sizes that become constants: only the number of streams ever changes
        traced = torch.jit.freeze(torch.jit.trace(step, (features, *state.tensors()), check_trace=False))
    numbers_in_float32(traced.graph)
    return traced


def chunk_step(model: nn.Module, chunk: ChunkConfig, traced: bool) -> Step:
    """The step of a transducer in eval mode.

    Args:
      traced: takes some seconds now and less time per step; the weights are frozen as they are.
    Raises:
      UserError: a chunk that does not fit the encoder.
    """
    step: Callable[..., tuple[Tensor, ...]] = traced_step(model, chunk) if traced else ChunkStep(model, chunk).eval()

    def encode(features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        # its optimiser would compile kernels for every new number of streams, for seconds, and round differently
        with torch.jit.optimized_execution(False):
            out, *tensors = step(features, *state.tensors())
        return out, EncoderState.from_tensors(tensors)

    return encode
