"""The training loop: it resumes exactly, scales over processes and batches, and survives bad input."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.checkpoints import store
from kdstream.commands import run as run_command
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, DistillConfig, TrainConfig
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from kdstream.models.scaling import ScheduledFloat
from kdstream.models.streaming import ChunkConfig
from kdstream.training import dist, loop
from kdstream.training.experiment import with_teacher_epoch, with_vocabulary
from kdstream.training.metrics import MetricsTracker
from kdstream.training.step import StudentWithBranches, chunk_choices, draw_chunk, transducer_weights, validation_loss
from support.paths import ROOT
from support.training import experiment, make_corpus


class Killed(BaseException):
    """Ends a training the way a signal does."""


class RecordingTrainer(loop.Trainer):
    """A Trainer that remembers its losses by step, and can be killed before a step."""

    losses: dict[int, float] = {}
    kill_before: int | None = None

    def train_step(self, batches) -> MetricsTracker:
        if self.progress.batch_idx_train + 1 == self.kill_before:
            raise Killed
        metrics = super().train_step(batches)
        self.losses[self.progress.batch_idx_train] = metrics.mean()
        return metrics


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_utterances=12)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data: DataConfig) -> Path:
    """An exp-dir of a teacher that was trained for three steps."""
    exp_dir = tmp_path_factory.mktemp("teacher") / "exp"
    loop.run(experiment(exp_dir, data, causal=False, num_epochs=1, average_period=1))
    return exp_dir


def record(config: ExperimentConfig, kill_before: int | None = None) -> dict[int, float]:
    """Trains (until killed) and returns the losses by step."""
    recorder = type("Recorder", (RecordingTrainer,), {"losses": {}, "kill_before": kill_before})
    original, loop.Trainer = loop.Trainer, recorder
    try:
        loop.run(config)
    except Killed:
        pass
    finally:
        loop.Trainer = original
    return recorder.losses


def make_trainer(config: ExperimentConfig) -> loop.Trainer:
    data = AsrDataModule(config.data, config.train.seed)
    Path(config.train.exp_dir).mkdir(parents=True, exist_ok=True)
    config = with_vocabulary(config, data.tokenizer.vocab_size)
    return loop.Trainer(config, data, torch.device("cpu"))


BRANCHES: dict[str, float] = {}  # the default
TOKENS_ALONE = dict(kd_feature_scale=0.0, kd_relation_scale=0.0, kd_apc_scale=0.0, kd_token_scale=0.5)  # no branch


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


def test_start_batch_and_start_epoch_name_the_checkpoint(tmp_path: Path, data):
    config = experiment(tmp_path, data, save_every_n=2, num_epochs=1)
    record(config)
    losses = record(replace(config, train=replace(config.train, start_batch=2)))
    assert min(losses) == 3
    losses = record(replace(config, train=replace(config.train, start_epoch=2, num_epochs=2)))
    assert min(losses) == store.load_checkpoint(tmp_path / "epoch-1.pt")["batch_idx_train"] + 1
    with pytest.raises(UserError, match="checkpoint-77.pt: no such checkpoint"):
        loop.run(replace(config, train=replace(config.train, start_batch=77)))


def run_and_record(config: ExperimentConfig, rank: int, world_size: int) -> None:
    """What each process of the test below runs."""
    torch.set_num_threads(1)
    losses: dict[int, float] = {}

    class Recorder(loop.Trainer):
        def train_step(self, batches) -> MetricsTracker:
            metrics = super().train_step(batches)
            losses[self.progress.batch_idx_train] = metrics.mean()
            return metrics

    loop.Trainer = Recorder
    loop.run(config, rank, world_size)
    (Path(config.train.exp_dir) / f"losses-{rank}.json").write_text(json.dumps(losses))


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path, data, teacher):
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_warmup_batches=4)
    one = replace(experiment(tmp_path / "one", data, accum_grad=2), distill=distill)
    two = replace(experiment(tmp_path / "two", data, world_size=2, master_port=29517), distill=distill)
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


def gradients(config: ExperimentConfig, group_sizes: list[int]) -> dict[str, torch.Tensor]:
    """The gradient that one step hands to the optimiser, from all utterances in batches of the given sizes."""
    trainer = make_trainer(config)
    trainer.student.eval()  # without dropout, the batches' randomness would differ
    batch = next(iter(trainer.data.valid_dataloader()))
    batches, start = [], 0
    for size in group_sizes:
        part = slice(start, start + size)
        fields = (batch.features, batch.feature_lens, batch.texts, batch.cut_ids)
        batches.append(type(batch)(*(field[part] for field in fields)))
        start += size
    assert start == len(batch.cut_ids)
    captured = {}

    def capture(optimizer) -> None:
        captured.update({n: p.grad.clone() for n, p in trainer.student.named_parameters() if p.grad is not None})

    trainer.precision.step = capture
    trainer.train_step(batches)
    return captured


def test_accumulated_gradients_equal_those_of_a_larger_batch(tmp_path: Path):
    corpus = make_corpus(tmp_path, num_utterances=4, equal_lengths=True)
    config = experiment(tmp_path / "exp", corpus)
    whole, parts = gradients(config, [4]), gradients(config, [1, 3])
    assert whole.keys() == parts.keys()
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    difference = torch.stack([(whole[name] - parts[name]).norm() for name in whole]).norm()
    assert difference / norm < 1e-5


def test_log_lines_and_tensorboard_are_icefalls(tmp_path: Path, data, teacher):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = experiment(tmp_path, data, num_epochs=1, tensorboard=True)
    loop.run(replace(config, distill=DistillConfig(teacher_exp_dir=str(teacher), kd_relation_scale=0.1)))
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


def test_exp_dir_says_everything_that_later_scripts_need(tmp_path: Path, data):
    loop.run(experiment(tmp_path, data, num_epochs=1, use_bf16=True))
    loaded = ExperimentConfig.load(tmp_path)
    assert loaded.model.vocab_size > 3 and loaded.data == data
    saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
    assert saved["speech_seconds_trained"] > 10 and saved["compute_seconds"] > 0
    assert saved["cur_epoch"] == 1 and saved["average_period"] == 2 and saved["branches"] is None
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert (tmp_path / "best-train-loss.pt").read_bytes() == (tmp_path / "epoch-1.pt").read_bytes()
    assert (tmp_path / "best-valid-loss.pt").is_file()


def test_stops_at_max_train_batches_with_a_checkpoint(tmp_path: Path, data):
    losses = record(experiment(tmp_path, data, max_train_batches=2))
    assert list(losses) == [1, 2]
    assert store.latest_checkpoint(tmp_path).name == "checkpoint-2.pt"
    assert record(experiment(tmp_path, data, max_train_batches=2, resume=True)) == {}


def test_finished_training_is_not_repeated(tmp_path: Path, data):
    record(experiment(tmp_path, data, num_epochs=1))
    before = (tmp_path / "epoch-1.pt").stat().st_mtime_ns
    assert record(experiment(tmp_path, data, num_epochs=1, resume=True)) == {}
    assert (tmp_path / "epoch-1.pt").stat().st_mtime_ns == before


def test_earlier_training_is_not_overwritten(tmp_path: Path, data):
    record(experiment(tmp_path, data, num_epochs=1))
    with pytest.raises(UserError, match="epoch-1.pt of an earlier training; go on with --resume 1"):
        loop.run(experiment(tmp_path, data))
    other = experiment(tmp_path, data, resume=True)
    with pytest.raises(UserError, match=r"another model \(decoder_dim 64 there, 32 now\)"):
        loop.run(replace(other, model=replace(other.model, decoder_dim=32)))


def poison(monkeypatch, bad_ids, error: Exception | None = None) -> None:
    """Makes the loss of every batch with one of the cuts infinite, or raises `error` for it."""
    original = loop.compute_loss

    def compute(module, batch, *rest):
        loss, metrics = original(module, batch, *rest)
        if bad_ids is None or set(bad_ids) & set(batch.cut_ids):
            if error is not None:
                raise error
            loss, metrics["loss"] = loss * float("inf"), float("inf")
        return loss, metrics

    monkeypatch.setattr(loop, "compute_loss", compute)


def test_batch_without_finite_loss_is_left_out_and_named(tmp_path: Path, data, monkeypatch, caplog):
    poison(monkeypatch, ["utterance-05"])
    with caplog.at_level(logging.WARNING):
        losses = record(experiment(tmp_path, data, num_epochs=1))
    assert "not finite" in caplog.text and "utterance-05" in caplog.text
    assert sum(loss == float("inf") for loss in losses.values()) == 1  # that step has no frames
    saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert 0 < saved["best_train_loss"] < float("inf")


def test_ten_batches_without_finite_loss_end_the_training(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, None)
    with pytest.raises(UserError, match="bad-model-0.pt: 10 batches in a row"):
        loop.run(experiment(tmp_path, data, num_epochs=9))
    store.load_checkpoint(tmp_path / "bad-model-0.pt")


def test_batches_without_finite_loss_that_are_not_in_a_row_end_nothing(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, ["utterance-05"])
    monkeypatch.setattr(loop, "MAX_BAD_BATCHES", 3)
    losses = record(experiment(tmp_path, data, num_epochs=4))
    assert sum(loss == float("inf") for loss in losses.values()) == 4  # one in each epoch


def test_batch_that_raises_is_noted_with_its_cuts(tmp_path: Path, data, monkeypatch):
    poison(monkeypatch, ["utterance-05"], RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        loop.run(experiment(tmp_path, data, num_epochs=1))
    (note,) = tmp_path.glob("batch-*.json")
    noted = json.loads(note.read_text())
    assert noted["error"] == "RuntimeError: boom"
    (cut,) = [cut for cut in noted["cuts"] if cut["id"] == "utterance-05"]
    assert cut["seconds"] > 1 and cut["tokens"] > 3 and cut["text"]


def test_unreadable_cut_ends_the_training_but_loses_nothing(tmp_path: Path, data):
    whole = record(experiment(tmp_path / "whole", data))

    class Breaking(AsrDataModule):
        def train_dataloader(self, *args, **kwargs):
            loader = super().train_dataloader(*args, **kwargs)

            def batches():
                for index, batch in enumerate(loader):
                    if index == 2:
                        raise UserError("u.wav: cut short")
                    yield batch

            batches_ = type("Loader", (), {"__iter__": lambda self: batches(), "num_batches": loader.num_batches})
            return batches_()

    original, loop.AsrDataModule = loop.AsrDataModule, Breaking
    try:
        with pytest.raises(UserError, match="u.wav: cut short"):
            loop.run(experiment(tmp_path / "broken", data))
    finally:
        loop.AsrDataModule = original
    rest = record(experiment(tmp_path / "broken", data, resume=True))
    assert min(rest) == 3
    assert rest == pytest.approx({step: whole[step] for step in rest}, abs=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(train=dict(use_fp16=True)), "--use-fp16: needs a GPU"),
        (dict(train=dict(use_fp16=True, use_bf16=True)), "give one of them"),
        (dict(model=dict(chunk_size=(6,), left_context_frames=(12,))), "chunk 6: not a multiple of 4"),
        (dict(model=dict(chunk_size=(8,), left_context_frames=(12,))), "left context 12: not a multiple of chunk 8"),
        (dict(model=dict(chunk_size=(0,))), "--chunk-size 0: chunks have 1 encoder frame or more"),
        (dict(model=dict(preset="huge")), "--preset huge: unknown"),
        (dict(distill=dict(teacher_exp_dir="nowhere")), "config.json: no such file"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(tmp_path: Path, data, change, message: str):
    if torch.cuda.is_available() and "needs a GPU" in message:
        pytest.skip("this machine has a GPU")
    config = experiment(tmp_path, data)
    config = replace(config, **{name: replace(getattr(config, name), **values) for name, values in change.items()})
    with pytest.raises(UserError, match=message) as info:
        loop.run(config)
    assert "\n" not in str(info.value)


def test_a_refused_start_leaves_config_json_as_it_was(tmp_path: Path, data, teacher):
    record(experiment(tmp_path, data, num_epochs=1))
    before = (tmp_path / "config.json").read_bytes()
    guided = replace(experiment(tmp_path, data, resume=True), distill=DistillConfig(teacher_exp_dir=str(teacher)))
    with pytest.raises(UserError, match="branches"):
        loop.run(guided)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="no such file"):
        loop.run(replace(experiment(tmp_path / "new", data), distill=DistillConfig(teacher_exp_dir="nowhere")))
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_resumed_training_names_the_settings_that_have_changed(tmp_path: Path, data, caplog):
    record(experiment(tmp_path, data, num_epochs=1))
    with caplog.at_level(logging.WARNING):
        record(experiment(tmp_path, data, num_epochs=1, resume=True))
    assert "other settings" not in caplog.text
    with caplog.at_level(logging.WARNING):
        record(experiment(tmp_path, data, num_epochs=2, base_lr=0.01, resume=True))
    assert "config.json: this start has other settings: --num-epochs 1 there, 2 now; --base-lr" in caplog.text
    assert "--base-lr 0.045 there, 0.01 now\n" in caplog.text


def test_a_resumed_training_keeps_its_teacher_though_that_has_been_trained_further(tmp_path: Path, data, teacher):
    exp_dir = tmp_path / "teacher"
    shutil.copytree(teacher, exp_dir)
    distill = DistillConfig(teacher_exp_dir=str(exp_dir), teacher_use_averaged_model=False)
    loop.run(replace(experiment(tmp_path / "student", data, num_epochs=1), distill=distill))
    shutil.copy(exp_dir / "epoch-1.pt", exp_dir / "epoch-2.pt")
    loop.run(replace(experiment(tmp_path / "student", data, num_epochs=2, resume=True), distill=distill))
    assert ExperimentConfig.load(tmp_path / "student").distill.teacher_epoch == 1
    loop.run(replace(experiment(tmp_path / "later", data, num_epochs=1), distill=distill))
    assert ExperimentConfig.load(tmp_path / "later").distill.teacher_epoch == 2


@pytest.mark.parametrize(
    "begun, resumes, expected",
    [
        ({"teacher_epoch": 1}, True, 1),
        ({"teacher_epoch": 1, "teacher_exp_dir": "teacher/"}, True, 1),
        ({"teacher_epoch": 1}, False, 2),  # it reached no checkpoint
        ({"teacher_epoch": 0}, True, 2),
        ({"teacher_epoch": 1, "teacher_exp_dir": "other"}, True, 2),
    ],
)
def test_the_teachers_epoch_is_that_of_a_training_that_resumes(tmp_path, monkeypatch, begun, resumes, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher/epoch-1.pt", "teacher/epoch-2.pt", "student/config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    config = ExperimentConfig(train=TrainConfig(exp_dir="student"), distill=DistillConfig(teacher_exp_dir="teacher"))
    replace(config, distill=replace(config.distill, **begun)).save("student")
    assert with_teacher_epoch(config, resumes).distill.teacher_epoch == expected
    named = replace(config, distill=replace(config.distill, teacher_epoch=7))
    assert with_teacher_epoch(named, resumes) == named


def test_a_training_without_a_teacher_names_the_distillation_flags_it_was_given(tmp_path: Path, data, caplog):
    with caplog.at_level(logging.WARNING):
        loop.run(experiment(tmp_path / "plain", data, num_epochs=1))
    assert "no effect" not in caplog.text
    config = experiment(tmp_path / "flagged", data, num_epochs=1)
    with caplog.at_level(logging.WARNING):
        loop.run(replace(config, distill=DistillConfig(kd_apc_scale=1.0, kd_layers=("1.1",))))
    assert "no effect without a teacher (--teacher-exp-dir): --kd-layers, --kd-apc-scale\n" in caplog.text


def test_memory_is_tried_with_every_loss(tmp_path: Path, data, teacher, monkeypatch):
    config = experiment(tmp_path, data)
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_relation_scale=0.1, kd_token_scale=1.0)
    trainer = make_trainer(replace(config, distill=distill))
    tried = set()
    original = loop.compute_loss

    def compute(*args):
        loss, metrics = original(*args)
        tried.update(metrics)
        return loss, metrics

    monkeypatch.setattr(loop, "compute_loss", compute)
    monkeypatch.setattr(loop, "max_memory_mb", lambda device: 0)
    trainer.scan_for_oom()
    assert {"feature_loss", "relation_loss", "apc_loss", "token_loss"} <= tried
    assert all(p.grad is None for p in trainer.student.parameters())


def test_validation_leaves_out_a_batch_without_a_finite_loss(tmp_path: Path, data, caplog):
    trainer = make_trainer(experiment(tmp_path, data))
    good, bad = list(trainer.data.train_dataloader(1))[:2]
    arguments = trainer.data.tokenizer, None, torch.device("cpu")
    expected = validation_loss(trainer.student, [good], *arguments)
    bad.features = bad.features * float("nan")
    with caplog.at_level(logging.WARNING):
        assert validation_loss(trainer.student, [good, bad], *arguments) == expected
    assert f"cuts: {' '.join(bad.cut_ids)}" in caplog.text
    assert validation_loss(trainer.student, [bad], *arguments).mean() == float("inf")


def test_teacher_with_another_vocabulary_is_refused(tmp_path: Path, data, teacher):
    other = make_corpus(tmp_path, num_utterances=6)
    tokens = (tmp_path / "tokens.txt").read_text().replace("A", "Z")
    (tmp_path / "tokens.txt").write_text(tokens)
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_token_scale=1.0)
    config = replace(experiment(tmp_path / "exp", other), distill=distill)
    with pytest.raises(UserError, match="another vocabulary"):
        loop.run(config)


def test_diagnostics_are_printed_and_nothing_is_written(tmp_path: Path, data, capsys):
    loop.run(experiment(tmp_path, data, print_diagnostics=True, inf_check=True))
    printed = capsys.readouterr().out
    assert "model.encoder_embed.conv.0" in printed and "model.joiner.output_linear.weight" in printed
    assert not list(tmp_path.glob("*.pt")) and not (tmp_path / "config.json").exists()


def test_chunks_are_drawn_from_seed_and_step_alone(tmp_path: Path, data):
    config = experiment(tmp_path, data)
    model_config = replace(config.model, chunk_size=(8, 16, -1), left_context_frames=(16, 32, -1), vocab_size=10)
    model = loop.build_model(model_config)
    choices = chunk_choices(model_config, model)
    assert choices[0][0] == ChunkConfig(8, 16)  # validation's
    assert choices == [[ChunkConfig(c, left) for left in (16, 32, -1)] for c in (8, 16)] + [[None]]
    drawn = [draw_chunk(choices, 42, step) for step in range(300)]
    assert drawn == [draw_chunk(choices, 42, step) for step in range(300)]
    assert drawn != [draw_chunk(choices, 43, step) for step in range(300)]
    assert set(drawn) == {chunk for group in choices for chunk in group}
    assert 60 < drawn.count(None) < 140  # each chunk size has the same chance
    assert chunk_choices(replace(model_config, causal=False), model) == [[None]]


def test_pruned_loss_takes_over_from_the_simple_loss(tmp_path: Path, data):
    train = replace(experiment(tmp_path, data).train, warm_step=100, simple_loss_scale=0.5)
    assert transducer_weights(train, 0) == {"simple_loss": 1.0, "pruned_loss": 0.1, "ctc_loss": 0.2}
    assert transducer_weights(train, 50)["simple_loss"] == pytest.approx(0.75)
    assert transducer_weights(train, 50)["pruned_loss"] == pytest.approx(0.55)
    assert transducer_weights(train, 100) == transducer_weights(train, None)
    assert transducer_weights(train, 100) == {"simple_loss": 0.5, "pruned_loss": 1.0, "ctc_loss": 0.2}


@pytest.mark.parametrize("settled", [False, True])
def test_delay_penalty_waits_until_the_student_can_hear_and_spares_validation(tmp_path: Path, data, settled):
    config = experiment(tmp_path, data, warm_step=100)
    penalised = replace(config.train, delay_penalty=0.2)
    model = make_trainer(config).model.eval()
    batch = next(iter(make_trainer(config).data.train_dataloader(1)))
    chunk = ChunkConfig(8, 16)

    def loss(train, step):
        student = StudentWithBranches(model, None, train, settled)
        return student(batch, [[3, 4, 5]] * len(batch.texts), chunk, step)[0].item()

    difference = {step: loss(penalised, step) - loss(config.train, step) for step in (0, 199, 200, None)}
    assert difference[None] == 0
    assert abs(difference[200]) > 1e-3
    for early in (0, 199):
        assert difference[early] == (pytest.approx(difference[200], rel=1e-4) if settled else 0)


@pytest.mark.parametrize("from_teacher", [False, True])
def test_student_with_the_teachers_weights_starts_where_schedules_end(tmp_path: Path, data, teacher, from_teacher):
    config = experiment(tmp_path, data, warm_step=10**9)
    distill = DistillConfig(teacher_exp_dir=str(teacher), init_from_teacher=from_teacher, kd_warmup_batches=10**9)
    trainer = make_trainer(replace(config, distill=distill))
    trainer.scheduler.step_epoch(0)
    metrics = trainer.train_step([next(iter(trainer.data.train_dataloader(1)))])
    simple, pruned = (0.5, 1.0) if from_teacher else (1.0, 0.1)  # nothing yet of the guiding losses
    expected = simple * metrics["simple_loss"] + pruned * metrics["pruned_loss"]
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)

    def counts(module):
        return {part.batch_count for part in module.modules() if isinstance(part, ScheduledFloat)}

    assert counts(trainer.model) == {100_000 if from_teacher else 0}


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "egs" / "librispeech" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_script_trains_from_flags_and_ends_with_one_line_on_bad_input(tmp_path: Path, data, monkeypatch):
    script = load_script("train")
    command = f"train.py --exp-dir {tmp_path / 'exp'} --bpe-model {data.bpe_model} --train-cuts {data.train_cuts[0]} "
    command += f"--valid-cuts {data.valid_cuts[0]} --max-duration 8 --num-workers 0 --max-train-batches 1 "
    command += "--tensorboard 0 --causal 1 --chunk-size 8 --left-context-frames 32 --enable-spec-aug 0 "
    command += "--num-encoder-layers 1,1 --downsampling-factor 1,2 --encoder-dim 32 --encoder-unmasked-dim 32 "
    command += "--feedforward-dim 32 --cnn-module-kernel 15"
    monkeypatch.setattr(sys, "argv", command.split())
    run_command(script.main)
    config = ExperimentConfig.load(tmp_path / "exp")
    assert config.model.encoder_dim == (32, 32) and config.model.chunk_size == (8,)
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "enormous"])
    with pytest.raises(SystemExit, match="^error: --preset enormous: unknown for --encoder zipformer; use one of tiny"):
        run_command(script.main)
