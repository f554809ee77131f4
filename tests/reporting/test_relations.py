"""Attention relations: what the maps hold, and why some cannot be drawn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from kdstream.checkpoints.store import save_checkpoint
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.errors import UserError
from kdstream.kd.several import build_distiller
from kdstream.kd.teachers import load_teacher
from kdstream.models.transducer import build_model
from kdstream.reporting.relations import BRANCH, STUDENT, TEACHER, compare_maps, read_relations
from support.reporting import HOSTILE_TEXT, write_experiment


@pytest.fixture(scope="module")
def experiment_root(tmp_path_factory) -> Path:
    """A directory with a teacher and a student that was distilled from it."""
    root = tmp_path_factory.mktemp("exp")
    write_experiment(root)
    return root


def test_relations_are_distributions_and_their_divergence_is_the_losss(experiment_root):
    relations = read_relations(experiment_root / "distilled")
    assert (relations.cut_id, relations.text) == ("long", HOSTILE_TEXT)
    assert relations.frame_ms == 40 and relations.layers == ("1.1", "1.1")
    frames = {len(relation) for relation in relations.maps.values()}
    assert frames == {93}  # 380 feature frames are 186 encoder frames
    assert set(relations.maps) == {(whose, name) for whose in (TEACHER, BRANCH, STUDENT) for name in "QKV"}
    for relation in relations.maps.values():
        assert relation.shape == (*frames, *frames) and (relation > 0).all()
        torch.testing.assert_close(relation.sum(dim=1), torch.ones(len(relation), dtype=torch.float64))
    assert all(divergence > 0 for divergence in relations.divergences.values())


def test_divergence_of_maps_with_one_head_is_that_of_their_rows():
    torch.manual_seed(0)
    vectors = {whose: tuple(torch.randn(1, 7, width) for width in (4, 4, 6)) for whose in (TEACHER, BRANCH, STUDENT)}
    maps, divergences = compare_maps(vectors, heads=1)
    for (whose, name), divergence in divergences.items():
        teacher, other = maps[TEACHER, name], maps[whose, name]
        slow = (
            sum(p * (p / q).log() for ps, qs in zip(teacher, other, strict=True) for p, q in zip(ps, qs, strict=False))
            / 7
        )
        assert divergence == pytest.approx(float(slow), rel=1e-5)
    assert len(divergences) == 6 and {width.shape for width in maps.values()} == {(7, 7)}


def distil_anew(root: Path, **settings) -> None:
    """A student with other settings, of random weights."""
    config = load(root)
    config = replace(config, distill=replace(config.distill, teacher_cache="", **settings))
    model = build_model(config.model)
    branches = build_distiller(config.distill, model, load_teacher(config, torch.device("cpu")))
    save_checkpoint(root / "distilled" / "epoch-1.pt", model, branches=branches)
    config.save(root / "distilled")


def test_of_several_teachers_the_first_that_guides_layers_is_drawn(tmp_path):
    write_experiment(tmp_path)
    both = {"teacher_type": "kdstream,kdstream", "teacher_exp_dir": f"{tmp_path / 'teacher'},{tmp_path / 'teacher'}"}
    distil_anew(tmp_path, **both, teacher_losses=("token", "feature"), kd_token_scale=0.5)
    assert read_relations(tmp_path / "distilled").layers == ("1.1", "1.1")
    distil_anew(tmp_path, **both, teacher_losses=("token", "token"), kd_token_scale=0.5)
    with pytest.raises(UserError, match="epoch-1.pt: holds no branches; name a student that was distilled between lay"):
        read_relations(tmp_path / "distilled")


def test_branches_without_a_parameter_of_their_own_are_drawn(tmp_path):
    write_experiment(tmp_path)
    distil_anew(tmp_path, kd_branch="teacher", kd_apc_scale=0.0)
    assert read_relations(tmp_path / "distilled").layers == ("1.1", "1.1")


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda root: (root / "distilled" / "epoch-1.pt").unlink(), "distilled: no epoch-N.pt"),
        (lambda root: (root / "test.jsonl.gz").unlink(), "test.jsonl.gz: no such manifest"),
        (lambda root: shutil.rmtree(root / "teacher"), "teacher/config.json: no such file"),
        (
            lambda root: save_checkpoint(root / "distilled" / "epoch-2.pt", build_model(load(root).model)),
            "epoch-2.pt: holds no branches",
        ),
        (lambda root: replace(load(root), distill=DistillConfig()).save(root / "distilled"), "without a teacher"),
        (
            lambda root: CutSet.from_jsonl(root / "test.jsonl.gz").subset(first=1).to_file(root / "test.jsonl.gz"),
            "no cut lasts between 3 and 8 s",
        ),
    ],
)
def test_relations_that_cannot_be_drawn_say_why(tmp_path, spoil, named):
    write_experiment(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=named):
        read_relations(tmp_path / "distilled")


def load(root: Path) -> ExperimentConfig:
    return ExperimentConfig.load(root / "distilled")
