"""What --print-diagnostics and --inf-check say about a model."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from kdstream.training.diagnostics import Diagnostics, InfCheck
from kdstream.training.gradients import _Reaching

reaching = _Reaching.apply  # how a loss reaches all parameters under DDP


class Breaks(nn.Module):
    """Divides by its input, and by a little more in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


def run(model: nn.Module, x: Tensor) -> None:
    model(x).sum().backward()


def test_statistics_are_those_of_the_activations_and_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    diagnostics = Diagnostics(model)
    batches = [torch.randn(5, 3), torch.randn(2, 3)]
    for x in batches:
        run(model, x)
    outputs = (torch.cat(batches) @ model[0].weight.T + model[0].bias).detach()
    seen = diagnostics.activations["0"]
    assert seen.count == outputs.numel()
    torch.testing.assert_close(torch.tensor(seen.squares / seen.count), outputs.square().mean())
    assert abs(seen.largest - float(outputs.abs().max())) < 1e-6
    assert seen.positive == float((outputs > 0).sum())
    assert diagnostics.gradients["1"].row()[0] == "1"  # of the sum
    rows = [line.split()[0] for line in diagnostics.table().splitlines() if line]
    assert rows == ["module", "0", "1", "parameter", "0.weight", "0.bias"]


def test_what_a_step_of_several_processes_left_out_has_no_gradient():
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    diagnostics = Diagnostics(model)
    loss = model[0](torch.ones(1, 3)).sum()
    reaching(loss, *model.parameters()).backward()
    assert [diagnostics.parameter_gradients[f"{n}.bias"].count for n in (0, 1)] == [2, 0]
    rows = [line.split() for line in diagnostics.table().splitlines()]
    assert [row[-1] for row in rows if row and row[0].endswith("bias")] == ["1", "-"]


def test_inf_check_names_the_first_module_of_a_batch(caplog):
    model = nn.Sequential(nn.Identity(), Breaks(), nn.Linear(3, 3))
    check = InfCheck(model)
    with caplog.at_level(logging.WARNING):
        run(model, torch.ones(2, 3, requires_grad=True))
        assert check.found == []
        run(model, torch.tensor([[1.0, 0.0, 2.0]], requires_grad=True))
    assert check.found == [("output", "1"), ("gradient", "0")]  # 1 / 0, and its derivative by the input
    assert "the output of 1 is not finite" in caplog.text
    run(model, torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True))
    assert len(check.found) == 2  # once a batch
    check.new_batch()
    run(model, torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True))
    assert len(check.found) == 4
