"""Flags of train.py: which of them make another training."""

from __future__ import annotations

import shlex

import pytest

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.experiments.train_flags import (
    FLAGS_FILE,
    flags_begun_with,
    read_section,
    same_training,
    without_flags,
)

GUIDED = "--causal 1 --seed 3 --teacher-exp-dir exp/teacher --teacher-cache exp/cache"


def test_a_section_is_read_past_the_flags_of_others():
    flags = shlex.split(f"{GUIDED} --num-epochs 4 --num-epochs 5")
    assert read_section(TrainConfig, flags) == TrainConfig(seed=3, num_epochs=5)
    assert read_section(DistillConfig, flags).teacher_exp_dir == "exp/teacher"


def test_flags_are_left_out_with_their_values_wherever_they_stand():
    flags = ["--chunk-size", "16", "--beam", "3", "--chunk-size=8", "--left-context-frames", "-1"]
    assert without_flags(flags, ("chunk_size", "left_context_frames")) == ["--beam", "3"]


@pytest.mark.parametrize(
    "begun, same",
    [
        (GUIDED, True),
        (f"--seed 3 {GUIDED}", True),
        (f"{GUIDED} --num-epochs 30", True),  # the default
        (f"{GUIDED} --teacher-cache elsewhere", True),
        (f"{GUIDED} --kd-token-form collapsed", True),  # which nothing reads without --kd-token-scale
        (f"{GUIDED} --teacher-epoch 4", True),  # which it keeps
        (GUIDED.replace("exp/teacher", "exp/teacher/"), True),
        (GUIDED.replace("exp/teacher", "./exp//teacher"), True),
        (GUIDED.replace("exp/teacher", "exp/other"), False),
        (f"{GUIDED} --teacher-cache ''", False),
        (f"{GUIDED} --kd-feature-scale 2", False),
        (f"{GUIDED} --num-epochs 4", False),
        (f"{GUIDED} --max-duration 7", False),
        (f"{GUIDED} --encoder-dim 32,32", False),
        (f"{GUIDED} --flag-of-the-recipe 1", False),
        (f"{GUIDED} --seed none", False),
    ],
)
def test_settings_make_another_training_and_their_spelling_does_not(begun, same):
    assert same_training(shlex.split(GUIDED), shlex.split(begun)) is same
    if "none" not in begun:
        assert same_training(shlex.split(begun), shlex.split(GUIDED)) is same


def test_two_epochs_of_the_teacher_are_two_trainings():
    assert not same_training([*GUIDED.split(), "--teacher-epoch", "4"], [*GUIDED.split(), "--teacher-epoch", "5"])


def test_distillation_flags_without_a_teacher_make_no_other_training():
    assert same_training(["--causal", "1"], ["--kd-warmup-batches", "100", "--causal", "1"])


@pytest.mark.parametrize("typed, expected", [("", 5), (" --teacher-epoch 4", 4)])
def test_flags_that_a_training_was_begun_with_tell_the_teachers_epoch(tmp_path, typed, expected):
    (tmp_path / FLAGS_FILE).write_text(GUIDED + typed)
    (tmp_path / "checkpoint-1.pt").touch()
    ExperimentConfig(distill=DistillConfig(teacher_exp_dir="moved", teacher_epoch=5)).save(tmp_path)
    assert read_section(DistillConfig, flags_begun_with(tmp_path)).teacher_epoch == expected


def test_a_start_without_a_checkpoint_holds_the_teacher_to_no_epoch(tmp_path):
    (tmp_path / FLAGS_FILE).write_text(GUIDED)
    ExperimentConfig(distill=DistillConfig(teacher_exp_dir="moved", teacher_epoch=5)).save(tmp_path)
    assert read_section(DistillConfig, flags_begun_with(tmp_path)).teacher_epoch == 0
