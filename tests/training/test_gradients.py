"""The gradients of a step: batches that are left out, and what processes tell each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdstream.config.experiment import ExperimentConfig
from kdstream.training import dist, gradients, loop, process
from kdstream.training.metrics import MetricsTracker
from kdstream.training.step import seed_step
from support.killing import free_port
from support.recording import make_trainer
from support.training import experiment


def test_a_batch_without_a_finite_loss_leaves_the_gradients_of_the_others_as_they_are(tmp_path, data, monkeypatch):
    def gradients_of(batches) -> list[torch.Tensor | None]:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.gradients.add(batches, trainer.choices[0][0], 1)
        return [None if p.grad is None else p.grad.clone() for p in trainer.student.parameters()]

    trainer = make_trainer(experiment(tmp_path, data))
    monkeypatch.setattr(gradients, "seed_step", lambda seed, step, index: seed_step(seed, step, 0))
    good, bad, other = list(trainer.data.train_dataloader(1))[:3]
    bad.features[0] = float("inf")
    for gradient, expected in zip(gradients_of([good, bad, other]), gradients_of([good, other]), strict=True):
        assert (gradient is None) == (expected is None)
        assert gradient is None or torch.equal(gradient, expected)
    assert all(gradient is None for gradient in gradients_of([bad]))


def count_exchanges(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What each process of the test below runs."""
    torch.set_num_threads(1)
    counts = {"sums": 0, "buckets": 0}
    steps: list[dict[str, int]] = []
    all_reduce = torch.distributed.all_reduce

    def counted(*args, **kwargs):
        counts["sums"] += 1
        return all_reduce(*args, **kwargs)

    def bucket(state, bucket):
        counts["buckets"] += 1
        future = all_reduce(bucket.buffer().div_(world_size), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    class Counting(loop.Trainer):
        def train_step(self, batches) -> MetricsTracker:
            if not steps:
                self.module.register_comm_hook(None, bucket)
            else:
                steps[-1]["between"] = counts["sums"]
            counts.update(sums=0, buckets=0)
            metrics = super().train_step(batches)
            steps.append(dict(counts))
            counts["sums"] = 0
            return metrics

    torch.distributed.all_reduce, process.Trainer = counted, Counting
    process.train_experiment(config, rank, world_size)
    (Path(config.train.exp_dir) / f"steps-{rank}.json").write_text(json.dumps(steps[:-1]))


@pytest.mark.slow
def test_processes_exchange_gradients_and_one_sum_in_a_step(tmp_path, data):
    buckets = set()
    for batches in (1, 2):
        settings = dict(world_size=2, master_port=free_port(), num_epochs=2, accum_grad=batches)
        dist.launch(count_exchanges, experiment(tmp_path / str(batches), data, **settings))
        for rank in (0, 1):
            steps = json.loads((tmp_path / str(batches) / f"steps-{rank}.json").read_text())
            assert steps and all(step["sums"] == 1 for step in steps)
            buckets.add(min(step["buckets"] for step in steps))
            if batches == 1:
                assert steps[0]["between"] == 0  # nobody asks whether all have read their next batches
    assert len(buckets) == 1  # with --accum-grad no more
