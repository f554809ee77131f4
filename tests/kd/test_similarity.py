"""Linear CKA: what it is blind to, what it is not, that batches and padding do not matter; its script."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdstream.commands import layer_similarity
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.kd.layer_map import pair_layers
from kdstream.kd.similarity import LayerSimilarity
from kdstream.kd.taps import Tap, tap_shapes
from kdstream.models.presets import resolve
from kdstream.models.transducer import build_model
from support.decoding import NOISE_CUTS, make_experiment, noise_test_set, run_script
from support.teachers import KINDS, speech_encoder


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tap(x: torch.Tensor, lens, stride: int = 2) -> Tap:
    return Tap(x, x, x, x, torch.tensor(lens), stride)


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Over frames (T, D) and (T, D'), as the definition has it."""
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def similarity(ours, theirs) -> torch.Tensor:
    gathered = LayerSimilarity()
    gathered.add(ours, theirs)
    return gathered.cka(len(ours))


def test_cka_of_identical_rotated_and_scaled_features_is_1():
    x = random(2, 9, 4, seed=0) + 3.0
    rotation = torch.linalg.qr(random(4, 4, seed=1)).Q
    values = similarity({"0.0": tap(x, [9, 7])}, {"0.0": tap(x, [9, 7]), "0.1": tap(-2.5 * x @ rotation + 7.0, [9, 7])})
    torch.testing.assert_close(values, torch.ones(1, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_cka_of_two_batches_equals_its_definition_over_all_valid_frames():
    x, y = random(3, 8, 4, seed=0), random(3, 8, 6, seed=1)
    y[..., :2] += x[..., :2]
    lens = [8, 5, 6]
    gathered = LayerSimilarity()
    for rows in (slice(0, 2), slice(2, 3)):
        of_batch = lens[rows]
        gathered.add({"0.0": tap(x[rows], of_batch)}, {"3.1": tap(y[rows], of_batch)})
    frames = [torch.cat([z[n, :length] for n, length in enumerate(lens)]) for z in (x, y)]
    assert gathered.cka(1).item() == pytest.approx(cka(*frames), rel=1e-6)
    assert 0.05 < cka(*frames) < 0.9


def test_layers_of_different_rate_are_compared_at_the_slower_one():
    x, y = random(1, 8, 4, seed=0), random(1, 4, 3, seed=1)
    expected = cka(x[0].unflatten(0, (4, 2)).mean(dim=1), y[0])
    value = similarity({"0.0": tap(x, [8], stride=1)}, {"1.0": tap(y, [4], stride=2)})
    assert value.item() == pytest.approx(expected, rel=1e-6)


def experiment(folder: Path, causal: bool) -> Path:
    """An experiment whose training augments its features, with noise to validate on."""
    folder.mkdir()
    exp_dir = make_experiment(folder, causal, bpe_model=Path(noise_test_set(folder).bpe_model))
    config = ExperimentConfig.load(exp_dir)
    data = replace(config.data, valid_cuts=(str(folder / NOISE_CUTS),), num_workers=0, on_the_fly_feats=True)
    assert data.enable_spec_aug and data.spec_aug_time_warp_factor > 1
    replace(config, data=data).save(exp_dir)
    return exp_dir


def measure(monkeypatch, exp_dir: Path, *flags) -> dict:
    """What the script writes."""
    assert run_script(monkeypatch, "local/layer_similarity.py", "--exp-dir", exp_dir, *flags) == ""
    assert (exp_dir / "layer_similarity.png").stat().st_size > 10_000
    return json.loads((exp_dir / "layer_similarity.json").read_text())


def test_an_output_that_its_picture_would_replace_is_refused_at_once(monkeypatch, tmp_path):
    error = run_script(monkeypatch, "local/layer_similarity.py", "--exp-dir", tmp_path, "--output", "similar.png")
    assert error == "error: --output similar.png: is a JSON file; end it with .json"


def test_parts_that_are_typed_go_before_the_cuts_of_the_students_training(monkeypatch, tmp_path):
    ExperimentConfig(data=DataConfig(valid_cuts=("theirs.jsonl.gz",))).save(tmp_path)
    seen = []
    monkeypatch.setattr(layer_similarity, "measure", lambda config, *_: seen.append(config.data) or sys.exit())
    for flags, cuts in (([], ("theirs.jsonl.gz",)), (["--dev-parts", "a,b"], ())):
        with pytest.raises(SystemExit):
            layer_similarity.main(["--exp-dir", str(tmp_path), *flags])
        assert seen[-1].valid_cuts == cuts
    assert seen[-1].dev_parts == ("a", "b")


@pytest.mark.slow
def test_a_teachers_own_layers_are_the_most_similar_to_themselves(monkeypatch, tmp_path):
    exp_dir = experiment(tmp_path / "teacher", causal=False)
    table = measure(monkeypatch, exp_dir, "--teacher-exp-dir", exp_dir)
    cka = torch.tensor(table["cka"])
    assert cka.diag().min() > 0.99  # not 1: a teacher also hears the silence with which it fills its last frame
    assert cka.argmax(dim=1).tolist() == [0, 1, 2]
    assert table["student_layers"] == table["teacher_layers"] == ["0.0", "1.0", "2.0"]
    shapes = tap_shapes(build_model(resolve(ExperimentConfig.load(exp_dir).model)))
    similar = DistillConfig(kd_layer_map="similar", kd_similarity_file=str(exp_dir / "layer_similarity.json"))
    assert [(pair.student, pair.teacher) for pair in pair_layers(similar, shapes, shapes)] == [
        ("1.0", "1.0"), ("2.0", "2.0"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_streaming_student_is_measured_against_full_context_and_a_speech_encoder(monkeypatch, tmp_path):
    student, teacher = (experiment(tmp_path / name, causal=name == "student") for name in ("student", "teacher"))
    config = ExperimentConfig.load(student)
    others = DistillConfig("none", teacher_epoch=7, teacher_cache="none")  # than those that are measured
    replace(config, distill=others).save(student)
    under_ours = measure(monkeypatch, student, "--teacher-exp-dir", teacher, "--teacher-use-averaged-model", 0)
    replace(config, distill=DistillConfig(str(teacher), teacher_cache="of the training cuts")).save(student)
    assert measure(monkeypatch, student) == under_ours
    torch.save(speech_encoder("wav2vec2_model").state_dict(), tmp_path / "weights.pt")
    theirs = ("--teacher-type", "torchaudio", "--teacher-checkpoint", tmp_path / "weights.pt", "--teacher-model")
    model = f"wav2vec2_model {json.dumps(KINDS['wav2vec2_model'])}"
    under_theirs = measure(monkeypatch, student, *theirs, model)
    assert under_theirs["teacher_layers"] == ["0.0", "0.1", "0.2"] != under_ours["teacher_layers"]
    for table in (under_ours, under_theirs):
        cka = torch.tensor(table["cka"])
        assert cka.shape == (3, 3) and bool(((cka > 0) & (cka < 0.999)).all())
