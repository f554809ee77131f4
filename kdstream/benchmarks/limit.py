"""How near a training step comes to its own matrix products and convolutions.

The products of a step are recorded, then run again alone, each on fresh random tensors of its own shape and strides.
What they take is a limit: the same mathematics in the same products cannot be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

MATRIX = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "addbmm"}
FUSED = {"scaled_dot_product", "flash_attention"}
CONVOLUTION = {"convolution", "convolution_backward", "mkldnn_convolution"}


class Product(NamedTuple):
    """One call: of an operator, with a `Shape` instead of each tensor."""

    operator: Any
    args: Any
    kwargs: Any


@dataclass(frozen=True)
class Shape:
    """What a product depends on of a tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> Tensor:
        """A tensor of this shape with random values.  Elements that shared memory share it again."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        memory = torch.empty(max(0, extent), dtype=self.dtype, device=self.device)
        memory = memory.normal_() if memory.is_floating_point() else memory.zero_()
        return memory.as_strided(self.size, self.stride)


def kind_of(operator: Any) -> str:
    """ "matrix products", "convolutions", or "" for any other operator of torch."""
    name = operator.overloadpacket.__name__.lstrip("_")
    if name in CONVOLUTION:
        return "convolutions"
    return "matrix products" if name in MATRIX or any(part in name for part in FUSED) else ""


class Recorder(TorchDispatchMode):
    """Records the products that run under it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kind_of(func):
            self.products.append(Product(func, *tree_map(shape_of, (args, kwargs))))
        return func(*args, **kwargs)


def shape_of(x: Any) -> Any:
    return Shape(tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x


def replay(products: list[Product], clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of all products of each kind."""
    times = {"matrix products": 0.0, "convolutions": 0.0}
    for product in products:
        args, kwargs = tree_map(filled, (product.args, product.kwargs))
        started = clock()
        product.operator(*args, **kwargs)
        times[kind_of(product.operator)] += 1000 * (clock() - started)
    return times


def filled(x: Any) -> Any:
    return x.fill() if isinstance(x, Shape) else x


def measure_limit(run: Callable[[int], None], repetitions: int, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Rows of a table: the step, the products in it, and their share.

    Args:
      run: runs the step of a repetition.  Step and replay are measured in turn; one of each goes before.
      clock: in seconds; on a GPU one that waits for the GPU before it is read.
    """
    recorder = Recorder()
    with recorder:
        run(0)
    times: dict[str, list[float]] = {"step": [], "matrix products": [], "convolutions": []}
    for repetition in range(repetitions + 1):
        started = clock()
        run(repetition)
        step = 1000 * (clock() - started)
        replayed = replay(recorder.products, clock)
        if repetition:
            times["step"].append(step)
            for kind, ms in replayed.items():
                times[kind].append(ms)
    medians = {name: median(values) for name, values in times.items()}
    medians["both products"] = medians["matrix products"] + medians["convolutions"]
    return [{"part": name, "ms": round(ms), "of the step": ms / medians["step"]} for name, ms in medians.items()]
