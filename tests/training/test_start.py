"""How a training starts: with which settings, from which checkpoint, and what it refuses to replace."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.checkpoints import store
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.training import loop
from kdstream.training.process import train_experiment
from kdstream.training.start import with_teacher_epoch
from support.decoding import run_script
from support.recording import record
from support.training import experiment, make_corpus

pytestmark = pytest.mark.slow


def test_exp_dir_says_everything_that_later_scripts_need(tmp_path: Path, data):
    train_experiment(experiment(tmp_path, data, num_epochs=1, use_bf16=True))
    written, loaded = ExperimentConfig.as_written(tmp_path), ExperimentConfig.load(tmp_path)
    assert written.model.vocab_size > 3 and written.data == data
    assert loaded == replace(written, data=replace(data, bpe_model=str(tmp_path / "bpe.model")))
    for name in ("bpe.model", "tokens.txt"):
        assert (tmp_path / name).read_bytes() == Path(data.bpe_model).with_name(name).read_bytes()
    saved = store.load_checkpoint(tmp_path / "epoch-1.pt")
    assert saved["speech_seconds_trained"] > 10 and saved["compute_seconds"] > 0
    assert saved["cur_epoch"] == 1 and saved["average_period"] == 2 and saved["branches"] is None
    assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert (tmp_path / "best-train-loss.pt").read_bytes() == (tmp_path / "epoch-1.pt").read_bytes()
    assert (tmp_path / "best-valid-loss.pt").is_file()


def test_start_batch_and_start_epoch_name_the_checkpoint(tmp_path: Path, data):
    config = experiment(tmp_path, data, save_every_n=2, num_epochs=1)
    record(config, kill_before=4)
    losses = record(replace(config, train=replace(config.train, start_batch=2)))
    assert min(losses) == 3
    losses = record(replace(config, train=replace(config.train, start_epoch=2, num_epochs=2)))
    assert min(losses) == store.load_checkpoint(tmp_path / "epoch-1.pt")["batch_idx_train"] + 1
    with pytest.raises(UserError, match="checkpoint-77.pt: no such checkpoint"):
        train_experiment(replace(config, train=replace(config.train, start_batch=77)))


def test_to_go_back_where_later_checkpoints_lie_is_refused_and_works_elsewhere(tmp_path: Path, data):
    config = experiment(tmp_path / "exp", data, save_every_n=2, num_epochs=2)
    last = max(record(config))
    steps = store.load_checkpoint(tmp_path / "exp" / "epoch-1.pt")["batch_idx_train"]
    back = replace(config, train=replace(config.train, start_epoch=2, base_lr=0.01))
    before = sorted((tmp_path / "exp").glob("*.pt"))
    with pytest.raises(UserError, match="than epoch-1.pt lie in it: epoch-2.pt, checkpoint-.*; .* copy epoch-1.pt and"):
        train_experiment(back)
    assert sorted((tmp_path / "exp").glob("*.pt")) == before
    train_experiment(replace(back, train=replace(back.train, print_diagnostics=True)))  # it writes nothing
    (tmp_path / "exp" / "epoch-2.pt").unlink()
    with pytest.raises(UserError, match="in it: checkpoint-"):  # those of an epoch that was interrupted
        train_experiment(back)

    (tmp_path / "other").mkdir()
    for name in ("epoch-1.pt", "config.json"):
        shutil.copy(tmp_path / "exp" / name, tmp_path / "other")
    losses = record(replace(back, train=replace(back.train, exp_dir=str(tmp_path / "other"), keep_last_k=1)))
    assert (min(losses), max(losses)) == (steps + 1, last)
    assert store.load_checkpoint(store.latest_checkpoint(tmp_path / "other"))["base_lr"] == 0.01


def test_earlier_training_is_not_overwritten(tmp_path: Path, data):
    record(experiment(tmp_path, data, num_epochs=1))
    with pytest.raises(UserError, match="epoch-1.pt of an earlier training; go on with --resume 1"):
        train_experiment(experiment(tmp_path, data))
    other = experiment(tmp_path, data, resume=True)
    with pytest.raises(UserError, match=r"another model \(decoder_dim 64 there, 32 now\)"):
        train_experiment(replace(other, model=replace(other.model, decoder_dim=32)))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(train=dict(use_fp16=True)), "--use-fp16: needs a GPU"),
        (dict(train=dict(use_fp16=True, use_bf16=True)), "give one of them"),
        (dict(model=dict(chunk_size=(6,), left_context_frames=(12,))), "chunk 6: not a multiple of 4"),
        (dict(model=dict(chunk_size=(8,), left_context_frames=(12,))), "left context 12: not a multiple of chunk 8"),
        (dict(model=dict(chunk_size=(0,))), "--chunk-size 0: must be 1 encoder frame or more"),
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
        train_experiment(config)
    assert "\n" not in str(info.value)


def test_a_refused_start_leaves_config_json_as_it_was(tmp_path: Path, data, teacher):
    record(experiment(tmp_path, data, num_epochs=1))
    before = (tmp_path / "config.json").read_bytes()
    guided = replace(experiment(tmp_path, data, resume=True), distill=DistillConfig(teacher_exp_dir=str(teacher)))
    with pytest.raises(UserError, match="began with other distillation .*--teacher-exp-dir '' there"):
        train_experiment(guided)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="no such file"):
        train_experiment(replace(experiment(tmp_path / "new", data), distill=DistillConfig(teacher_exp_dir="nowhere")))
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_start_that_failed_late_blocks_no_other_settings(tmp_path: Path, data, monkeypatch):
    def unreadable(self) -> None:
        raise UserError("u.wav: cut short")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "train", unreadable)
        with pytest.raises(UserError, match="cut short"):
            train_experiment(experiment(tmp_path, data))
    assert (tmp_path / "config.json").exists() and not store.has_begun(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"another one")
    (tmp_path / "tokens.txt").write_text("another one")
    (tmp_path / ".config.json.tmp").touch()  # killed while it wrote
    other = experiment(tmp_path, data, num_epochs=1, resume=True)
    train_experiment(replace(other, model=replace(other.model, decoder_dim=32)))
    assert ExperimentConfig.load(tmp_path).model.decoder_dim == 32 and not (tmp_path / ".config.json.tmp").exists()
    for name in ("bpe.model", "tokens.txt"):
        assert (tmp_path / name).read_bytes() == Path(data.bpe_model).with_name(name).read_bytes()


def test_teacher_with_another_vocabulary_is_refused(tmp_path: Path, data, teacher):
    other = make_corpus(tmp_path, num_utterances=6)
    tokens = (tmp_path / "tokens.txt").read_text().replace("A", "Z")
    (tmp_path / "tokens.txt").write_text(tokens)
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_token_scale=1.0)
    config = replace(experiment(tmp_path / "exp", other), distill=distill)
    with pytest.raises(UserError, match="another vocabulary"):
        train_experiment(config)


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
    train_experiment(replace(experiment(tmp_path / "student", data, num_epochs=1), distill=distill))
    shutil.copy(exp_dir / "epoch-1.pt", exp_dir / "epoch-2.pt")
    train_experiment(replace(experiment(tmp_path / "student", data, num_epochs=2, resume=True), distill=distill))
    assert ExperimentConfig.load(tmp_path / "student").distill.teacher_epoch == 1
    train_experiment(replace(experiment(tmp_path / "later", data, num_epochs=1), distill=distill))
    assert ExperimentConfig.load(tmp_path / "later").distill.teacher_epoch == 2


@pytest.mark.parametrize(
    "begun, resumes, expected",
    [
        ({"teacher_epoch": 1}, True, 1),
        ({"teacher_epoch": 1, "teacher_exp_dir": "teacher-8,16/"}, True, 1),
        ({"teacher_epoch": 1, "teacher_exp_dir": "student/../teacher-8,16"}, True, 1),
        ({"teacher_epoch": 1}, False, 2),  # it reached no checkpoint
        ({"teacher_epoch": 0}, False, 2),
        ({"teacher_epoch": 1, "teacher_exp_dir": "moved"}, True, 1),
        ({"teacher_epoch": 0, "teacher_exp_dir": "other"}, True, 2),
        ({"teacher_epoch": 0, "teacher_exp_dir": ""}, True, 2),
    ],
)
def test_the_teachers_epoch_is_that_of_a_training_that_resumes(tmp_path, monkeypatch, begun, resumes, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher-8,16/epoch-1.pt", "teacher-8,16/epoch-2.pt", "student/config.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    distill = DistillConfig(teacher_exp_dir="teacher-8,16")  # a comma in a path makes no second teacher
    config = ExperimentConfig(train=TrainConfig(exp_dir="student"), distill=distill)
    replace(config, distill=replace(config.distill, **begun)).save("student")
    assert with_teacher_epoch(config, resumes).distill.teacher_epoch == expected
    named = replace(config, distill=replace(config.distill, teacher_epoch=7))
    assert with_teacher_epoch(named, resumes) == named


def test_a_moved_teacher_without_the_epoch_that_a_training_began_with_is_refused(tmp_path: Path):
    config = ExperimentConfig(
        train=TrainConfig(exp_dir=str(tmp_path)), distill=DistillConfig(str(tmp_path / "teacher"))
    )
    replace(config, distill=DistillConfig("elsewhere", teacher_epoch=2)).save(tmp_path)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "epoch-3.pt").touch()
    message = "--teacher-exp-dir .*teacher: lacks epoch-2.pt, under which .* name another one by --teacher-epoch$"
    with pytest.raises(UserError, match=message):
        with_teacher_epoch(config, resumes=True)


@pytest.mark.slow
def test_other_distillation_flags_than_a_training_began_with_are_named(tmp_path: Path, data, teacher):
    ours = DistillConfig(str(teacher), teacher_epoch=1, kd_branch_feedforward_dim=32)
    begun = replace(experiment(tmp_path, data, max_train_batches=1), distill=ours)
    record(begun)
    goes_on = replace(begun, train=replace(begun.train, resume=True, max_train_batches=2))
    for distill, named in (
        (replace(ours, kd_branch="none"), "--kd-branch transformer there, none now"),
        (replace(ours, kd_apc_scale=0.0), r"--kd-apc-scale 0\.5 there, 0\.0 now"),
        (replace(ours, teacher_exp_dir=""), r"--teacher-exp-dir \S+ there, '' now"),
    ):
        message = rf"checkpoint-1\.pt: its training began with other distillation \({named}\); give the flags"
        with pytest.raises(UserError, match=message):
            record(replace(goes_on, distill=distill))
    record(replace(goes_on, distill=replace(ours, kd_apc_scale=0.25)))  # of the same branches
    assert (tmp_path / "checkpoint-2.pt").is_file()


def test_a_training_that_does_not_say_its_teachers_epoch_is_resumed_only_while_that_cannot_matter(tmp_path: Path):
    teacher = tmp_path / "teacher"
    config = ExperimentConfig(train=TrainConfig(exp_dir=str(tmp_path)), distill=DistillConfig(str(teacher)))
    config.save(tmp_path)
    assert with_teacher_epoch(config, resumes=True) == config  # the teacher is a bare pretrained.pt
    teacher.mkdir()
    (teacher / "epoch-3.pt").touch()
    with pytest.raises(UserError, match="--teacher-epoch 0: .*config.json names no epoch of .*, which has epoch-3.pt"):
        with_teacher_epoch(config, resumes=True)
    named = replace(config, distill=replace(config.distill, teacher_epoch=3))
    assert with_teacher_epoch(named, resumes=True) == named


def test_a_teacher_is_the_same_with_a_slash_at_its_end():
    assert DistillConfig(teacher_exp_dir="exp/teacher/") == DistillConfig(teacher_exp_dir="exp/teacher")


def test_another_tokenizer_is_refused_and_the_kept_one_stays(tmp_path: Path, data):
    config = experiment(tmp_path / "exp", data, num_epochs=1, max_train_batches=1)
    train_experiment(config)
    kept = {name: (tmp_path / "exp" / name).read_bytes() for name in ("bpe.model", "tokens.txt", "config.json")}
    other = tmp_path / "other" / "bpe.model"
    other.parent.mkdir()
    other.write_bytes(Path(data.bpe_model).read_bytes() + b"\x1a\x00")  # reads alike, and is another file
    changed = replace(config, train=replace(config.train, resume=True), data=replace(data, bpe_model=str(other)))
    message = (
        f"--bpe-model {other}: is not {tmp_path / 'exp' / 'bpe.model'}, with which this training began; give --bpe"
    )
    with pytest.raises(UserError, match=message):
        train_experiment(changed)
    assert {name: (tmp_path / "exp" / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize("beside", [None, "<blk> 0\nX 1\n"])
def test_tokens_are_those_of_the_tokenizer_whatever_lies_beside_it(tmp_path: Path, data, beside):
    shutil.copy(data.bpe_model, tmp_path)
    if beside is not None:
        (tmp_path / "tokens.txt").write_text(beside)
    moved = replace(data, bpe_model=str(tmp_path / "bpe.model"))
    train_experiment(experiment(tmp_path / "exp", moved, max_train_batches=1))
    assert (tmp_path / "exp" / "tokens.txt").read_bytes() == Path(data.bpe_model).with_name("tokens.txt").read_bytes()


def test_a_training_without_a_teacher_names_the_distillation_flags_it_was_given(tmp_path: Path, data, caplog):
    with caplog.at_level(logging.WARNING):
        train_experiment(experiment(tmp_path / "plain", data, num_epochs=1))
    assert "no effect" not in caplog.text
    config = experiment(tmp_path / "flagged", data, num_epochs=1)
    with caplog.at_level(logging.WARNING):
        train_experiment(replace(config, distill=DistillConfig(kd_apc_scale=1.0, kd_layers=("1.1",))))
    assert "no effect without a teacher (--teacher-exp-dir): --kd-layers, --kd-apc-scale\n" in caplog.text


def test_a_share_of_cuts_that_are_not_given_is_named(tmp_path: Path, data, caplog):
    shares = replace(data, pseudo_ratio=0.3, unlabelled_ratio=0.2)
    with caplog.at_level(logging.WARNING):
        train_experiment(experiment(tmp_path, shares, num_epochs=1, max_train_batches=1))
    assert "--pseudo-ratio 0.3: has no effect without --pseudo-cuts\n" in caplog.text
    assert "--unlabelled-ratio 0.2: has no effect without --unlabelled-cuts\n" in caplog.text


def test_a_training_that_finds_nothing_to_resume_says_so(tmp_path: Path, data, caplog):
    config = experiment(tmp_path, data, num_epochs=1, max_train_batches=1)
    resuming = replace(config, train=replace(config.train, resume=True))
    said = f"--resume 1: {tmp_path} holds no checkpoint, so training starts anew"
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            train_experiment(resuming)
        assert caplog.text.count(said) == 1  # the second time there is one


def test_script_trains_from_flags_and_ends_with_one_line_on_bad_input(tmp_path: Path, data, monkeypatch):
    flags = f"--exp-dir {tmp_path / 'exp'} --bpe-model {data.bpe_model} --train-cuts {data.train_cuts[0]} "
    flags += f"--valid-cuts {data.valid_cuts[0]} --max-duration 8 --num-workers 0 --max-train-batches 1 "
    flags += "--tensorboard 0 --causal 1 --chunk-size 8 --left-context-frames 32 --enable-spec-aug 0 "
    flags += "--num-encoder-layers 1,1 --downsampling-factor 1,2 --encoder-dim 32 --encoder-unmasked-dim 32 "
    flags += "--feedforward-dim 32 --cnn-module-kernel 15"
    assert run_script(monkeypatch, "egs/librispeech/train.py", *flags.split()) == ""
    config = ExperimentConfig.load(tmp_path / "exp")
    assert config.model.encoder_dim == (32, 32) and config.model.chunk_size == (8,)
    message = run_script(monkeypatch, "egs/librispeech/train.py", "--preset", "enormous", "--bpe-model", data.bpe_model)
    assert message.startswith("error: --preset enormous: unknown for --encoder zipformer; use one of tiny")
