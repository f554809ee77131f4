"""Which memory layout suits the depthwise convolutions of a device: it decides CHANNELS_LAST in models/on_cpu.py.

Both layouts, forward and backward: that of a medium Zipformer over time, and the front end's 7x7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kdstream.devices import synchronize
from kdstream.models import on_cpu


@contextmanager
def layout(device: torch.device, channels_last: bool) -> Iterator[None]:
    """Depthwise convolutions on a type of device take this layout, whatever is decided for it."""
    before = set(on_cpu.CHANNELS_LAST)
    (on_cpu.CHANNELS_LAST.add if channels_last else on_cpu.CHANNELS_LAST.discard)(device.type)
    try:
        yield
    finally:
        on_cpu.CHANNELS_LAST.clear()
        on_cpu.CHANNELS_LAST.update(before)


def convolutions(device: torch.device, utterances: int, frames: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Each runs one convolution forward and backward: its output, and the gradients of input and weight."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device).requires_grad_()

    conv, x = on_cpu.DepthwiseConv1d(384, 31).to(device), random(utterances, frames, 384)
    weight, image = random(128, 1, 7, 7), random(utterances, 128, frames, 19)
    image = image.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    def along_time() -> list[Tensor]:
        out = on_cpu.depthwise_conv(x.unsqueeze(1), conv, 15, 15)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (x, conv.weight))]

    def front_end() -> list[Tensor]:
        out = on_cpu.depthwise_conv2d(image, weight, 3)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), (image, weight))]

    return {"31 frames, 384 channels": along_time, "7x7, 128 channels": front_end}


def measure_layouts(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    utterances: int = 10,
    frames: int = 300,
    repetitions: int = 5,
) -> list[dict[str, Any]]:
    """A row for each convolution and dtype: the milliseconds of both layouts, and how far their results differ."""
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for name, run in convolutions(device, utterances, frames).items():
            times: dict[bool, list[float]] = {True: [], False: []}
            results: dict[bool, list[Tensor]] = {}
            for repetition in range(repetitions + 1):
                for last in times:
                    with layout(device, last), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        synchronize(device)
                        started = time.perf_counter()
                        results[last] = run()
                        synchronize(device)
                    if repetition:
                        times[last].append(1000 * (time.perf_counter() - started))
            differences = [float((a - b).norm() / b.norm()) for a, b in zip(*results.values(), strict=True)]
            rows.append(
                {
                    "convolution": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "channels last (ms)": median(times[True]),
                    "plain (ms)": median(times[False]),
                    "results differ by": f"{max(differences):.0e}",
                }
            )
    return rows
