"""The training loop: it resumes exactly, scales over processes and batches, and survives bad input."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from kdstream.checkpoints import store
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.data import module
from kdstream.data.module import AsrDataModule, TrainingCuts
from kdstream.data.sampler import windows_of
from kdstream.errors import UserError
from kdstream.training import dist, gradients, loop, memory, process
from kdstream.training.metrics import MetricsTracker
from support.recording import make_trainer, record
from support.training import experiment, make_corpus

BRANCHES: dict[str, float] = {}  # the default
TOKENS_ALONE = dict(kd_feature_scale=0.0, kd_relation_scale=0.0, kd_apc_scale=0.0, kd_token_scale=0.5)  # no branch


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill_before, last, method",
    [(3, "checkpoint-2.pt", BRANCHES), (5, "epoch-1.pt", BRANCHES), (3, "checkpoint-2.pt", TOKENS_ALONE)],
    ids=["mid-epoch", "epoch", "tokens-alone"],
)
def test_resumed_training_equals_uninterrupted(tmp_path: Path, data, teacher, kill_before: int, last: str, method):
    settings = dict(save_every_n=2 if kill_before == 3 else 1000, max_train_batches=0)
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_warmup_batches=4, **method)

    def config(name: str, **more) -> ExperimentConfig:
        return replace(experiment(tmp_path / name, data, **settings, **more), distill=distill)

    whole = record(config("whole"))
    first = record(config("killed"), kill_before)
    assert store.latest_checkpoint(tmp_path / "killed").name == last
    second = record(config("killed", resume=True))
    assert max(first) == kill_before - 1
    assert max(second) == max(whole)
    for step, loss in {**first, **second}.items():
        assert loss == pytest.approx(whole[step], abs=1e-6), f"step {step}"
    saved = [store.load_checkpoint(tmp_path / name / "epoch-2.pt") for name in ("whole", "killed")]
    for name, value in saved[0]["model"].items():
        torch.testing.assert_close(saved[1]["model"][name], value, atol=1e-6, rtol=0)
    for key in ("batch_idx_train", "best_train_loss", "best_valid_loss", "speech_seconds_trained"):
        assert saved[1][key] == pytest.approx(saved[0][key], rel=1e-6)
    for name, value in saved[0]["branches"].items():
        torch.testing.assert_close(saved[1]["branches"][name], value, atol=1e-6, rtol=0)


def run_and_record(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What each process of the tests below runs."""
    torch.set_num_threads(1)
    losses: dict[int, float] = {}
    cut_ids: list[str] = []

    class Recorder(loop.Trainer):
        def train_step(self, batches) -> MetricsTracker:
            metrics = super().train_step(batches)
            losses[self.progress.batch_idx_train] = metrics.mean()
            cut_ids.extend(cut_id for batch in batches for cut_id in batch.cut_ids)
            return metrics

    process.Trainer = Recorder
    process.train_experiment(config, rank, world_size)
    (Path(config.train.exp_dir) / f"losses-{rank}.json").write_text(json.dumps(losses))
    (Path(config.train.exp_dir) / f"cuts-{rank}-of-{world_size}.json").write_text(json.dumps(cut_ids))


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path, data, teacher):
    modes = dict(full_context_scale=0.5, mode_consistency_scale=0.5, kd_token_scale=0.5, kd_token_shift="auto:2")
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_warmup_batches=4, **modes)
    data = replace(data, enable_spec_aug=True)
    one = replace(experiment(tmp_path / "one", data, accum_grad=2), distill=distill)
    with_workers = replace(data, num_workers=1)
    two = replace(experiment(tmp_path / "two", with_workers, world_size=2, master_port=29517), distill=distill)
    expected = record(one)
    dist.launch(run_and_record, two)
    for rank in (0, 1):
        losses = json.loads((tmp_path / "two" / f"losses-{rank}.json").read_text())
        assert list(map(int, losses)) == list(expected)
        assert list(losses.values()) == pytest.approx(list(expected.values()), rel=1e-5)
    saved = [store.load_checkpoint(tmp_path / name / "epoch-2.pt") for name in ("one", "two")]
    for part in ("model", "model_avg", "branches"):
        for name, value in saved[0][part].items():
            torch.testing.assert_close(saved[1][part][name], value, atol=1e-5, rtol=1e-4)
    assert saved[0]["best_valid_loss"] == pytest.approx(saved[1]["best_valid_loss"], rel=1e-5)
    assert saved[0]["speech_seconds_trained"] == pytest.approx(saved[1]["speech_seconds_trained"])


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True])
def test_another_average_period_keeps_the_initial_weights_out_of_the_average(tmp_path: Path, data, is_old: bool):
    record(experiment(tmp_path, data, num_epochs=9, max_train_batches=3, average_period=200, base_lr=0.1))
    if is_old:
        saved = torch.load(tmp_path / "checkpoint-3.pt", weights_only=True)
        del saved["batch_idx_averaged"]
        torch.save(saved, tmp_path / "checkpoint-3.pt")
    record(experiment(tmp_path, data, num_epochs=9, max_train_batches=6, average_period=2, base_lr=0.1, resume=True,
                      save_every_n=1))  # fmt: skip
    saved = {step: store.load_checkpoint(tmp_path / f"checkpoint-{step}.pt") for step in (4, 6)}
    assert [saved[step]["batch_idx_averaged"] for step in (4, 6)] == [4, 6]
    for name, value in saved[6]["model_avg"].items():
        if value.is_floating_point():
            mean = (4 * saved[4]["model"][name].double() + 2 * saved[6]["model"][name].double()) / 6
            torch.testing.assert_close(value.double(), mean, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_more_processes_train_on_each_cut_of_a_begun_epoch_once(tmp_path: Path, data, monkeypatch):
    monkeypatch.setattr(process, "Trainer", process.Trainer)  # so that it comes back
    begun = experiment(tmp_path, data, num_epochs=1, max_train_batches=3)
    run_and_record(begun, 0, 1)
    monkeypatch.undo()
    goes_on = dict(max_train_batches=0, resume=True, world_size=2, master_port=29518)
    dist.launch(run_and_record, replace(begun, train=replace(begun.train, **goes_on)))
    trained = [cut_id for path in tmp_path.glob("cuts-*.json") for cut_id in json.loads(path.read_text())]
    assert sorted(trained) == sorted(AsrDataModule(data, 0).training_cut_ids())


def gradients_of(config: ExperimentConfig, group_sizes: list[int]) -> dict[str, torch.Tensor]:
    """The gradient that one step hands to the optimiser, from all utterances in batches of the given sizes."""
    trainer = make_trainer(config)
    trainer.student.eval()  # without dropout, the batches' randomness would differ
    batch = next(iter(trainer.data.valid_dataloader()))
    batches, start = [], 0
    for size in group_sizes:
        part = slice(start, start + size)
        fields = (batch.features, batch.feature_lens, batch.texts, batch.cut_ids, batch.tokens, batch.token_lens)
        batches.append(type(batch)(*(field[part] for field in fields)))
        start += size
    assert start == len(batch.cut_ids)
    captured = {}

    def capture(optimizer) -> None:
        captured.update({n: p.grad.clone() for n, p in trainer.student.named_parameters() if p.grad is not None})

    trainer.precision.step = capture
    trainer.train_step(batches)
    return captured


@pytest.mark.slow
def test_accumulated_gradients_equal_those_of_a_larger_batch(tmp_path: Path):
    corpus = make_corpus(tmp_path, num_utterances=4, equal_lengths=True)
    config = experiment(tmp_path / "exp", corpus)
    whole, parts = gradients_of(config, [4]), gradients_of(config, [1, 3])
    assert whole.keys() == parts.keys()
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    difference = torch.stack([(whole[name] - parts[name]).norm() for name in whole]).norm()
    assert difference / norm < 1e-5


@pytest.mark.slow
def test_log_lines_and_tensorboard_are_icefalls(tmp_path: Path, data, teacher):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = experiment(tmp_path, data, num_epochs=1, tensorboard=True)
    process.train_experiment(
        replace(config, distill=DistillConfig(teacher_exp_dir=str(teacher), kd_relation_scale=0.1))
    )
    (log,) = (tmp_path / "log").glob("log-train-*")
    text = log.read_text()
    number = r"[\d.e+-]+"
    assert "Number of model parameters: " in text
    loss = rf"loss={number}, simple_loss={number}, pruned_loss={number}"
    kd = rf"feature_loss={number}, relation_loss={number}, apc_loss={number}"
    for pattern in (
        rf"INFO \[loop\.py:\d+\] Epoch 1, batch 2, loss\[{loss}, {kd}, over {number} frames\. \], "
        rf"tot_loss\[{loss}, {kd}, over {number} frames\. \], batch size: \d+, lr: {number}",
        rf"Epoch 1, validation: {loss}, over {number} frames\. ",
    ):
        assert re.search(pattern, text), pattern
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = {"train/learning_rate", "train/epoch", "train/current_loss", "train/tot_apc_loss", "train/valid_loss"}
    assert names <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_stops_at_max_train_batches_with_a_checkpoint(tmp_path: Path, data):
    losses = record(experiment(tmp_path, data, max_train_batches=2))
    assert list(losses) == [1, 2]
    assert store.latest_checkpoint(tmp_path).name == "checkpoint-2.pt"
    assert record(experiment(tmp_path, data, max_train_batches=2, resume=True)) == {}


@pytest.mark.slow
def test_finished_training_is_not_repeated(tmp_path: Path, data):
    record(experiment(tmp_path, data, num_epochs=1))
    before = (tmp_path / "epoch-1.pt").stat().st_mtime_ns
    assert record(experiment(tmp_path, data, num_epochs=1, resume=True)) == {}
    assert (tmp_path / "epoch-1.pt").stat().st_mtime_ns == before


def poison(monkeypatch, bad_ids, error: Exception | None = None) -> None:
    """Makes the loss of every batch with one of the cuts infinite, or raises `error` for it."""
    original = gradients.compute_loss

    def compute(module, batch, *rest):
        loss, metrics = original(module, batch, *rest)
        if bad_ids is None or set(bad_ids) & set(batch.cut_ids):
            if error is not None:
                raise error
            loss, metrics["loss"] = loss * float("inf"), torch.tensor(float("inf"))
        return loss, metrics

    monkeypatch.setattr(gradients, "compute_loss", compute)


@pytest.mark.slow
def test_batch_without_finite_loss_is_left_out_and_named(tmp_path: Path, data, monkeypatch, caplog):
    poison(monkeypatch, ["utterance-05"])
    with caplog.at_level(logging.WARNING):
        losses = record(experiment(tmp_path, data, num_epochs=1))
    assert "not finite" in caplog.text and "utterance-05" in caplog.text
    assert sum(loss == float("inf") for loss in losses.values()) == 1  # that step has no frames
    saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert 0 < saved["best_train_loss"] < float("inf")


@pytest.mark.slow
def test_ten_batches_without_finite_loss_end_the_training(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, None)
    with pytest.raises(UserError, match="bad-model-0.pt: 10 batches in a row"):
        process.train_experiment(experiment(tmp_path, data, num_epochs=9))
    store.load_checkpoint(tmp_path / "bad-model-0.pt")


@pytest.mark.slow
def test_a_training_that_gave_up_goes_on_as_its_message_says(tmp_path: Path, data, monkeypatch):
    original = loop.Precision.step

    def step(precision, optimizer) -> None:
        original(precision, optimizer)
        if optimizer.param_groups[0]["lr"] > 0.01 and len(list(tmp_path.glob("epoch-*.pt"))) == 1:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.data.fill_(float("nan"))

    monkeypatch.setattr(loop.Precision, "step", step)
    config = experiment(tmp_path, data, num_epochs=9, base_lr=0.2)
    with pytest.raises(UserError, match="move away epoch-.*, and go on with --resume 1") as said:
        process.train_experiment(config)
    named = re.findall(r"\S+-\d+\.pt", said.value.fix)
    assert "epoch-2.pt" in named and "epoch-1.pt" not in named
    for name in named:
        (tmp_path / name).unlink()
    losses = record(replace(config, train=replace(config.train, resume=True, base_lr=0.01, num_epochs=2)))
    assert min(losses) == store.load_checkpoint(tmp_path / "epoch-1.pt")["batch_idx_train"] + 1
    assert max(losses.values()) < float("inf")


@pytest.mark.slow
def test_batches_without_finite_loss_that_are_not_in_a_row_end_nothing(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, ["utterance-05"])
    monkeypatch.setattr(loop, "MAX_BAD_BATCHES", 3)
    losses = record(experiment(tmp_path, data, num_epochs=4))
    assert sum(loss == float("inf") for loss in losses.values()) == 4  # one in each epoch


def test_batch_that_raises_is_noted_with_its_cuts(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, ["utterance-05"], RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        process.train_experiment(experiment(tmp_path, data, num_epochs=1))
    (note,) = tmp_path.glob("batch-*.json")
    noted = json.loads(note.read_text())
    assert noted["error"] == "RuntimeError: boom"
    (cut,) = [cut for cut in noted["cuts"] if cut["id"] == "utterance-05"]
    assert cut["seconds"] > 1 and cut["tokens"] > 3 and cut["text"]


@pytest.mark.slow
def test_a_resumed_epoch_is_read_from_its_window_on_and_the_next_from_its_first(
    tmp_path: Path, data, monkeypatch, caplog
):
    read, original = [], TrainingCuts.windows

    def windows(cuts, epoch, order, first):
        read.append((epoch, first))
        return original(cuts, epoch, order, first)

    monkeypatch.setattr(TrainingCuts, "windows", windows)
    monkeypatch.setattr(module, "windows_of", partial(windows_of, size=4))
    monkeypatch.setattr(memory, "max_memory_mb", lambda device: 0)
    config = experiment(tmp_path, data, save_every_n=1)
    record(config, kill_before=4)
    trainer = make_trainer(config)
    trainer.restore(tmp_path / "checkpoint-3.pt")
    read.clear()
    with caplog.at_level(logging.INFO):
        trainer.scan_for_oom()
        trainer.train()
    (scanned, resumed, following) = read
    assert scanned == (1, 0) and resumed[0] == 1 and resumed[1] > 0 and following == (2, 0)
    told = [line for line in caplog.messages if "of what is computed is padding" in line]
    assert [line.split(":")[0] for line in told] == ["Epoch 1", "Epoch 2"]  # no line of what was only scanned
    assert store.load_checkpoint(tmp_path / "epoch-1.pt")["sampler"] == {"epoch": 2, "batch": 0, "window": (0, 0)}


@pytest.mark.slow
def test_unreadable_cut_ends_the_training_but_loses_nothing(tmp_path: Path, data):
    whole = record(experiment(tmp_path / "whole", data))

    class Breaking(AsrDataModule):
        def train_dataloader(self, *args, **kwargs):
            loader = super().train_dataloader(*args, **kwargs)
            whole = iter(loader)

            def batches():
                for index, batch in enumerate(whole):
                    if index == 2:
                        raise UserError("u.wav: cut short")
                    yield batch

            loader.__class__ = type("Loader", (type(loader),), {"__iter__": lambda self: batches()})
            return loader

    original, process.AsrDataModule = process.AsrDataModule, Breaking
    try:
        with pytest.raises(UserError, match="u.wav: cut short"):
            process.train_experiment(experiment(tmp_path / "broken", data))
    finally:
        process.AsrDataModule = original
    rest = record(experiment(tmp_path / "broken", data, resume=True))
    assert min(rest) == 3
    assert rest == pytest.approx({step: whole[step] for step in rest}, abs=1e-6)


@pytest.mark.slow
def test_the_best_epoch_is_the_one_whose_last_weights_are_best(tmp_path: Path, data, monkeypatch):
    steps = len(record(experiment(tmp_path / "one", data, num_epochs=1)))
    # at the ends of epochs 1 and 2, and between them in mid-epoch
    losses = iter([2.0, 0.5, 3.0])
    validation = lambda *args: MetricsTracker(loss=next(losses), frames=1.0)  # noqa: E731
    monkeypatch.setattr(loop, "validation_loss", validation)
    record(experiment(tmp_path / "two", data, num_epochs=2, valid_interval=steps + 1))
    best, first = (store.load_checkpoint(tmp_path / "two" / name) for name in ("best-valid-loss.pt", "epoch-1.pt"))
    assert (best["best_valid_loss"], best["best_valid_epoch"], best["batch_idx_train"]) == (2.0, 1, steps)
    assert all(torch.equal(value, first["model"][name]) for name, value in best["model"].items())
    assert next(losses, None) is None


@pytest.mark.slow
def test_diagnostics_are_printed_and_nothing_is_written(tmp_path: Path, data, capsys):
    process.train_experiment(experiment(tmp_path, data, print_diagnostics=True, inf_check=True))
    printed = capsys.readouterr().out
    assert "model.encoder_embed.conv.0" in printed and "model.joiner.output_linear.weight" in printed
    assert not list(tmp_path.glob("*.pt")) and not (tmp_path / "config.json").exists()
