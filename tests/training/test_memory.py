"""The scan for batches that need too much memory."""

from __future__ import annotations

import faulthandler
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, MonoCut

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig
from kdstream.training import dist, gradients, loop, memory, process
from support.killing import free_port
from support.recording import make_trainer
from support.training import experiment, make_corpus


@pytest.mark.slow
def test_memory_is_tried_with_every_loss_in_the_heaviest_chunks(tmp_path: Path, data, teacher, monkeypatch):
    config = experiment(tmp_path, data)
    config = replace(config, model=replace(config.model, chunk_size=(8, -1), right_context_frames=(0, 8)))
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_relation_scale=0.1, kd_token_scale=1.0)
    trainer = make_trainer(replace(config, distill=distill))
    tried, chunks = set(), set()
    original = gradients.compute_loss

    def compute(module, batch, chunk, *args):
        chunks.add(chunk)
        loss, metrics = original(module, batch, chunk, *args)
        tried.update(metrics)
        return loss, metrics

    monkeypatch.setattr(gradients, "compute_loss", compute)
    monkeypatch.setattr(memory, "max_memory_mb", lambda device: 0)
    trainer.scan_for_oom()
    assert trainer.optimizer.state  # what the optimiser needs was there
    assert {"feature_loss", "relation_loss", "apc_loss", "token_loss"} <= tried
    assert chunks == {None, ChunkConfig(8, 32, 8)}
    assert all(p.grad is None for p in trainer.student.parameters())


def tried_by_each(config: ExperimentConfig) -> list[int]:
    """How many batches each process has to try."""
    world_size, data = config.train.world_size, AsrDataModule(config.data, config.train.seed)
    loaders = (data.train_dataloader(1, world_size, rank) for rank in range(world_size))
    return [len(memory.heaviest(list(islice(loader.cut_batches, memory.SCANNED)))) for loader in loaders]


def scan_and_train(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What a training on GPUs does: it tries memory, and then takes its steps.  Where it waits for ever, it ends."""
    faulthandler.dump_traceback_later(60, exit=True)
    tried = []

    class Scanning(loop.Trainer):
        def train(self) -> None:
            self.scan_for_oom()
            super().train()

    def scan(loader, try_batch, *args) -> None:
        memory.scan_for_oom(loader, lambda batch: tried.append(try_batch(batch)), *args)

    process.Trainer, loop.scan_for_oom, memory.max_memory_mb = Scanning, scan, lambda device: 0
    process.train_experiment(config, rank, world_size)
    faulthandler.cancel_dump_traceback_later()
    (Path(config.train.exp_dir) / f"tried-{rank}").write_text(str(len(tried)))


@pytest.mark.slow
def test_processes_that_try_different_numbers_of_batches_train_afterwards(tmp_path: Path):
    data = replace(make_corpus(tmp_path, 24), max_duration=8.0)
    config = experiment(tmp_path / "exp", data, world_size=2, master_port=free_port(), max_train_batches=2)
    assert tried_by_each(config) == [2, 1]
    dist.launch(scan_and_train, config, "cpu")
    assert [(tmp_path / "exp" / f"tried-{rank}").read_text() for rank in (0, 1)] == ["2", "1"]
    assert (tmp_path / "exp" / "checkpoint-2.pt").is_file()


def test_what_cannot_be_read_is_named_before_memory_is_tried(tmp_path):
    config = make_corpus(tmp_path, 4)
    shutil.rmtree(tmp_path / "feats")
    loader = AsrDataModule(config, 0).train_dataloader(1)
    with pytest.raises(UserError, match=f"--train-cuts: {config.train_cuts[0]}: .*cannot read the features of cut utt"):
        memory.scan_for_oom(loader, lambda batch: None, 5.0, torch.device("cpu"))


def test_each_of_the_heaviest_batches_is_tried_once_and_the_one_that_does_not_fit_is_described(tmp_path):
    def batch(*seconds: float) -> CutSet:
        return CutSet.from_cuts([MonoCut(f"{seconds}-{n}", 0, length, 0) for n, length in enumerate(seconds)])

    long, full, many, plain = batch(9.0), batch(4.0, 3.0, 4.0), batch(1.0, 1.0, 1.0, 1.0), batch(5.0, 4.0)
    assert memory.heaviest([plain, many, long, full]) == [long, full, many]
    assert memory.heaviest([plain, plain, long]) == [long, plain]
    assert memory.heaviest([]) == []
    loader = AsrDataModule(make_corpus(tmp_path, 4), 0).train_dataloader(1)

    def out_of_memory(batch) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(
        UserError, match=r"--max-duration 5: .* on a batch of \d cuts, the longest of [\d.]+ s; lower it"
    ):
        memory.scan_for_oom(loader, out_of_memory, 5.0, torch.device("cpu"))
