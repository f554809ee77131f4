"""Two machines of two processes each, played by one: torchrun's agents on loopback.

KDSTREAM_KILLS=10 python -m pytest -s tests/training/test_nodes.py    # kills; it prints what it did
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kdstream.checkpoints.store import load_checkpoint
from kdstream.config.experiment import ExperimentConfig
from support.killing import KILLS, check_checkpoints, free_port, leftovers, run_flags, start, wait_for
from support.training import experiment, make_corpus, typed

pytestmark = pytest.mark.slow

PROCESSES, NODES = 2, 2
RANKS = PROCESSES * NODES


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_utterances=24)


def short(exp_dir: Path, data, **train) -> ExperimentConfig:
    return experiment(exp_dir, data, **{"save_every_n": 1, "keep_last_k": 100, "valid_interval": 2, **train})


def flags_of(config: ExperimentConfig) -> list[str]:
    return [f"--exp-dir={config.train.exp_dir}", "--resume=1", *typed(config)]


def run_node(node: int, port: int, flags: list[str], pids: str) -> None:
    """What torchrun does on one machine, with processes that are forked instead of begun anew."""
    config = LaunchConfig(
        min_nodes=NODES,
        max_nodes=NODES,
        nproc_per_node=PROCESSES,
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": node},
        run_id="test",
        start_method="fork",
        monitor_interval=0.1,
        max_restarts=0,  # as torchrun has it
    )
    elastic_launch(config, run_process)(flags, pids)


def run_process(flags: list[str], pids: str) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the agent's handler would come along
    (Path(pids) / os.environ["RANK"]).write_text(str(os.getpid()))
    run_flags("train", flags)


class Nodes:
    """A training on both machines; what each prints is in FOLDER/node-N.log."""

    def __init__(self, folder: Path, config: ExperimentConfig) -> None:
        self.folder, self.pids = folder, folder / "pids"
        shutil.rmtree(self.pids, ignore_errors=True)
        self.pids.mkdir(parents=True)
        port, flags = free_port(), flags_of(config)
        for node in range(NODES):
            self.log(node).unlink(missing_ok=True)
        self.processes: list[Any] = [
            start(run_node, (node, port, flags, str(self.pids)), self.log(node), folder) for node in range(NODES)
        ]

    def log(self, node: int) -> Path:
        return self.folder / f"node-{node}.log"

    def end(self, seconds: float = 300.0) -> list[int]:
        """Status of each machine; none may run for longer."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            if process.exitcode is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert None not in statuses, "".join(self.log(node).read_text()[-3000:] for node in range(NODES))
        return statuses

    @property
    def has_ended(self) -> bool:
        return any(process.exitcode is not None for process in self.processes)

    def kill(self, rank: int) -> None:
        os.kill(int((self.pids / str(rank)).read_text()), signal.SIGKILL)


def checkpoints(config: ExperimentConfig) -> list[Path]:
    return list(Path(config.train.exp_dir).glob("checkpoint-*.pt"))


def losses_of(exp_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """The sums of losses that each checkpoint of a step holds."""
    saved = [load_checkpoint(path) for path in exp_dir.glob("checkpoint-*.pt")]
    return sorted((checkpoint["batch_idx_train"], dict(checkpoint["tot_loss"])) for checkpoint in saved)


def test_two_machines_of_two_processes_equal_one_process_with_the_same_global_batch(tmp_path: Path, data) -> None:
    from kdstream.training.process import train_experiment

    one = short(tmp_path / "one", data, accum_grad=RANKS)
    train_experiment(one)
    assert Nodes(tmp_path, short(tmp_path / "two", data)).end() == [0, 0], (tmp_path / "node-0.log").read_text()
    ours, theirs = losses_of(tmp_path / "two"), losses_of(tmp_path / "one")
    assert [step for step, _ in ours] == [step for step, _ in theirs] and len(ours) >= 4
    for (step, losses), (_, expected) in zip(ours, theirs, strict=True):
        assert losses == pytest.approx(expected, rel=1e-6), step
    logs = [path.name for path in (tmp_path / "two" / "log").iterdir()]
    assert sorted(re.sub(r".*-", "", name) for name in logs) == ["0", "1", "2", "3"]  # the seconds before may differ
    assert leftovers(tmp_path / "two") == []


def largest_difference(ours: Path, theirs: Path) -> float:
    """Of the weights in the checkpoints of two exp-dirs, which have the same names."""
    names = [sorted(path.name for path in folder.glob("*.pt")) for folder in (ours, theirs)]
    assert names[0] == names[1] != []
    pairs = ([load_checkpoint(folder / name)["model"] for folder in (ours, theirs)] for name in names[0])
    return max(float((a[key] - b[key]).abs().max()) for a, b in pairs for key in a)


def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(tmp_path: Path, data) -> None:
    assert Nodes(tmp_path, short(tmp_path / "whole", data)).end() == [0, 0]
    rng, kills, ended = random.Random(0), 0, []
    killed = short(tmp_path / "killed", data)
    while kills < (KILLS or 2):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        while True:
            nodes = Nodes(tmp_path, killed)
            wait_for(lambda nodes=nodes: len(list(nodes.pids.iterdir())) == RANKS, 300)
            rank = rng.randrange(RANKS)
            if kills < (KILLS or 2):
                steps = rng.randrange(4)
                wait_for(lambda steps=steps, nodes=nodes: nodes.has_ended or steps <= len(checkpoints(killed)), 300)
                time.sleep(rng.uniform(0, 1.5))
                if not nodes.has_ended:
                    nodes.kill(rank)
                    kills, moment = kills + 1, time.monotonic()
            statuses = nodes.end()
            if statuses == [0, 0]:
                break
            ended.append(time.monotonic() - moment)
            check_checkpoints(tmp_path / "killed")
            printed = [nodes.log(node).read_text() for node in range(NODES)]
            by_torchrun = re.search(rf"rank +: {rank} .*\n +exitcode +: -9 ", printed[rank // PROCESSES])
            by_others = re.search(rf"error: process .*\b{rank}\b.* of {RANKS} was killed", "".join(printed))
            assert by_torchrun or by_others, "\n".join(printed)
        assert leftovers(tmp_path / "killed") == []
        # four processes add in the same order, but a processor may round one sum otherwise where memory lies elsewhere
        assert largest_difference(tmp_path / "killed", tmp_path / "whole") <= 1e-6
    print(f"\nmachines: {kills} kills, the job ended within {max(ended):.1f} s")
