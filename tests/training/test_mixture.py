"""A mixture of three manifests, one of them a Shar directory, resumes in mid-epoch bit for bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet

from kdstream.checkpoints import store
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.data.module import AsrDataModule
from kdstream.training import dist, process
from support.killing import differences, leftovers, start
from support.recording import RecordingTrainer
from support.training import experiment, make_corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and killed by their group"),
]
OF_MANIFEST = 10  # cuts


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> DataConfig:
    """A compressed manifest, one that is read line by line, and a Shar directory, by weight."""
    folder = tmp_path_factory.mktemp("mixture")
    data = make_corpus(folder, 3 * OF_MANIFEST)
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    parts = [CutSet.from_cuts(cuts[begin : begin + OF_MANIFEST]) for begin in range(0, len(cuts), OF_MANIFEST)]
    paths = folder / "a.jsonl.gz", folder / "b.jsonl", folder / "shar"
    for part, path in zip(parts[:2], paths[:2], strict=True):
        part.to_file(path)
    paths[2].mkdir()
    parts[2].to_shar(paths[2], fields={"features": "lilcom"}, shard_size=3)
    return replace(data, train_cuts=tuple(map(str, paths)), mux_weights=(0.5, 0.3, 0.2), enable_spec_aug=True)


def train(config: ExperimentConfig, kill_before: int | None) -> None:
    """What each process runs; all are killed before a step."""
    process.Trainer = type("Recorder", (RecordingTrainer,), {"losses": {}, "kill_before": kill_before})
    dist.launch(process.train_experiment, config)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_mixture_with_a_shar_directory_resumes_in_mid_epoch_bit_for_bit(tmp_path: Path, mixture, world_size: int):
    settings: dict[str, Any] = dict(save_every_n=2, keep_last_k=1, resume=True, world_size=world_size)
    config = {name: experiment(tmp_path / name, mixture, **settings) for name in ("whole", "killed")}

    def run(name: str, kill_before: int | None = None) -> int:
        process = start(train, (config[name], kill_before), tmp_path / "log", tmp_path, world_size)
        process.join(300)
        return process.exitcode

    assert run("whole") == 0, (tmp_path / "log").read_text()[-3000:]
    assert run("killed", 4) == 1 and "Killed" in (tmp_path / "log").read_text()
    latest = store.latest_checkpoint(tmp_path / "killed")
    assert latest is not None and latest.name == "checkpoint-2.pt"  # an epoch has more than two steps
    assert run("killed") == 0, (tmp_path / "log").read_text()[-3000:]
    assert differences(tmp_path / "killed", tmp_path / "whole") == [] == leftovers(tmp_path / "killed")


def test_every_epoch_has_its_share_of_each(mixture):
    module = AsrDataModule(mixture, 7)
    for epoch in (1, 2):
        numbers = [int(name.split("-")[1].split("_")[0]) for b in module.train_dataloader(epoch) for name in b.cut_ids]
        assert [sum(n // OF_MANIFEST == which for n in numbers) for which in range(3)] == [10, 6, 4]
