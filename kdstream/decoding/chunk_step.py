"""One step of the streaming encoder as a function of tensors alone, in Python or traced.

A chunk of a small model is hundreds of operations of a few microseconds each.  On a CPU, Python takes as long between
them as they take themselves.  A traced step (TorchScript) runs the same operations without Python, and computes once
whatever depends on weights and sizes alone (position encodings, the scales of chunk borders).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdstream.models.streaming import ChunkConfig, EncoderState
from kdstream.models.transducer import Transducer

Step = Callable[[Tensor, EncoderState], tuple[Tensor, EncoderState]]


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
    device = next(model.parameters()).device
    state = model.init_state(2, chunk, device)  # 2 streams: a dimension of size 1 would become a constant
    features = torch.zeros(2, chunk.input_frames, model.config.feature_dim, device=device)
    step = ChunkStep(by_columns(model), chunk).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of sizes that become constants; only the number of streams changes later
        traced = torch.jit.freeze(torch.jit.trace(step, (features, *state.tensors()), check_trace=False))
    numbers_in_float32(traced.graph)
    return traced


def chunk_step(model: Transducer, chunk: ChunkConfig, traced: bool) -> Step:
    """The step of a transducer in eval mode, as a function of a chunk's features and the state of the encoder.

    Args:
      traced: tracing takes some seconds now, and each step less time; later changes of the weights have no effect.
    Raises:
      UserError: a chunk that does not fit the encoder.
    """
    step: Callable[..., tuple[Tensor, ...]] = traced_step(model, chunk) if traced else ChunkStep(model, chunk).eval()

    def encode(features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        # TorchScript's optimiser would spend seconds on kernels for every new number of streams, and round differently.
        with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage]  # documented, unlisted
            out, *tensors = step(features, *state.tensors())
        return out, EncoderState.from_tensors(tensors)

    return encode
