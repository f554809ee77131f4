"""A training that is killed at any moment and resumed ends, bit for bit, as one that nobody killed.

KDSTREAM_KILLS=30 python -m pytest -s tests/training/test_kill.py    # kills of each test; it prints what it did
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kdstream.config.distillation import DistillConfig
from kdstream.config.flags import flags_of
from kdstream.config.sections import DataConfig
from kdstream.errors import option
from kdstream.evaluation.records import RESULTS_JSON, load_records
from kdstream.experiments.methods import Comparison
from kdstream.experiments.train_flags import FLAGS_FILE, without_flags
from support.killing import KILLS, Killer, check_checkpoints, differences, leftovers
from support.paths import ROOT
from support.training import experiment, typed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and killed by their group"),
]


LEFT_BY_THE_RUNNER = {FLAGS_FILE}


def show(what: str, killer: Killer, found: list[str]) -> None:
    print(f"\n{what}: {killer.killed} kills, {killer.trainings} commands finished, {len(found)} differences")


def student(exp_dir: Path, data: DataConfig, teacher: Path, **distill) -> list[str]:
    """Flags of a training of two epochs that saves, validates and averages often."""
    config = experiment(exp_dir, data, save_every_n=2, valid_interval=3, keep_last_k=2, log_interval=100)
    guided = DistillConfig(teacher_exp_dir=str(teacher), kd_warmup_batches=4, kd_token_scale=0.5, **distill)
    return [f"--exp-dir={exp_dir}", "--resume=1", *typed(replace(config, distill=guided))]


@pytest.mark.parametrize("world_size, kills", [(1, 4), (2, 2)])
def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path, data, teacher, world_size: int, kills: int):
    flags = {name: student(tmp_path / name, data, teacher) for name in ("whole", "killed")}
    killer = Killer(KILLS or kills, tmp_path / "log", world_size, lambda: check_checkpoints(tmp_path / "killed"))
    seconds = killer.run("train", flags["whole"], world_size=world_size)
    found = []
    while killer.killed < killer.kills:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        killer.run("train", flags["killed"], 0.8 * seconds, world_size)
        found += differences(tmp_path / "killed", tmp_path / "whole") + leftovers(tmp_path / "killed")
    show(f"training, processes: {world_size}", killer, found)
    assert found == []


def test_a_killed_cache_serves_the_same_training(tmp_path: Path, data, teacher):
    killer = Killer(KILLS or 3, tmp_path / "log", 3)
    flags = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        cache = tmp_path / name / "cache"
        flags[name] = {
            "cache-teacher": ["--teacher-exp-dir", str(teacher), "--output", str(cache), "--max-duration", "2"],
            "train": student(tmp_path / name / "exp", data, teacher, teacher_cache=str(cache)),
        }
    seconds = {command: killer.run(command, typed_flags) for command, typed_flags in flags["whole"].items()}
    found = []
    while killer.killed < killer.kills:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        for command, typed_flags in flags["killed"].items():
            killer.run(command, typed_flags, 0.8 * seconds[command])
        folders = [tmp_path / name / "cache" for name in ("killed", "whole")]
        files = [{path.relative_to(f): path.read_bytes() for path in f.rglob("*") if path.is_file()} for f in folders]
        found += [str(name) for name in {**files[0], **files[1]} if files[0].get(name) != files[1].get(name)]
        found += differences(tmp_path / "killed" / "exp", tmp_path / "whole" / "exp") + leftovers(tmp_path / "killed")
    show("teacher's cache and its student", killer, found)
    assert found == []


def small_comparison(folder: Path, data: DataConfig) -> dict:
    """A teacher, its cache and one student, of one epoch each."""
    config = experiment(folder, data, save_every_n=2, keep_last_k=2)
    own = [item.name for item in flags_of(DistillConfig)] + ["seed", "num_epochs", "causal", "resume"]
    train_flags = without_flags(typed(config), own)
    decode_flags = ["--chunk-size", "8", "--left-context-frames", "16"]
    return dict(
        recipe=folder, exp_root=folder / "exp", methods=["best"], seeds=[1], num_epochs=1, teacher_num_epochs=1, avg=1,
        cache_teacher=True, train_flags=train_flags, decode_flags=decode_flags,
    )  # fmt: skip


def typed_comparison(settings: dict) -> list[str]:
    """As flags of compare-methods."""
    listed = {"methods": ",".join(settings["methods"]), "seeds": ",".join(map(str, settings["seeds"]))}
    listed |= {name: shlex.join(settings[name]) for name in ("train_flags", "decode_flags")}
    listed |= {"cache_teacher": "1"}
    return [f"{option(name)}={listed.get(name, value)}" for name, value in settings.items()]


def run_one_by_one(settings: dict) -> None:
    """What compare-methods does, without it: the commands of all cells in their order."""
    killer = Killer(0, settings["recipe"] / "log", cwd=settings["recipe"])
    for cell in Comparison(**settings).cells():
        commands = [cell.train_command(), *([cell.cache_command()] if cell.cache else []), *cell.decode_commands()]
        for command in commands:
            killer.run(command.command, command.flags)


def test_a_killed_comparison_ends_as_one_that_was_not(tmp_path: Path, data):
    whole, killed = (small_comparison(tmp_path / name, data) for name in ("whole", "killed"))
    for settings in (whole, killed):
        settings["recipe"].mkdir()
    run_one_by_one(whole)
    rng, killer, found = random.Random(4), Killer(KILLS or 2, tmp_path / "log"), []
    command = [sys.executable, "-m", "kdstream", "compare-methods", *typed_comparison(killed)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "kdstream", "doctor"], env=env, stdout=subprocess.DEVNULL, check=False)
    seconds = 6 * (time.monotonic() - begin)
    while killer.killed < killer.kills:
        shutil.rmtree(killed["exp_root"], ignore_errors=True)
        while True:
            with open(killer.log, "a") as log:
                process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
            try:
                may_kill = killer.killed < killer.kills
                status = process.wait(rng.uniform(0, seconds) if may_kill else 300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killer.killed += 1
                continue
            assert status == 0, killer.log.read_text()[-3000:]
            killer.trainings += 1
            break
        for name in ("teacher", "best-1"):
            folders = [settings["exp_root"] / name for settings in (killed, whole)]
            found += [f"{name}: {what}" for what in differences(*folders, leave_out=LEFT_BY_THE_RUNNER)]
            errors = [[record.utterance_errors for record in load_records(f / RESULTS_JSON)] for f in folders]
            found += [f"{name}: {errors}"] if errors[0] != errors[1] else []
        found += leftovers(killed["recipe"])
    show("comparison of methods", killer, found)
    assert found == []
