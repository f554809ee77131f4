"""Nothing is lost: to an error or a kill in validation, to a full disk, to another process, to a second training."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdstream.checkpoints import store
from kdstream.commands import run
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from kdstream.training import dist, gradients, loop, process
from kdstream.training.start import only_training_in
from support.disk import full_disk
from support.killing import differences, free_port, leftovers, start
from support.recording import Killed, make_trainer, record
from support.training import experiment, make_corpus

UNREADABLE = "dev.wav: cut short"


def fail_in_validation(monkeypatch, which: int, error: BaseException) -> None:
    """The `which`-th validation from now ends with `error` after its first batch."""
    original, count = loop.validation_loss, iter(range(1, 100))

    def validate(student, batches, *rest):
        if next(count) != which:
            return original(student, batches, *rest)
        student.eval()
        next(iter(batches))
        raise error

    monkeypatch.setattr(loop, "validation_loss", validate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, valid_interval, which, left",
    [
        (UserError(UNREADABLE), 1000, 1, "epoch-1.pt"),
        (Killed(), 1000, 2, "epoch-2.pt"),  # the last one
        (RuntimeError("out of memory"), 2, 1, "checkpoint-2.pt"),  # in mid-epoch
        (Killed(), 2, 1, "checkpoint-2.pt"),
        (Killed(), 4, 1, "epoch-1.pt"),  # the interval ends with the epoch
    ],
)
def test_what_ends_in_validation_loses_no_training(
    tmp_path: Path, data, monkeypatch, error: BaseException, valid_interval: int, which: int, left: str
) -> None:
    settings = dict(valid_interval=valid_interval, save_every_n=2 if isinstance(error, Killed) else 1000)
    whole, broken = (experiment(tmp_path / name, data, resume=True, **settings) for name in ("whole", "broken"))
    process.train_experiment(whole)
    with monkeypatch.context() as patch:
        fail_in_validation(patch, which, error)
        with pytest.raises(type(error)):
            process.train_experiment(broken)
    last = store.latest_checkpoint(tmp_path / "broken")
    assert last is not None and last.name == left and store.awaits_validation(last)
    done = store.load_checkpoint(last)["batch_idx_train"]
    assert min(record(broken), default=done + 1) == done + 1
    saved_by_errors = {f"checkpoint-{number}.pt" for number in range(1, 9)}
    assert differences(tmp_path / "broken", tmp_path / "whole", leave_out=saved_by_errors) == []
    assert not any(map(store.awaits_validation, store.find_epochs(tmp_path / "broken")))


@pytest.mark.slow
def test_the_validation_set_is_looked_at_before_anything_is_written(tmp_path: Path, data) -> None:
    config = experiment(tmp_path, replace(data, valid_cuts=(str(tmp_path / "nowhere.jsonl.gz"),)))
    with pytest.raises(UserError, match="nowhere.jsonl.gz: no such manifest"):
        process.train_experiment(config)
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.slow
def test_a_validation_cut_that_cannot_be_read_is_named_before_the_first_step(tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "corpus", num_utterances=4)
    dev = list(iterate(read_manifest(Path(data.valid_cuts[0]))))
    broken = tmp_path / "corpus" / "feats" / str(dev[2].features.storage_key)
    config = experiment(tmp_path / "exp", replace(data, train_cuts=data.valid_cuts), num_epochs=1, resume=True)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:2000])
    with pytest.raises(UserError, match=f"{broken.parent.parent}.*cannot read the features of cut {dev[2].id}"):
        process.train_experiment(config)
    assert os.listdir(tmp_path / "exp") == ["log"]
    broken.write_bytes(whole)
    assert min(record(config)) == 1
    broken.write_bytes(whole[:2000])  # a resumed training does not read it again
    assert record(config) == {}


@pytest.mark.slow
@pytest.mark.parametrize("max_batches", [0, 1], ids=["fewer batches than a step takes", "a short last step"])
def test_a_resume_at_the_end_of_an_epoch_whose_last_step_was_short(tmp_path: Path, data, monkeypatch, max_batches: int):
    settings = dict(save_every_n=1, accum_grad=3 if max_batches else 8, resume=True, keep_last_k=9)
    whole, killed = (experiment(tmp_path / name, data, **settings) for name in ("whole", "killed"))
    process.train_experiment(whole)

    def killed_there(*args) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "end_epoch", killed_there)
        with pytest.raises(Killed):
            process.train_experiment(killed)
    steps = 1 + bool(max_batches)
    last = store.latest_checkpoint(tmp_path / "killed")
    assert last is not None and last.name == f"checkpoint-{steps}.pt"
    process.train_experiment(killed)
    assert differences(tmp_path / "killed", tmp_path / "whole") == []
    logs = ["".join(path.read_text() for path in sorted((tmp_path / n / "log").iterdir())) for n in ("killed", "whole")]
    batches = [[line.partition("Epoch ")[2] for line in log.splitlines() if " batch " in line] for log in logs]
    assert batches[0] == batches[1] and batches[1][0].startswith("1, batch 0,")


@pytest.mark.slow
def test_on_a_full_disk_training_ends_with_one_line_and_the_last_checkpoint_stays(
    tmp_path: Path, data, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # those that another test may have left write to files too
    config = experiment(tmp_path, data, save_every_n=1, resume=True)
    process.train_experiment(replace(config, train=replace(config.train, max_train_batches=2)))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    with full_disk(1_000_000), pytest.raises(UserError) as end:
        process.train_experiment(config)
    assert str(end.value).startswith(f"{tmp_path / 'checkpoint-3.pt'}: cannot be written (")
    assert "\n" not in str(end.value) and leftovers(tmp_path) == []
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    with full_disk(100), pytest.raises(UserError, match="cannot be written"):  # not even a line in the log
        process.train_experiment(config)
    shown = capsys.readouterr().err
    assert "the log ends here" in shown and "Traceback" not in shown and "Logging error" not in shown
    assert min(record(config)) == 3


def broken_in_one(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """A training in which the second process meets what it cannot read; a file beside the exp-dir says what."""
    torch.set_num_threads(1)
    what = (Path(config.train.exp_dir).parent / "what").read_text()

    class Breaking(AsrDataModule):
        def train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            loader = super().train_dataloader(*args, **kwargs)
            if what == "cut" and rank == 1:
                loader.cut_batches = BrokenAfter(loader.cut_batches, 1, sound_passes=0)
            return loader

        def valid_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            loader = super().valid_dataloader(*args, **kwargs)
            if what == "validation" and rank == 1:
                loader.cut_batches = BrokenAfter(loader.cut_batches, 0, sound_passes=1)
            return loader

    process.AsrDataModule = Breaking
    if what == "losses":
        loop.MAX_BAD_BATCHES = 2
        original = gradients.compute_loss

        def infinite(*args: Any) -> Any:
            loss, metrics = original(*args)
            metrics["loss"] = torch.tensor(float("inf"))
            return loss, metrics

        gradients.compute_loss = infinite
    process.train_experiment(config, rank, world_size)


def launch(config: ExperimentConfig, max_bytes: int) -> None:
    """What each process of the test below runs: the command, on a disk that holds no larger files."""
    with full_disk(max_bytes):
        run(lambda: dist.launch(broken_in_one, config))


class BrokenAfter:
    """All batches some times, and from then on the first `count` and one of a cut that cannot be read."""

    def __init__(self, batches: Any, count: int, sound_passes: int) -> None:
        self.batches, self.count, self.sound_passes = batches, count, sound_passes

    def __iter__(self):
        self.sound_passes -= 1
        for number, batch in enumerate(self.batches):
            if number == self.count and self.sound_passes < 0:
                raise UserError(UNREADABLE)
            yield batch


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, message, saved",
    [
        ("cut", UNREADABLE, "checkpoint-1.pt"),
        ("validation", UNREADABLE, "epoch-1.pt"),
        ("disk", "epoch-1.pt: cannot be written (File too large); free space", ""),
    ],
)
def test_what_one_process_meets_stops_all_after_one_has_saved(
    tmp_path: Path, data, what: str, message: str, saved: str
) -> None:
    (tmp_path / "what").write_text(what)
    config = experiment(tmp_path / "exp", data, world_size=2, num_epochs=1)
    process = start(launch, (config, 1_000_000 if what == "disk" else 1_000_000_000), tmp_path / "out", tmp_path, 2)
    process.join(100)
    assert process.exitcode == 1
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and all(message in line for line in lines)
    assert [path.name for path in (tmp_path / "exp").glob("*.pt")] == ([saved] if saved else [])
    assert leftovers(tmp_path) == []
    if saved:
        store.load_checkpoint(tmp_path / "exp" / saved)


@pytest.mark.slow
def test_processes_that_give_up_say_so_once(tmp_path: Path, data) -> None:
    (tmp_path / "what").write_text("losses")
    config = experiment(tmp_path / "exp", data, world_size=2, num_epochs=1, master_port=free_port())
    with pytest.raises(UserError, match="bad-model-0.pt: 2 batches in a row without a finite loss"):
        dist.launch(broken_in_one, config)
    store.load_checkpoint(tmp_path / "exp" / "bad-model-0.pt")
    assert leftovers(tmp_path) == []


def test_an_average_goes_on_from_what_is_stored_of_it(tmp_path: Path, data) -> None:
    trainer = make_trainer(experiment(tmp_path, data))
    assert trainer.model_avg is not None
    with torch.no_grad():
        for value in trainer.model_avg.parameters():
            value.add_(1e-9)
    trainer.progress.batch_idx_train = 1
    trainer.save_step()
    stored = store.load_checkpoint(tmp_path / "checkpoint-1.pt")["model_avg"]
    for name, value in trainer.model_avg.state_dict().items():
        assert not value.is_floating_point() or (
            value.dtype == torch.float64 and torch.equal(value, stored[name].double())
        )


def test_a_second_training_in_the_same_directory_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kdstream.training.start.LOCK_SECONDS", 0.2)
    with only_training_in(tmp_path):
        with pytest.raises(UserError, match="--exp-dir .*: another training is running in it; wait for its end"):
            with only_training_in(tmp_path):
                pass
        with only_training_in(tmp_path / "other"):
            pass
    with only_training_in(tmp_path):
        pass


def test_weights_that_cannot_go_on_are_kept_where_float16_overflows(tmp_path: Path, data, monkeypatch) -> None:
    trainer = make_trainer(experiment(tmp_path, data))
    trainer.progress.batch_idx_train = 1

    def hopeless(batch_idx: int) -> bool:
        raise UserError("the gradient scale fell", fix="use --use-bf16 1")

    monkeypatch.setattr(trainer.precision, "adjust_grad_scale", hopeless)
    with pytest.raises(UserError, match=r"bad-model-0.pt: the gradient scale fell; use --use-bf16 1"):
        trainer.after_step(1, loop.MetricsTracker(), loop.MetricsTracker(), 1)
    store.load_checkpoint(tmp_path / "bad-model-0.pt")
