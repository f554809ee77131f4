"""Starting processes, and where they log."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.training import dist
from kdstream.training.partners import in_company
from support.killing import alive, free_port, wait_for


def experiment(exp_dir: Path, world_size: int) -> ExperimentConfig:
    return ExperimentConfig(train=TrainConfig(exp_dir=str(exp_dir), world_size=world_size, master_port=free_port()))


def note_rank(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """Writes the sum of all ranks + 1, which needs all processes to meet."""
    with in_company(rank, world_size, config.train.master_port):
        total = torch.tensor(rank + 1.0)
        torch.distributed.all_reduce(total)
        (Path(config.train.exp_dir) / f"rank-{rank}").write_text(f"{int(total)} of {world_size}")
        torch.distributed.barrier()


def fail_in_second(config: ExperimentConfig, rank: int, world_size: int) -> None:
    with in_company(rank, world_size, config.train.master_port):
        if rank == 1:
            raise UserError("u.wav: cut short; restore it")
        torch.distributed.barrier()


def leave_something(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What process 0 leaves is there when any process goes on."""
    with in_company(rank, world_size, config.train.master_port):
        left = Path(config.train.exp_dir) / "left"
        dist.first_in_rank_0(lambda: left.mkdir(parents=True), rank, world_size, torch.device("cpu"))
        assert left.is_dir()
        with pytest.raises(UserError, match="only said in process 0"):
            dist.first_in_rank_0(fail_in_first, rank, world_size, torch.device("cpu"))
        (left / str(rank)).touch()


def fail_in_first() -> None:
    raise UserError("only said in process 0")


@pytest.mark.slow
def test_world_size_starts_processes_that_meet(tmp_path: Path):
    dist.launch(note_rank, experiment(tmp_path, 2))
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["3 of 2", "3 of 2"]


def test_error_in_a_process_is_one_line_for_the_user(tmp_path: Path):
    with pytest.raises(UserError, match="^u.wav: cut short; restore it$"):
        dist.launch(fail_in_second, experiment(tmp_path, 2))


def note_pid_and_stay(config: ExperimentConfig, rank: int, world_size: int) -> None:
    (Path(config.train.exp_dir) / f"pid-{os.getpid()}").touch()
    time.sleep(600)


def start_in_background(exp_dir: Path) -> None:
    """As a script does with `train.py ... &`: a shell lets such a command ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    dist.launch(note_pid_and_stay, experiment(exp_dir, 2))


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, ended_by: signal.Signals):
    starter = torch.multiprocessing.get_context("spawn").Process(target=start_in_background, args=(tmp_path,))
    starter.start()
    wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    os.kill(starter.pid, ended_by)
    wait_for(lambda: not any(map(alive, pids)), seconds=10)
    starter.join()


def test_torchrun_is_recognised(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    calls = []
    dist.launch(lambda config, rank, world_size: calls.append((rank, world_size)), experiment(tmp_path, 1))
    assert calls == [(3, 4)]


@pytest.mark.parametrize("world_size, name, where", [(1, r"", ""), (2, r"-0", r" \(0/2\)")])
def test_log_file_and_lines_are_icefalls(tmp_path: Path, capfd, monkeypatch, world_size: int, name: str, where: str):
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])  # and none of commands before
    path = dist.setup_logging(tmp_path, 0, world_size)
    logging.info("Training started")
    logging.warning("The loss is not finite")
    dist.close_logging()
    logging.info("after the end")
    assert re.fullmatch(rf"log-train-\d{{4}}-\d\d-\d\d-\d\d-\d\d-\d\d{name}", path.name)
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"{date} INFO \[test_dist\.py:\d+\]{where} Training started", lines[0])
    assert capfd.readouterr().err.strip().splitlines() == lines  # stderr is a file here, as under nohup


def test_a_reader_of_stderr_that_ends_does_not_end_training(tmp_path: Path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    path = dist.setup_logging(tmp_path, 0, 1)
    monkeypatch.setattr(sys, "stderr", Broken())
    logging.info("Epoch 1")
    dist.close_logging()
    assert path.read_text().endswith(" Epoch 1\n")


def test_lone_process_needs_no_group():
    with in_company(0, 1, 29516):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_malloc_is_tuned_where_activations_lie_in_its_memory(monkeypatch, has_gpu):
    tuned = []
    monkeypatch.setattr(dist, "keep_freed_memory", lambda: tuned.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    dist.meet(0, 1, 29516)
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
            dist.meet(0, 2, port)


def look(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """Two machines of two processes: each looks at what lies on its own disk, here a folder of its own."""
    os.environ["LOCAL_RANK"] = str(rank % 2)
    disk = Path(config.train.exp_dir) / f"disk-{rank // 2}"
    disk.mkdir(parents=True, exist_ok=True)
    with in_company(rank, world_size, config.train.master_port):
        device = torch.device("cpu")
        dist.first_in_rank_0(lambda: (disk / f"by-{rank}").touch(), rank, world_size, device)
        seen = sorted(path.name for path in disk.glob("by-*"))
        (disk / f"seen-by-{rank}").write_text(" ".join(seen))
        os.chdir(disk)
        if rank == 0:
            Path("log").touch()
        with pytest.raises(UserError, match="--exp-dir exp: .* does not see what the first process wrote there"):
            dist.check_shared(Path("log"), "--exp-dir exp", world_size, device)
        dist.check_shared(Path(config.train.exp_dir), "--exp-dir exp", world_size, device)


@pytest.mark.slow
def test_the_first_process_of_each_machine_looks_at_its_own_disk_and_what_is_not_shared_is_refused(tmp_path: Path):
    dist.launch(look, experiment(tmp_path, 4))
    for rank in range(4):
        by = 0 if rank < 2 else 2
        assert (tmp_path / f"disk-{rank // 2}" / f"seen-by-{rank}").read_text() == f"by-{by}"


def test_a_process_is_on_the_gpu_of_its_number_on_its_machine(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert dist.device_of(3) == torch.device("cuda", 1) == chosen[0]
    assert dist.device_of(3, "cuda") == torch.device("cuda", 1) == chosen[1]
    assert dist.device_of(3, "cpu") == torch.device("cpu") and len(chosen) == 2
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 6 has no GPU: .* has 2; start fewer processes"):
        dist.device_of(6)


def test_a_device_that_is_not_there_or_is_for_one_process_alone_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dist.device_of(0) == dist.device_of(1, "cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda:1: is one GPU for several processes; give --device cuda"):
        dist.device_of(1, "cuda:1")
    monkeypatch.setattr(dist, "find_device", lambda name: name)
    assert dist.device_of(0, "cuda:1") == "cuda:1" and dist.device_of(1, "cuda") == "cuda"  # looked for, not replaced


def test_processes_on_the_cpu_need_no_gpu_each(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    started = []
    monkeypatch.setattr(dist, "spawn", lambda run, args, nprocs, join: started.append(nprocs))
    dist.launch(note_rank, experiment(tmp_path, 2), "cpu")
    assert started == [2]
    for device in ("", "cuda"):
        with pytest.raises(UserError, match="--world-size 2: there are 1 GPUs; lower it"):
            dist.launch(note_rank, experiment(tmp_path, 2), device)
