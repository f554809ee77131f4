"""Teachers of other kinds: icefall's checkpoints, and what the flags allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import settings_of
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.kd.icefall_checkpoint import model_of
from kdstream.kd.teachers import flags_without_effect, load_teacher, needs_clean
from kdstream.models.presets import resolve
from kdstream.models.transducer import build_model
from support.distillation import write_tokens
from support.models import random_batch, tiny_test_config, tiny_test_model
from support.teachers import student_config

CPU = torch.device("cpu")
# the flags with which icefall would have trained tiny_test_config
ICEFALL = {
    "num_encoder_layers": "1,2,1", "downsampling_factor": "1,2,4", "encoder_dim": "32,48,32",
    "encoder_unmasked_dim": "24,32,24", "feedforward_dim": "48,64,48", "num_heads": "4", "query_head_dim": "8",
    "value_head_dim": "6", "pos_head_dim": "4", "pos_dim": 48, "cnn_module_kernel": "31,15,15", "decoder_dim": 64,
    "joiner_dim": 64,
}  # fmt: skip
FLAGS = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ICEFALL.items())


SAVE = {
    "pretrained.pt": lambda weights, path: torch.save({"model": weights}, path),
    "state_dict.pt": torch.save,
    "weights.safetensors": save_file,
}


@pytest.mark.parametrize("causal, name", [(False, "pretrained.pt"), *((True, name) for name in SAVE)])
def test_icefalls_pretrained_model_with_its_flags_is_a_teacher(tmp_path, causal, name):
    model = tiny_test_model(causal)
    extra = {"attention_decoder.decoder.weight": torch.zeros(3)}
    path = str(tmp_path / name)
    SAVE[name]({key: value.contiguous() for key, value in {**model.state_dict(), **extra}.items()}, path)
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=path, teacher_model=FLAGS)
    teacher = load_teacher(config, CPU)
    assert replace(teacher.model.config, preset="small") == model.config
    features, lens, _ = random_batch()
    torch.testing.assert_close(teacher.model.encode(features, lens), model.encode(features, lens), rtol=0, atol=0)


def test_our_teacher_is_the_mean_of_the_epochs_that_the_flags_name(tmp_path):
    config = student_config(tmp_path, teacher_epoch=2, teacher_avg=2, teacher_use_averaged_model=False)
    config = replace(config, distill=replace(config.distill, teacher_exp_dir=str(tmp_path)))
    replace(config, model=tiny_test_config(False), distill=DistillConfig()).save(tmp_path)
    epochs = [tiny_test_model(False, seed=epoch).state_dict() for epoch in (1, 2, 3)]
    for epoch, weights in enumerate(epochs, start=1):
        torch.save({"model": weights}, tmp_path / f"epoch-{epoch}.pt")
    heard = load_teacher(config, CPU).model.state_dict()
    for name in ("joiner.output_linear.weight", "encoder.encoders.0.layers.0.norm.bias"):
        torch.testing.assert_close(heard[name], (epochs[0][name] + epochs[1][name]) / 2, msg=name)


def test_what_a_teacher_finds_in_unlabelled_speech_holds_no_unknown_token(tmp_path):
    model = tiny_test_model(False)
    with torch.no_grad():
        model.joiner.output_linear.bias[1] = 9.0  # <unk>
    torch.save({"model": model.state_dict()}, tmp_path / "pretrained.pt")
    flags = dict(teacher_type="icefall", teacher_checkpoint=str(tmp_path / "pretrained.pt"), teacher_model=FLAGS)
    teacher = load_teacher(student_config(tmp_path, kd_token_scale=0.5, **flags), CPU)
    features, lens, _ = random_batch()
    encoder_out, out_lens, _ = teacher.model.encode(features, lens)
    assert teacher.hypotheses(encoder_out, out_lens) == [[], []]  # it says nothing else


def test_what_is_wrong_with_our_teacher_is_said_in_the_flags_of_training(tmp_path):
    config = student_config(tmp_path, teacher_exp_dir=str(tmp_path / "exp--avg-3"))
    with pytest.raises(UserError, match="exp--avg-3/config.json: no such file"):
        load_teacher(config, CPU)
    config = replace(config, distill=replace(config.distill, teacher_exp_dir=str(tmp_path / "exp")))
    with pytest.raises(UserError, match="config.json: no such file; --teacher-exp-dir must name"):
        load_teacher(config, CPU)
    (tmp_path / "exp").mkdir()
    replace(config, distill=DistillConfig()).save(tmp_path / "exp")
    flags = replace(config.distill, teacher_epoch=1, teacher_avg=5)
    with pytest.raises(UserError, match="--teacher-epoch 1 --teacher-avg 5: .*; lower --teacher-avg"):
        load_teacher(replace(config, distill=flags), CPU)


@pytest.mark.parametrize("chunk_size, warned", [((8,), True), ((8, -1), False)])
def test_a_streaming_teacher_that_never_heard_everything_is_pointed_out(tmp_path, caplog, chunk_size, warned):
    config = student_config(tmp_path, teacher_exp_dir=str(tmp_path), teacher_use_averaged_model=False)
    teacher = replace(config, model=tiny_test_config(True, chunk_size=chunk_size), distill=DistillConfig())
    teacher.save(tmp_path)
    torch.save({"model": tiny_test_model(True).state_dict()}, tmp_path / "epoch-1.pt")
    load_teacher(config, CPU)
    assert ("never trained in full context" in caplog.text) == warned


def test_icefalls_tokens_are_those_beside_the_teachers_own_bpe_model(tmp_path):
    torch.save({"model": tiny_test_model(False).state_dict()}, tmp_path / "pretrained.pt")
    path = str(tmp_path / "pretrained.pt")
    flags = dict(teacher_type="icefall", teacher_checkpoint=path, teacher_model=FLAGS, kd_token_scale=0.5)
    config = student_config(tmp_path, **flags)
    load_teacher(config, CPU)
    theirs = write_tokens(tmp_path / "theirs", ["<blk>", "<unk>", *map(str, range(27, -1, -1))])
    other = replace(config, distill=replace(config.distill, teacher_bpe_model=theirs.bpe_model))
    with pytest.raises(UserError, match="another vocabulary"):
        load_teacher(other, CPU)


def test_icefalls_epoch_says_itself_what_model_it_is_of(tmp_path):
    model = tiny_test_model(False)
    checkpoint = {"model": model.state_dict(), **ICEFALL, "exp_dir": Path("zipformer/exp"), "batch_idx_train": 7}
    torch.save(checkpoint, tmp_path / "epoch-1.pt")
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=str(tmp_path / "epoch-1.pt"))
    assert replace(load_teacher(config, CPU).model.config, preset="small") == model.config


def test_our_own_checkpoint_is_no_icefall_teacher(tmp_path):
    model = tiny_test_model(False)
    ours = {"model": model.state_dict(), **settings_of(model.config), **settings_of(DistillConfig())}
    torch.save(ours, tmp_path / "epoch-1.pt")
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=str(tmp_path / "epoch-1.pt"))
    message = "epoch-1.pt: is of a training of kdstream; leave out --teacher-type and give --teacher-exp-dir, the dir"
    with pytest.raises(UserError, match=f"^--teacher-checkpoint .*{message}"):
        load_teacher(config, CPU)


def test_a_preset_is_enough_for_icefalls_own_sizes():
    resolved = resolve(ModelConfig(preset="small", causal=True, vocab_size=500))
    weights = build_model(resolved).state_dict()
    assert resolve(model_of("x", {}, weights, "--preset small")) == resolved


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "does not say what model it is of; give --teacher-model '--preset medium'"),
        ("--preset huge", "--preset huge: unknown for --encoder zipformer; use one of tiny"),
        ("--max-duration 3", "--max-duration is no flag of a model"),
        ("--encoder-dim big", "--teacher-model '--encoder-dim big': .*invalid"),
        ("--preset tiny", "--teacher-checkpoint .*pretrained.pt: the checkpoint does not fit"),
    ],
)
def test_what_does_not_describe_the_checkpoint_is_a_clear_error(tmp_path, flags, message):
    torch.save({"model": tiny_test_model(False).state_dict()}, tmp_path / "pretrained.pt")
    path = str(tmp_path / "pretrained.pt")
    config = student_config(tmp_path, teacher_type="icefall", teacher_checkpoint=path, teacher_model=flags)
    with pytest.raises(UserError, match=message):
        load_teacher(config, CPU)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"teacher_checkpoint": "x.pt"},
            "--teacher-checkpoint: a file does not say which type",
        ),
        (
            {"teacher_type": "icefall", "teacher_exp_dir": "exp"},
            "give --teacher-checkpoint; --teacher-exp-dir is for teachers of kdstream",
        ),
        (
            {"teacher_type": "torchaudio", "teacher_checkpoint": "x", "init_from_teacher": True},
            "--teacher-type torchaudio: does not go with --init-from-teacher",
        ),
        (
            {"teacher_exp_dir": "exp", "teacher_cache": "c", "kd_teacher_hears": "augmented"},
            "--kd-teacher-hears augmented: a cache holds what the teacher heard in clean cuts; give",
        ),
        ({"init_from_teacher": True}, "--init-from-teacher: needs a teacher"),
        ({"kd_token_scale": 0.5}, "--kd-token-scale: needs a teacher"),
        ({"teacher_type": "icefall"}, "such a teacher is in a file or directory of its own; give --teacher-checkpoint"),
        (
            {"teacher_exp_dir": "exp", "teacher_checkpoint": "x.pt"},
            "--teacher-checkpoint: a file does not say which type",
        ),
        (
            {"teacher_type": "torchaudio", "teacher_checkpoint": "x"},
            "--teacher-type torchaudio: time warping moves the student's frames",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_clear_errors(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        load_teacher(student_config(tmp_path, **flags), CPU)


OURS = DistillConfig(teacher_exp_dir="exp")
THEIRS = DistillConfig(teacher_type="icefall", teacher_checkpoint="x.pt")
TOKENS_ALONE = replace(OURS, kd_feature_scale=0.0, kd_apc_scale=0.0, kd_token_scale=0.5)
WEIGHTS_ALONE = replace(TOKENS_ALONE, kd_token_scale=0.0, init_from_teacher=True)
ALL_READ = dict(
    kd_relation_scale=0.1, kd_token_scale=0.5, kd_layer_map="similar", kd_similarity_file="cka.json",
    kd_layers=("1.0",), kd_share_branches=True, kd_branch_heads=2, kd_branch_feedforward_dim=64, kd_distance="l2",
    kd_relation_heads=2, kd_apc_shift=1, kd_apc_dim=64, kd_token_form="collapsed", kd_token_temperature=2.0,
    kd_token_shift=0, kd_warmup_batches=0,
)  # fmt: skip


@pytest.mark.parametrize(
    "distill, in_vain",
    [
        (DistillConfig(), []),
        (DistillConfig(kd_apc_scale=1.0, teacher_avg=3), ["teacher_avg", "kd_apc_scale"]),
        (replace(OURS, teacher_epoch=3, teacher_avg=2, teacher_use_averaged_model=False, **ALL_READ), []),
        (replace(THEIRS, teacher_model="--preset tiny", teacher_bpe_model="x.model", **ALL_READ), []),
        (replace(THEIRS, teacher_epoch=3, teacher_avg=2), ["teacher_epoch", "teacher_avg"]),
        (replace(OURS, teacher_model="--preset tiny"), ["teacher_model"]),
        (replace(OURS, kd_similarity_file="cka.json"), ["kd_similarity_file"]),
        (DistillConfig(full_context_scale=1.0, kd_token_shift=1), ["kd_token_shift"]),
        (DistillConfig(mode_consistency_scale=1.0, kd_token_shift="auto:2", kd_warmup_batches=3), []),
        (replace(OURS, mode_consistency_type="collapsed"), ["mode_consistency_type"]),
        (replace(OURS, mode_consistency_scale=1.0, mode_consistency_weights="non-blank", kd_token_shift=1), []),
        (replace(OURS, kd_relation_heads=2, kd_token_shift=0), ["kd_relation_heads", "kd_token_shift"]),
        (replace(OURS, kd_branch="none", kd_branch_heads=2, kd_apc_shift=1), ["kd_branch_heads"]),
        (replace(OURS, kd_feature_scale=0.0, kd_branch_heads=2, kd_distance="l2"), ["kd_branch_heads"]),
        (replace(OURS, kd_branch="none", kd_apc_scale=0.0, kd_share_branches=True), ["kd_share_branches"]),
        (replace(WEIGHTS_ALONE, teacher_cache="cache", kd_warmup_batches=3), ["teacher_cache", "kd_warmup_batches"]),
        (replace(TOKENS_ALONE, kd_layers=("1.0",), kd_distance="l2"), ["kd_layers", "kd_distance"]),
        (replace(OURS, kd_layers=("1.0:2.0",), kd_layer_map="uniform"), ["kd_layer_map"]),
        (replace(OURS, kd_layers=("1.0:2.0", "0.0"), kd_layer_map="uniform"), []),
        (
            replace(OURS, kd_layers=("1.0:2.0",), kd_layer_map="similar", kd_similarity_file="cka.json"),
            ["kd_layer_map", "kd_similarity_file"],
        ),
    ],
)
def test_flags_that_nothing_reads_are_named(distill, in_vain):
    assert flags_without_effect(distill) == in_vain


def test_clean_speech_is_read_for_a_live_teacher_alone_and_where_there_is_other_speech():
    config = ExperimentConfig(distill=OURS)
    assert config.data.enable_spec_aug and needs_clean(config)
    for distill in (
        DistillConfig(),
        WEIGHTS_ALONE,
        replace(OURS, teacher_cache="cache"),
        replace(OURS, kd_teacher_hears="augmented"),
    ):
        assert not needs_clean(replace(config, distill=distill))
    assert not needs_clean(replace(config, data=replace(config.data, enable_spec_aug=False)))


def test_a_loss_of_the_regular_lattice_is_refused_on_another(tmp_path):
    config = student_config(tmp_path, teacher_exp_dir="exp", kd_token_scale=1.0, kd_token_form="one-best")
    with pytest.raises(
        UserError,
        match="--rnnt-type modified --kd-token-form one-best: the one best path",
    ):
        load_teacher(replace(config, train=replace(config.train, rnnt_type="modified")), CPU)
