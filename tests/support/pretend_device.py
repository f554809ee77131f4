"""A device that is not there: tensors on the CPU that claim to be elsewhere, and an account of what passes between.

    with pretend_device() as traffic:
        model.to(DEVICE)(batch.to(DEVICE))
    traffic.reads, traffic.copies       # by the line that made them

What a GPU refuses raises here too: an operation on tensors of both devices.  What makes the host wait for a GPU is
counted: a tensor's value or a size that depends on it is asked for, or a tensor comes back.  What is sent there is
counted as well.  The values are computed on the CPU, so that they are those of a training there.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from support.paths import ROOT

DEVICE = torch.device("meta")  # autograd takes no other that lacks its runtime but "lazy", which has no factories
OURS = Path(__file__)
aten = torch.ops.aten
READS = {  # the host waits for a value, or for a size that depends on values
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.unique_consecutive,
    aten.repeat_interleave,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
CTC = {aten._ctc_loss, aten._ctc_loss_backward}
COPIES = {aten._to_copy, aten.copy_}
FROM_DATA = (torch.tensor, torch.as_tensor)  # that read Python's numbers


@dataclass
class Traffic:
    """reads, copies: how often each line made the host wait, and sent a tensor, as "file:line (function)".

    operations: how many there were on the device.
    """

    reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    operations: int = 0

    def clear(self) -> None:
        self.reads.clear()
        self.copies.clear()
        self.operations = 0


class PretendTensor(Tensor):
    """Wraps `values`, a tensor on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendTensor:
        sizes = dict(strides=values.stride(), storage_offset=values.storage_offset())
        tensor = Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, layout=values.layout, device=DEVICE, **sizes
        )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the pretend device outside of pretend_device()")


@contextmanager
def pretend_device() -> Iterator[Traffic]:
    """Within it DEVICE can be computed on."""
    traffic, autocast = Traffic(), torch.autocast

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        """torch knows no autocast for DEVICE, and needs none to switch it off."""
        return nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

    torch.autocast = no_autocast
    try:
        with _Operations(traffic), _Functions(traffic):
            yield traffic
    finally:
        torch.autocast = autocast


def values_of(tensor: Tensor) -> Tensor:
    """What a tensor holds, on the CPU, uncounted."""
    return tensor.values if isinstance(tensor, PretendTensor) else tensor


def caller() -> str:
    """The innermost line that is neither torch's nor of this file."""
    frame, torchs = sys._getframe(1), str(Path(torch.__file__).parent)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((torchs, str(OURS))):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"{place}:{frame.f_lineno} ({frame.f_code.co_name})"


class _Operations(TorchDispatchMode):
    """Runs every operation of torch on the CPU, and gives its result to the device that it belongs to."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inside = any(isinstance(x, PretendTensor) for x in tensors)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        is_result_inside = inside if wanted is None else torch.device(wanted).type == DEVICE.type
        if func.overloadpacket is aten.copy_:
            is_result_inside = isinstance(args[0], PretendTensor)
        self.count(func, args, tensors, inside, is_result_inside)
        plain_args, plain_kwargs = tree_map_only(PretendTensor, values_of, (args, kwargs))
        out = func(*plain_args, **plain_kwargs)
        if not is_result_inside:
            return out
        self.traffic.operations += 1
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, PretendTensor, out))

    def count(self, func: Any, args: Any, tensors: list[Tensor], inside: bool, is_result_inside: bool) -> None:
        """Counts a read or a copy.  Raises RuntimeError where tensors of both devices meet otherwise."""
        operation = func.overloadpacket
        outside = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim() > 0]
        if operation in COPIES:
            if is_result_inside and outside:
                self.traffic.copies[caller()] += 1
            elif inside and not is_result_inside:
                self.traffic.reads[caller()] += 1
            return
        if not inside:
            return
        if operation in READS or (operation in INDEXING and is_by_mask(operation, args)):
            self.traffic.reads[caller()] += 1
        if operation in CTC:  # CUDA's takes the lengths on the host, or brings them there
            lens = [x for x in outside if x.dtype == torch.int64 and x.dim() == 1]
            outside = [x for x in outside if not any(x is length for length in lens)]
            if operation is aten._ctc_loss and not lens:
                self.traffic.reads[caller()] += 1
        if operation in INDEXING:
            outside = [x for x in outside if not any(x is index for index in args[1])]
            if sent := sum(x is not None and not isinstance(x, PretendTensor) for x in args[1]):
                self.traffic.copies[caller()] += sent
        if outside:
            shapes = ", ".join(str(tuple(x.shape)) for x in outside)
            raise RuntimeError(f"{caller()}: {operation} is given tensors of {DEVICE} and, of shape {shapes}, the CPU")


def is_by_mask(operation: Any, args: Any) -> bool:
    """Whether a mask selects elements, which have to be counted first; one number can fill them without that."""
    is_filling = operation is not aten.index and args[2].dim() == 0
    return not is_filling and any(x is not None and x.dtype == torch.bool for x in args[1])


class _Functions(TorchFunctionMode):
    """What never reaches torch's operations: Python's numbers become tensors, and tensors become lists."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in FROM_DATA and device is not None and torch.device(device).type == DEVICE.type:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if not args or not isinstance(args[0], PretendTensor):
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if func is Tensor.backward:  # within func this mode is off, and what Python computes there must count too
            with _Functions(self.traffic):
                return torch.autograd.backward(args[0], kwargs.pop("gradient", None), **kwargs)
        if func is Tensor.tolist:
            self.traffic.reads[caller()] += 1
            return args[0].values.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(x).to(DEVICE) if isinstance(x, list) else x for x in index)
            return func(args[0], index, *args[2:])
        return func(*args, **kwargs)
