"""Trainings that begin with weights from elsewhere, --init-checkpoint: what they do, and what their flags refuse."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import save_file

from kdstream.checkpoints.store import load_checkpoint
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flag_value, flags_of
from kdstream.config.sections import DataConfig, ModelConfig
from kdstream.errors import UserError
from kdstream.models.scaling import ScheduledFloat
from kdstream.models.transducer import build_model
from kdstream.training import loop
from kdstream.training.process import train_experiment
from kdstream.training.start import warn_of_high_learning_rate
from kdstream.training.weights import batch_count_at_start, prunes_from_the_start, with_same_beginning
from support.decoding import run_script
from support.golden import Golden
from support.models import difference
from support.recording import make_trainer, record
from support.training import experiment, train_tokenizer

pytestmark = pytest.mark.slow
ONE_STEP: dict[str, Any] = dict(num_epochs=1, max_train_batches=1, base_lr=1e-9)  # as good as none


def flags_of_model(config: ModelConfig) -> list[str]:
    values = {item.name: getattr(config, item.name) for item in flags_of(ModelConfig)}
    return [f"--{name.replace('_', '-')}={flag_value(value)}" for name, value in values.items() if value is not None]


@pytest.fixture(scope="module")
def thirty(data: DataConfig, tmp_path_factory) -> DataConfig:
    """The corpus with as many tokens as the golden models have."""
    model = train_tokenizer(tmp_path_factory.mktemp("lang"), more=[f"<{n}>" for n in range(12)])
    return replace(data, bpe_model=str(model))


@pytest.mark.parametrize(
    "name, file", [("noncausal", "pretrained.pt"), ("causal", "epoch-30.pt"), ("causal", "x.safetensors")]
)
def test_icefalls_checkpoint_starts_a_streaming_student_from_the_command_line(
    tmp_path, thirty, monkeypatch, name, file
):
    golden = Golden(name)
    weights = {key: value.contiguous() for key, value in golden.model.state_dict().items()}
    more = {"attention_decoder.decoder.weight": torch.zeros(3)}
    if file == "epoch-30.pt":  # with what icefall's training keeps beside the weights
        torch.save(
            {"model": weights | more, "model_avg": weights, "exp_dir": Path("zipformer/exp"), "batch_idx_train": 9},
            tmp_path / file,
        )
    elif file == "pretrained.pt":
        torch.save({"model": weights | more}, tmp_path / file)
    else:
        save_file(weights | more, tmp_path / file)
    flags = ["--exp-dir", tmp_path / "exp", "--init-checkpoint", tmp_path / file, "--base-lr", 1e-9]
    flags += [
        "--bpe-model",
        thirty.bpe_model,
        "--train-cuts",
        thirty.train_cuts[0],
        "--valid-cuts",
        thirty.valid_cuts[0],
    ]
    flags += ["--max-duration", 5, "--num-workers", 0, "--max-train-batches", 1, "--tensorboard", 0]
    flags += flags_of_model(replace(golden.model.config, causal=True, chunk_size=(16,), left_context_frames=(64,)))
    assert run_script(monkeypatch, "egs/librispeech/train.py", *flags) == ""
    saved = load_checkpoint(tmp_path / "exp" / "checkpoint-1.pt")
    student = build_model(ExperimentConfig.load(tmp_path / "exp").model).eval()
    student.load_state_dict(saved["model"])
    with torch.no_grad():
        out, lens, _ = student.encode(golden["features"], golden["feature_lens"], golden.chunk)
        logits = student.joiner(
            golden["encoder_out"][0, :3], student.decoder(golden["decoder_tokens"], need_pad=False)[:, 0]
        )
    for row, length in enumerate(lens):
        assert difference(out[row, :length], golden["encoder_out"][row, :length]) < 1e-4  # icefall's own
    assert difference(logits, golden["joiner_logits"]) < 1e-4
    log = next((tmp_path / "exp" / "log").glob("log-train*")).read_text()
    assert "at random: nothing; left out of the file: attention_decoder" in log


def test_an_exp_dir_starts_a_student_that_another_teacher_guides(tmp_path, data, teacher, caplog):
    """Weights of one full-context model, the mean of whose epochs is taken; losses under another."""
    distill = DistillConfig(teacher_exp_dir=str(teacher), kd_feature_scale=1.0)
    config = replace(experiment(tmp_path / "exp", data, init_checkpoint=str(teacher), **ONE_STEP), distill=distill)
    with caplog.at_level(logging.INFO):
        train_experiment(config)
    assert (
        f"Begins with the weights in {teacher / 'epoch-1.pt'} with --init-avg 1: encoder_embed, encoder" in caplog.text
    )
    mean, begun = (
        load_checkpoint(folder)["model_avg" if folder.parent == teacher else "model"]
        for folder in (teacher / "epoch-1.pt", tmp_path / "exp" / "checkpoint-1.pt")
    )
    torch.testing.assert_close(
        begun["joiner.output_linear.weight"], mean["joiner.output_linear.weight"], rtol=0, atol=1e-6
    )
    for half in ("causal_conv", "chunkwise_conv"):
        name = f"encoder.encoders.0.layers.0.conv_module1.depthwise_conv.{half}.bias"
        expected = mean["encoder.encoders.0.layers.0.conv_module1.depthwise_conv.bias"] / 2
        torch.testing.assert_close(begun[name], expected, rtol=0, atol=1e-6)


@pytest.fixture
def mixed(tmp_path, data) -> DataConfig:
    """The corpus as two manifests of four and eight cuts, of which an epoch takes four each."""
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    paths = [str(tmp_path / name) for name in ("new.jsonl.gz", "old.jsonl.gz")]
    for path, part in zip(paths, (cuts[:4], cuts[4:]), strict=True):
        CutSet.from_cuts(part).to_file(path)
    return replace(data, train_cuts=tuple(paths), mux_weights=(0.5, 0.5))


def test_fine_tuning_on_a_mixture_goes_on_as_if_never_stopped_without_its_init_checkpoint(tmp_path, mixed, teacher):
    source = tmp_path / "source"
    shutil.copytree(teacher, source)
    whole = record(experiment(tmp_path / "whole", mixed, init_checkpoint=str(source), base_lr=0.01))
    config = experiment(tmp_path / "stopped", mixed, init_checkpoint=str(source), base_lr=0.01, save_every_n=1)
    first = record(config, kill_before=3)
    shutil.rmtree(source)
    rest = record(replace(config, train=replace(config.train, resume=True)))
    assert len(rest) > 2 and {**first, **rest} == whole


def scheduled(trainer: loop.Trainer) -> list[ScheduledFloat]:
    return [module for module in trainer.model.modules() if isinstance(module, ScheduledFloat)]


@pytest.mark.parametrize(
    "modules, encoder, losses",
    [((), True, True), (("encoder_embed", "encoder"), True, False), (("decoder", "joiner"), False, False)],
)
def test_schedules_have_run_out_for_the_parts_that_begin_with_weights(
    tmp_path, data, teacher, modules, encoder, losses
):
    config = experiment(tmp_path / "exp", data, init_checkpoint=str(teacher), init_modules=modules, **ONE_STEP)
    assert (batch_count_at_start(config) > 0, prunes_from_the_start(config)) == (encoder, losses)
    trainer = make_trainer(config)
    trainer.train()
    counts = {module.batch_count for module in scheduled(trainer)}
    assert counts == {100_000.0 if encoder else 0.0}
    assert trainer.student.finetune == losses


def test_random_starts_and_the_teachers_weights_keep_their_schedules(tmp_path, data):
    config = experiment(tmp_path, data)
    assert (batch_count_at_start(config), prunes_from_the_start(config)) == (0.0, False)
    taught = replace(config, distill=DistillConfig(teacher_exp_dir="exp", init_from_teacher=True))
    assert (batch_count_at_start(taught), prunes_from_the_start(taught)) == (100_000.0, True)


@pytest.mark.parametrize("modules, losses", [((), True), (("encoder", "encoder_embed"), False), (("decoder",), False)])
def test_a_training_that_began_at_random_does_not_resume_with_weights(tmp_path, data, caplog, modules, losses):
    config = experiment(tmp_path, data)
    assert with_same_beginning(config) == config  # no config.json
    config.save(tmp_path)
    assert with_same_beginning(config) == config
    begins = replace(config, train=replace(config.train, init_checkpoint="exp/a", init_modules=modules))
    with pytest.raises(UserError, match="^--init-checkpoint exp/a: .*config.json: its training began without these w"):
        with_same_beginning(begins)
    taught = replace(config, distill=DistillConfig(teacher_exp_dir="exp", init_from_teacher=True))
    with pytest.raises(UserError, match="^--init-from-teacher 1: .*; leave it out, or use another --exp-dir$"):
        with_same_beginning(taught)
    begins.save(tmp_path)
    assert with_same_beginning(begins) == begins and not caplog.text
    moved = replace(begins.train, init_checkpoint="exp/moved", init_epoch=3)
    assert with_same_beginning(replace(begins, train=moved)) == begins
    assert "not from these weights: --init-checkpoint exp/a there, exp/moved now" in caplog.text
    assert "not from these weights: --init-epoch 0 there, 3 now" in caplog.text
    nowhere = replace(begins.train, init_checkpoint="", init_modules=())
    assert with_same_beginning(replace(begins, train=nowhere)) == begins
    all_parts = replace(begins, train=replace(begins.train, init_modules=()))
    if not losses:
        with pytest.raises(UserError, match="its training began without these weights"):
            with_same_beginning(all_parts)


@pytest.mark.parametrize("base_lr, warned", [(0.045, True), (0.021, True), (0.02, False), (0.0045, False)])
def test_a_base_learning_rate_that_undoes_the_weights_is_warned_of_with_the_figure(
    tmp_path, data, caplog, base_lr, warned
):
    train = experiment(tmp_path, data, base_lr=base_lr, init_checkpoint="exp").train
    warn_of_high_learning_rate(train)
    assert (
        f"--base-lr {base_lr:g}: may undo the weights of --init-checkpoint; rates up to 0.02" in caplog.text
    ) == warned
    caplog.clear()
    warn_of_high_learning_rate(replace(train, init_checkpoint=""))
    assert not caplog.text


def test_flags_that_contradict_each_other_are_refused(tmp_path, data, teacher):
    weights = DistillConfig(teacher_exp_dir=str(teacher), init_from_teacher=True)
    both = replace(experiment(tmp_path, data, init_checkpoint=str(teacher)), distill=weights)
    with pytest.raises(UserError, match="--init-checkpoint --init-from-teacher 1: weights from two places; drop one"):
        train_experiment(both)
    with pytest.raises(UserError, match="--init-modules: says of no weights .*; give --init-checkpoint"):
        train_experiment(experiment(tmp_path, data, init_modules=("encoder",)))


def test_a_corpus_with_other_tokens_of_the_same_number_is_told(tmp_path, data, teacher):
    """As from an exp-dir, which keeps its tokenizer."""
    lang = tmp_path / "lang"
    lang.mkdir()
    sentences = Path(data.bpe_model).read_bytes()
    source = tmp_path / "source"
    shutil.copytree(teacher, source)
    train_tokenizer(lang, more=["<0>"])
    (source / "bpe.model").write_bytes((lang / "bpe.model").read_bytes())
    assert sentences != (lang / "bpe.model").read_bytes()
    with pytest.raises(UserError, match="it was trained with other tokens .*give its --bpe-model, or --init-modules"):
        train_experiment(experiment(tmp_path / "exp", data, init_checkpoint=str(source)))
