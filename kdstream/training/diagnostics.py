"""Looks inside a model in training: --print-diagnostics and --inf-check."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

DIAGNOSTIC_BATCHES = 5


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in a module's output, which may be a tensor, a tuple, a list or a dict."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class Moments:
    """Running mean, root mean square, largest magnitude and share of positive values."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = self.largest = self.positive = 0.0

    def add(self, x: Tensor | None) -> None:
        """Takes in a tensor's values; None is the gradient, under DDP, of what a step left out."""
        if x is None:
            return
        x = x.detach().float()
        self.count += x.numel()
        self.total += float(x.sum())
        self.squares += float(x.square().sum())
        self.largest = max(self.largest, float(x.abs().max()))
        self.positive += float((x > 0).sum())

    def row(self) -> list[str]:
        n = max(1, self.count)
        numbers = (self.total / n, (self.squares / n) ** 0.5, self.largest)
        return [*(f"{number:.3g}" for number in numbers), f"{self.positive / n:.0%}"]


class Diagnostics:
    """Statistics of a model over the batches that pass through it, by hooks.

    Activations of the modules that have no children, and their gradients; parameters and theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.activations: dict[str, Moments] = {}
        self.gradients: dict[str, Moments] = {}
        self.parameter_gradients: dict[str, Moments] = {}
        for name, module in model.named_modules():
            if name and not any(True for _ in module.children()):
                module.register_forward_hook(self._forward_hook(name))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                moments = self.parameter_gradients.setdefault(name, Moments())
                parameter.register_hook(moments.add)

    def _forward_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for x in tensors_in(output):
                self.activations.setdefault(name, Moments()).add(x)
                if x.requires_grad:
                    x.register_hook(self.gradients.setdefault(name, Moments()).add)

        return hook

    def table(self) -> str:
        """Two plain-text tables, one line a module and one line a parameter."""
        header = ("mean", "rms", "max|x|", "positive")
        modules = [["module output", *header, "gradient rms"]]
        for name, moments in self.activations.items():
            gradient = self.gradients.get(name)
            modules.append([name, *moments.row(), gradient.row()[1] if gradient else "-"])
        parameters = [["parameter", *header, "gradient rms"]]
        for name, parameter in self.model.named_parameters():
            moments = Moments()
            moments.add(parameter)
            gradient = self.parameter_gradients.get(name)
            parameters.append([name, *moments.row(), gradient.row()[1] if gradient and gradient.count else "-"])
        return _aligned(modules) + "\n\n" + _aligned(parameters)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)


class InfCheck:
    """Names the first module of each batch whose output, and the first whose gradient, is not finite.

    The first is where the trouble starts; all later ones only inherit it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[tuple[str, str]] = []  # ("output" or "gradient", module name), all batches
        self._seen = {"output": False, "gradient": False}
        for name, module in model.named_modules():
            module.register_forward_hook(self._forward_hook(name or "the model"))

    def new_batch(self) -> None:
        self._seen = {"output": False, "gradient": False}

    def _forward_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for x in tensors_in(output):
                self._check("output", name, x.detach())
                if x.requires_grad:
                    x.register_hook(lambda grad: self._check("gradient", name, grad))

        return hook

    def _check(self, what: str, name: str, x: Tensor) -> None:
        if not self._seen[what] and not bool(torch.isfinite(x).all()):
            self._seen[what] = True
            self.found.append((what, name))
            logging.warning(f"--inf-check: the {what} of {name} is not finite (and none before it)")
