"""--profile: a trace, and a table that names modules, losses and the optimiser."""

import json
import logging

import torch
from torch import nn
from torch.profiler import record_function

from kdstream.training.profiling import TRACE, WARMUP_STEPS, StepProfiler


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        with record_function("loss: square"):
            return x.square().sum()


def test_it_watches_the_steps_after_the_first_ones_and_no_others(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    profiler = StepProfiler(2, net, tmp_path)
    steps = 0
    for _ in profiler.steps(range(WARMUP_STEPS + 2)):
        net(torch.ones(2, 4)).backward()
        optimizer.step()
        steps += 1
    assert steps == WARMUP_STEPS + 2
    assert json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    rows = {line.split(maxsplit=3)[3]: line.split()[2] for line in caplog.text.splitlines() if "  " in line}
    assert rows["module: layers (Sequential)"] == "3.0"  # three layers, called once in each of two steps
    assert rows["loss: square"] == "1.0" and rows["Optimizer.step#SGD.step"] == "1.0"
    (tmp_path / TRACE).unlink()
    assert list(profiler.steps(range(9))) == list(range(9)) and not (tmp_path / TRACE).exists()
    assert not net.layers[0]._forward_hooks


def test_a_training_that_ends_with_the_last_watched_step_writes_it_too(tmp_path):
    for step in StepProfiler(1, Net(), tmp_path).steps(range(99)):
        if step == WARMUP_STEPS:
            break
    assert (tmp_path / TRACE).is_file()


def test_an_epoch_that_ends_before_the_last_step_to_watch_leaves_what_was_watched(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    net = Net()
    profiler = StepProfiler(5, net, tmp_path)
    for step in profiler.steps(range(WARMUP_STEPS + 2)):
        net(torch.full((2, 4), float(step)))
    assert "a trace of 2 steps" in caplog.text and (tmp_path / TRACE).is_file()
    assert not net.layers[0]._forward_hooks
    assert list(profiler.steps(range(9))) == list(range(9))


def test_where_no_step_can_be_watched_the_log_says_so_and_the_next_epoch_is_tried(tmp_path, caplog):
    net = Net()
    profiler = StepProfiler(1, net, tmp_path)
    assert len(list(profiler.steps(range(WARMUP_STEPS)))) == WARMUP_STEPS
    assert "--profile 1: watched no step" in caplog.text and not (tmp_path / TRACE).exists()
    assert len(list(profiler.steps(range(WARMUP_STEPS + 1)))) == WARMUP_STEPS + 1
    assert (tmp_path / TRACE).is_file()
