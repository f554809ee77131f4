"""One training step: its chunk, the weights of its losses, its validation."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.models.scaling import ScheduledFloat
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import build_model
from kdstream.training.step import (
    StudentWithBranches,
    chunk_choices,
    draw_chunk,
    heaviest_chunks,
    transducer_weights,
    validation_chunk,
    validation_loss,
)
from support.recording import make_trainer
from support.training import experiment


def test_chunks_are_drawn_from_seed_and_step_alone(tmp_path: Path, data):
    config = experiment(tmp_path, data)
    model_config = replace(config.model, chunk_size=(8, 16, -1), left_context_frames=(16, 32, -1), vocab_size=10)
    model = build_model(model_config)
    choices = chunk_choices(model_config, model)
    assert validation_chunk(choices) == ChunkConfig(8, 16)
    assert choices == [[ChunkConfig(c, left) for left in (16, 32, -1)] for c in (8, 16)] + [[None]]
    drawn = [draw_chunk(choices, 42, step) for step in range(300)]
    assert drawn == [draw_chunk(choices, 42, step) for step in range(300)]
    assert drawn != [draw_chunk(choices, 43, step) for step in range(300)]
    assert set(drawn) == {chunk for group in choices for chunk in group}
    assert 60 < drawn.count(None) < 140  # each chunk size has the same chance
    assert chunk_choices(replace(model_config, causal=False), model) == [[None]]


def test_right_contexts_are_drawn_like_left_ones_and_never_with_an_unlimited_one(tmp_path: Path, data):
    config = experiment(tmp_path, data)
    sizes = dict(chunk_size=(8, 16), left_context_frames=(16, -1), right_context_frames=(8, 0))
    model_config = replace(config.model, vocab_size=10, **sizes)
    choices = chunk_choices(model_config, build_model(model_config))
    assert choices == [[ChunkConfig(c, 16, 8), ChunkConfig(c, 16, 0), ChunkConfig(c, -1, 0)] for c in (8, 16)]
    drawn = [draw_chunk(choices, 42, step) for step in range(300)]
    assert set(drawn) == {chunk for group in choices for chunk in group}


@pytest.mark.parametrize(
    "sizes, lefts, rights, expected",
    [
        ((8, 16), (16, 32), (0,), [ChunkConfig(16, 32)]),
        ((8, 16), (-1, 32), (0,), [ChunkConfig(8, -1)]),
        ((8, -1), (-1, 32), (0,), [None]),
        ((16, 8, -1), (16, 32), (0, 8), [None, ChunkConfig(8, 32, 8)]),
        ((16, 8), (32,), (0, 8), [ChunkConfig(16, 32, 8), ChunkConfig(8, 32, 8)]),
    ],
)
def test_the_heaviest_chunks_are_the_widest_and_the_one_with_most_right_context(
    tmp_path: Path, data, sizes, lefts, rights, expected
):
    flags = dict(chunk_size=sizes, left_context_frames=lefts, right_context_frames=rights)
    config = replace(experiment(tmp_path, data).model, vocab_size=10, **flags)
    assert heaviest_chunks(chunk_choices(config, build_model(config))) == expected


def test_pruned_loss_takes_over_from_the_simple_loss(tmp_path: Path, data):
    train = replace(experiment(tmp_path, data).train, warm_step=100, simple_loss_scale=0.5)
    others = {"ctc_loss": 0.2, "cr_ctc_loss": 0.0}
    assert transducer_weights(train, 0) == {"simple_loss": 1.0, "pruned_loss": 0.1, **others}
    assert transducer_weights(train, 50)["simple_loss"] == pytest.approx(0.75)
    assert transducer_weights(train, 50)["pruned_loss"] == pytest.approx(0.55)
    assert transducer_weights(train, 100) == transducer_weights(train, None)
    assert transducer_weights(train, 100) == {"simple_loss": 0.5, "pruned_loss": 1.0, **others}
    assert transducer_weights(replace(train, cr_ctc_scale=0.2), 50)["cr_ctc_loss"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("finetune", [False, True])
def test_delay_penalty_waits_until_the_student_can_hear_and_spares_validation(tmp_path: Path, data, finetune):
    config = experiment(tmp_path, data, warm_step=100)
    penalised = replace(config.train, delay_penalty=0.2)
    model = make_trainer(config).model.eval()
    batch = next(iter(make_trainer(config).data.train_dataloader(1)))
    chunk = ChunkConfig(8, 16)

    def loss(train, step):
        student = StudentWithBranches(model, None, train, finetune)
        return student(batch, chunk, step)[0].item()

    difference = {step: loss(penalised, step) - loss(config.train, step) for step in (0, 199, 200, None)}
    assert difference[None] == 0
    assert abs(difference[200]) > 1e-3
    for early in (0, 199):
        assert difference[early] == (pytest.approx(difference[200], rel=1e-4) if finetune else 0)


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


def test_validation_leaves_out_a_batch_without_a_finite_loss(tmp_path: Path, data, caplog):
    trainer = make_trainer(experiment(tmp_path, data))
    good, bad = list(trainer.data.train_dataloader(1))[:2]
    arguments = None, torch.device("cpu")
    expected = validation_loss(trainer.student, [good], *arguments)
    bad.features = bad.features * float("nan")
    with caplog.at_level(logging.WARNING):
        assert validation_loss(trainer.student, [good, bad], *arguments) == expected
    assert f"cuts: {' '.join(bad.cut_ids)}" in caplog.text
    assert validation_loss(trainer.student, [bad], *arguments).mean() == float("inf")
