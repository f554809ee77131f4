"""Starting processes, and where they log."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path

import pytest
import torch

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.training import dist


def experiment(exp_dir: Path, world_size: int) -> ExperimentConfig:
    return ExperimentConfig(train=TrainConfig(exp_dir=str(exp_dir), world_size=world_size, master_port=29515))


def note_rank(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """Writes the sum of all ranks + 1, which needs all processes to meet."""
    dist.setup(rank, world_size, config.train.master_port)
    total = torch.tensor(rank + 1.0)
    torch.distributed.all_reduce(total)
    (Path(config.train.exp_dir) / f"rank-{rank}").write_text(f"{int(total)} of {world_size}")
    torch.distributed.barrier()
    dist.cleanup()


def fail_in_second(config: ExperimentConfig, rank: int, world_size: int) -> None:
    dist.setup(rank, world_size, config.train.master_port)
    if rank == 1:
        raise UserError("u.wav: cut short; restore it")
    torch.distributed.barrier()


def leave_something(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What process 0 leaves is there when any process goes on."""
    dist.setup(rank, world_size, config.train.master_port)
    left = Path(config.train.exp_dir) / "left"
    dist.first_in_rank_0(lambda: left.mkdir(parents=True), rank, world_size, torch.device("cpu"))
    assert left.is_dir()
    with pytest.raises(UserError, match="only said in process 0"):
        dist.first_in_rank_0(fail_in_first, rank, world_size, torch.device("cpu"))
    (left / str(rank)).touch()
    dist.cleanup()


def fail_in_first() -> None:
    raise UserError("only said in process 0")


@pytest.mark.slow
def test_world_size_starts_processes_that_meet(tmp_path: Path):
    dist.launch(note_rank, experiment(tmp_path, 2))
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["3 of 2", "3 of 2"]


def test_error_in_a_process_is_one_line_for_the_user(tmp_path: Path):
    with pytest.raises(UserError, match="^u.wav: cut short; restore it$"):
        dist.launch(fail_in_second, experiment(tmp_path, 2))


def test_torchrun_is_recognised(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    calls = []
    dist.launch(lambda config, rank, world_size: calls.append((rank, world_size)), experiment(tmp_path, 1))
    assert calls == [(3, 4)]


def test_impossible_world_size_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--world-size 0: must be at least 1"):
        dist.launch(note_rank, experiment(tmp_path, 0))


@pytest.mark.parametrize("world_size, name, where", [(1, r"", ""), (2, r"-0", r" \(0/2\)")])
def test_log_file_and_lines_are_icefalls(tmp_path: Path, capfd, world_size: int, name: str, where: str):
    path = dist.setup_logging(tmp_path, 0, world_size)
    logging.info("Training started")
    logging.warning("The loss is not finite")
    dist.close_logging()
    logging.info("after the end")
    assert re.fullmatch(rf"log-train-\d{{4}}-\d\d-\d\d-\d\d-\d\d-\d\d{name}", path.name)
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    first, second = path.read_text().splitlines()
    assert re.fullmatch(rf"{date} INFO \[test_dist\.py:\d+\]{where} Training started", first)
    terminal = capfd.readouterr().err.strip().splitlines()
    assert terminal == [second]  # no terminal: warnings alone


def test_lone_process_needs_no_group():
    dist.setup(0, 1, 29516)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_malloc_is_tuned_where_activations_lie_in_its_memory(monkeypatch, has_gpu):
    tuned = []
    monkeypatch.setattr(dist, "keep_freed_memory", lambda: tuned.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    dist.setup(0, 1, 29516)
    assert bool(tuned) != has_gpu


def test_a_port_that_is_taken_is_named(monkeypatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dist, "keep_freed_memory", lambda: None)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--master-port {port}: another program has it; give another"):
            dist.setup(0, 2, port)
