"""Where the time of a training step goes: --profile N."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from kdstream.errors import option

WARMUP_STEPS = 3  # in which caches are filled and libraries choose their kernels
TRACE = "profile-trace.json"

Batches = TypeVar("Batches")


class StepProfiler:
    """Watches `count` training steps after a few others; then it writes a trace and logs a table, once.

    Where an epoch or the training ends before, it writes what it has watched.

    A module's time is that of its forward pass, and includes that of the modules in it.  Modules of one class and depth
    have one row together.

    Args:
      count: steps to watch; 0: none.
      module: what is trained.
      exp_dir: gets the trace, which chrome://tracing and ui.perfetto.dev show.
    """

    def __init__(self, count: int, module: nn.Module, exp_dir: Path) -> None:
        self.count, self.module, self.path = count, module, exp_dir / TRACE

    def steps(self, batches: Iterable[Batches]) -> Iterator[Batches]:
        """The same batches; the caller's work on each is a step."""
        if not self.count:
            yield from batches
            return
        profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()])
        handles: list[Any] = []
        watched, stream = 0, iter(batches)
        try:
            yield from islice(stream, WARMUP_STEPS)
            for batch in islice(stream, self.count):
                if not watched:
                    handles = hooks(self.module)
                    profiler.start()
                watched += 1
                yield batch
        finally:  # the epoch may end before, or the caller take no more
            self.finish(profiler, handles, watched)
        yield from stream

    def finish(self, profiler: profile, handles: list[Any], watched: int) -> None:
        if not watched:
            logging.warning(
                f"{option('profile', self.count)}: watched no step; it leaves out the first {WARMUP_STEPS} of an "
                "epoch or start, and there were no others"
            )
            return
        profiler.stop()
        for handle in handles:
            handle.remove()
        profiler.export_chrome_trace(str(self.path))
        logging.info(f"{self.path}: a trace of {watched} steps; {table(profiler, watched)}")
        self.count = 0


def hooks(module: nn.Module) -> list[Any]:
    """Forward hooks that name the modules with parameters in the trace; each has `remove()`."""
    handles: list[Any] = []
    for name, child in module.named_modules():
        if not any(True for _ in child.children()) or not any(True for _ in child.parameters()):
            continue
        opened: list[Any] = []
        label = f"module: {class_path(name, child)}"

        def before(module: nn.Module, inputs: Any, opened: list[Any] = opened, label: str = label) -> None:
            opened.append(record_function(label))
            opened[-1].__enter__()

        def after(module: nn.Module, inputs: Any, output: Any, opened: list[Any] = opened) -> None:
            opened.pop().__exit__(None, None, None)

        handles += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    return handles


def class_path(name: str, module: nn.Module) -> str:
    """encoders.0.layers.1.conv_module1 of a Convolution as encoders.layers.conv_module1 (Convolution)."""
    path = ".".join(part for part in name.split(".") if not part.isdigit())
    return f"{path or 'all'} ({type(module).__name__})"


def table(profiler: profile, steps: int) -> str:
    """Milliseconds a step of modules, losses and the optimiser, and those of the operators that take most."""
    averages = list(profiler.key_averages())
    named = [event for event in averages if event.key.startswith(("module: ", "loss: ", "Optimizer."))]
    operators = sorted((e for e in averages if e.key.startswith("aten::")), key=own_time, reverse=True)[:15]
    lines = ["ms a step (CPU, GPU), calls:"]
    for event in [*sorted(named, key=lambda event: event.cpu_time_total, reverse=True), *operators]:
        own = event in operators
        cpu = event.self_cpu_time_total if own else event.cpu_time_total
        lines.append(
            f"{cpu / steps / 1000:10.2f} {gpu_time(event, own) / steps / 1000:10.2f} {event.count / steps:8.1f}  "
            + event.key
        )
    return "\n".join(lines)


def own_time(event: Any) -> float:
    return event.self_cpu_time_total + gpu_time(event, own=True)


def gpu_time(event: Any, own: bool) -> float:
    """In microseconds; torch before 2.6 says cuda where it now says device."""
    name = "device" if hasattr(event, "device_time_total") else "cuda"
    return getattr(event, f"self_{name}_time_total" if own else f"{name}_time_total")
