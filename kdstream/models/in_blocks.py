"""Chains of elementwise operations on a CPU, block by block.

Each operation of a chain reads and writes all of its tensor.  A large tensor does not fit into the cache of a core, so
a chain waits for the memory.  Over blocks that do fit, only the first operation reads from memory and only the last
one writes to it: half of the time for a chain of seven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 2**16  # elements: a few such blocks fit into a megabyte; smaller ones cost more calls than they save


def in_blocks(chain: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`chain(*tensors)`, block by block on a CPU; half precision is computed in float32 there and rounded once.

    Args:
      chain: elementwise; chain(*inputs, out=result) writes its result and returns it.
      tensors: of one shape and one dtype.
    Returns:
      A tensor of that shape and dtype.
    """
    first = tensors[0]
    if first.device.type != "cpu":
        return chain(*tensors)
    half = first.dtype in (torch.bfloat16, torch.float16)
    tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if tracing or first.numel() <= BLOCK or any(t.stride() != first.stride() for t in tensors):
        return chain(*map(Tensor.float, tensors)).to(first.dtype) if half else chain(*tensors)
    result = torch.empty_like(first)
    if result.stride() != first.stride():  # there are gaps between its rows
        return in_blocks(chain, *(t.contiguous() for t in tensors))
    for *inputs, out in zip(*(in_memory_order(t).split(BLOCK) for t in (*tensors, result)), strict=True):
        if half:
            out.copy_(chain(*map(Tensor.float, inputs)))
        else:
            chain(*inputs, out=out)
    return result


def blocks_of_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks (rows, D) of tensors (..., D) of one shape; elsewhere than on a CPU one block, all of it."""
    rows = rows_in_block(tensors[0])
    return zip(*(x.flatten(0, -2).split(rows) for x in tensors), strict=True)


def rows_in_block(x: Tensor) -> int:
    """How many rows of x (..., D) make a block of `blocks_of_rows`."""
    rows = x.numel() // x.size(-1)
    return min(rows, max(1, BLOCK // x.size(-1))) if x.device.type == "cpu" else rows


def in_memory_order(x: Tensor) -> Tensor:
    """All elements of a tensor without gaps, as a vector on the same memory."""
    return x.as_strided((x.numel(),), (1,))


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
