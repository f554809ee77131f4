"""Training, validation, decoding and streams on a device that is not there: what mixes devices, who waits."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.pretend_device import DEVICE, pretend_device, values_of


def test_values_are_those_of_the_cpu_forward_and_backward():
    torch.manual_seed(0)
    x, layer = torch.randn(3, 4), nn.Linear(4, 2)
    layer(x).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with pretend_device() as traffic:
        layer.to(DEVICE)
        traffic.clear()
        there = x.to(DEVICE)
        assert there.device == DEVICE and layer.weight.device == DEVICE
        layer(there).square().sum().backward()
    assert torch.equal(values_of(layer.weight.grad), expected)
    assert sum(traffic.copies.values()) == 1 and not traffic.reads


READS = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave": lambda x: x.repeat_interleave((x > 0).long()),
    "cpu": lambda x: x.cpu(),
    "copy_": lambda x: torch.empty(3).copy_(x),
    "mask of tensors": lambda x: x.index_put_((x > 0,), x[:1]),
}
COPIES = {
    "to": lambda x: torch.ones(3).to(DEVICE),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "index by a list": lambda x: x[[0, 2]],
    "index by a tensor": lambda x: x[torch.tensor([0, 2])],
}
NEITHER = {
    "number": lambda x: x * 2.0 + torch.tensor(1.0),
    "fill by mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "factory": lambda x: torch.arange(3, device=DEVICE) + torch.zeros_like(x) + torch.rand(3, device=DEVICE),
    "index": lambda x: x[1:] + x.index_select(0, torch.arange(2, device=DEVICE)),
}


@pytest.mark.parametrize(
    "run, reads, copies",
    [(run, 1, 0) for run in READS.values()]
    + [(run, 0, 1) for run in COPIES.values()]
    + [(run, 0, 0) for run in NEITHER.values()],
    ids=[*READS, *COPIES, *NEITHER],
)
def test_reads_and_copies_are_counted(run, reads, copies):
    with pretend_device() as traffic:
        x = torch.randn(3).to(DEVICE)
        traffic.clear()
        run(x)
    assert (sum(traffic.reads.values()), sum(traffic.copies.values())) == (reads, copies)
    assert all("test_device.py" in place for place in (*traffic.reads, *traffic.copies))


@pytest.mark.parametrize(
    "run", [lambda x: x + torch.ones(3), lambda x: F.linear(x, torch.ones(2, 3))], ids=["sum", "product"]
)
def test_tensors_of_two_devices_do_not_mix(run):
    with pretend_device(), pytest.raises(RuntimeError, match=r"test_device\.py:\d+ \(<lambda>\): aten\."):
        run(torch.randn(3).to(DEVICE))


def test_tensors_are_of_no_use_where_there_is_no_device():
    with pretend_device():
        x = torch.ones(3).to(DEVICE)
    with pytest.raises(RuntimeError, match=re.escape("outside of pretend_device()")):
        x + 1
