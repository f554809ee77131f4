"""A transducer that teaches: its weights to begin with, what it hears, and whose tokens it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.errors import UserError
from kdstream.kd.teacher import TransducerTeacher, build_teacher, start_from_teacher
from kdstream.kd.teachers import needs_tokens
from kdstream.models.streaming import OUTPUT_DOWNSAMPLING, padded_encoder_lens
from support.distillation import CHUNK, write_tokens
from support.models import batch_of, random_batch, tiny_test_config, tiny_test_model

WHOSE = "--teacher-exp-dir exp/teacher"
CPU = torch.device("cpu")


def test_a_streaming_student_that_starts_from_its_teacher_gives_the_teachers_output_in_full_context():
    teacher, student = tiny_test_model(causal=False, seed=3), tiny_test_model(causal=True)
    features, lens, _ = random_batch()
    expected = teacher.encode(features, lens)[0]
    assert (student.encode(features, lens)[0] - expected).abs().max() > 0.1
    start_from_teacher(student, TransducerTeacher(teacher))
    torch.testing.assert_close(student.encode(features, lens)[0], expected, rtol=0, atol=2e-5)
    assert (student.encode(features, lens, CHUNK)[0] - expected).abs().max() > 0.01  # it streams all the same


def test_a_streaming_conformer_that_starts_from_its_teacher_gives_its_output_where_no_convolution_saw_the_future():
    teacher, student = (tiny_test_model(causal, seed=3, encoder="conformer") for causal in (False, True))
    features, lens, _ = random_batch()
    with torch.no_grad():
        for layer in teacher.encoder.layers:
            layer.conv_module.depthwise_conv.weight[:, :, 8:] = 0.0
    expected = teacher.encode(features, lens)[0]
    assert (student.encode(features, lens)[0] - expected).abs().max() > 0.1
    start_from_teacher(student, TransducerTeacher(teacher))
    torch.testing.assert_close(student.encode(features, lens)[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("teacher", [dict(encoder_dim=(32, 64, 48)), dict(encoder="conformer")], ids=str)
def test_a_student_of_another_shape_cannot_start_from_its_teacher(teacher):
    with pytest.raises(UserError, match="--init-from-teacher 1: teacher and student differ in shape"):
        start_from_teacher(tiny_test_model(causal=True), TransducerTeacher(tiny_test_model(causal=False, **teacher)))


def test_a_full_context_student_cannot_start_from_a_streaming_teacher():
    teacher, student = (tiny_test_model(causal, encoder="conformer") for causal in (True, False))
    with pytest.raises(UserError, match="a --causal 0 student cannot start from a streaming model's weights"):
        start_from_teacher(student, TransducerTeacher(teacher))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("encoder", ["zipformer", "conformer"])
def test_a_teacher_hears_each_utterance_as_if_alone(encoder, causal):
    teacher = TransducerTeacher(tiny_test_model(causal, encoder=encoder))
    features, lens, _ = random_batch()
    names = list(teacher.shapes)
    both = teacher.listen(batch_of(features, lens), iter(names))
    assert list(both.layers) == names
    for n, end in enumerate(lens.tolist()):
        alone = teacher.listen(batch_of(features[n : n + 1, :end], lens[n : n + 1]), names)
        frames = int(padded_encoder_lens(lens[n : n + 1], teacher.model.max_downsampling)) // OUTPUT_DOWNSAMPLING
        torch.testing.assert_close(both.encoder_out[n, :frames], alone.encoder_out[0, :frames], rtol=0, atol=2e-5)
        for name, tap in alone.layers.items():
            valid = int(tap.lens)
            assert int(both.layers[name].lens[n]) == valid and both.layers[name].stride == tap.stride
            for field in ("features", "query", "key", "value"):
                ours, theirs = (getattr(t, field) for t in (both.layers[name], tap))
                torch.testing.assert_close(ours[n, :valid], theirs[0, :valid], rtol=0, atol=2e-5)


def experiments(tmp_path, theirs, ours=("<blk>", "<unk>", "\u2581A", "\u2581B"), **teacher_model):
    """Configs of a teacher and a student with the given tokens."""
    teacher = ExperimentConfig(
        model=tiny_test_config(False, len(theirs), **teacher_model), data=write_tokens(tmp_path / "theirs", theirs)
    )
    student = ExperimentConfig(
        model=tiny_test_config(True, len(ours)),
        data=write_tokens(tmp_path / "ours", ours),
        distill=DistillConfig(teacher_exp_dir="exp/teacher", kd_token_scale=1.0),
    )
    return teacher, student


def test_a_loaded_teacher_gives_the_output_of_the_model_that_was_saved(tmp_path):
    teacher, student = experiments(tmp_path, ("<blk>", "<unk>", "\u2581A", "\u2581B"))
    saved = tiny_test_model(causal=False, vocab_size=4)
    loaded = build_teacher(WHOSE, teacher, saved.state_dict(), student, CPU, same_tokens=True).model
    features, lens, _ = random_batch()
    torch.testing.assert_close(loaded.encode(features, lens), saved.encode(features, lens), rtol=0, atol=0)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    "tokens, message",
    [
        (("<blk>", "<unk>", "\u2581A"), "another vocabulary .*it has 3 tokens, the student 4"),
        (("<blk>", "<unk>", "\u2581B", "\u2581A"), "another vocabulary .*2 is '\u2581B', the student's '\u2581A'"),
    ],
)
def test_a_teacher_with_another_vocabulary_is_a_clear_error(tmp_path, tokens, message):
    teacher, student = experiments(tmp_path, tokens)
    with pytest.raises(UserError, match=f"{WHOSE}: .*{message}"):
        build_teacher(WHOSE, teacher, {}, student, CPU, same_tokens=True)


def test_losses_between_layers_do_not_ask_for_the_students_tokens(tmp_path):
    teacher, student = experiments(tmp_path, ("<blk>", "<unk>", "\u2581A"))
    weights = tiny_test_model(causal=False, vocab_size=3).state_dict()
    theirs = build_teacher(WHOSE, teacher, weights, student, CPU, same_tokens=False)
    assert theirs.model.config.vocab_size == 3
    assert not needs_tokens(DistillConfig(kd_relation_scale=0.1, kd_apc_scale=1.0))
    assert needs_tokens(DistillConfig(kd_token_scale=0.1)) and needs_tokens(DistillConfig(init_from_teacher=True))


@pytest.mark.slow
def test_a_teacher_with_other_features_or_other_parameters_is_a_clear_error(tmp_path):
    teacher, student = experiments(tmp_path, ("<blk>", "<unk>", "\u2581A", "\u2581B"))
    forty_bins = replace(teacher, model=replace(teacher.model, feature_dim=40))
    with pytest.raises(UserError, match="reads 40 mel bins, the student 80"):
        build_teacher(WHOSE, forty_bins, {}, student, CPU, same_tokens=True)
    with pytest.raises(UserError, match="does not fit what is known of its model"):
        build_teacher(WHOSE, teacher, {"encoder.nothing": torch.zeros(1)}, student, CPU, same_tokens=True)


def test_missing_tokens_are_a_clear_error(tmp_path):
    teacher, student = experiments(tmp_path, ("<blk>", "<unk>", "\u2581A", "\u2581B"))
    (tmp_path / "theirs" / "tokens.txt").unlink()
    with pytest.raises(UserError, match="theirs/tokens.txt: no such file; kdstream train-bpe-model writes it"):
        build_teacher(WHOSE, teacher, {}, student, CPU, same_tokens=True)
