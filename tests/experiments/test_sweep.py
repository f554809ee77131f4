"""Grids of flags: which cells they make, and what is written of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdstream.evaluation.tables import render
from kdstream.experiments.grid import Axis, parse_axis, parse_values
from kdstream.experiments.sweep import points
from support.decoding import run_script
from support.experiments import events, make_recipe

SCALES, SHIFTS = Axis("scale", ("0", "1", "3")), Axis("shift", ("1", "2"))


@pytest.fixture()
def recipe(tmp_path) -> Path:
    return make_recipe(tmp_path / "egs" / "recipe")


def run_sweep(monkeypatch, recipe: Path, *flags: Any) -> str:
    shared = ("--recipe", recipe, "--exp-root", recipe / "sweep", "--train-flags", "--num-epochs 1")
    return run_script(monkeypatch, "local/sweep.py", *shared, *flags)


def rows_of(recipe: Path) -> list[dict[str, Any]]:
    return json.loads((recipe / "sweep" / "sweep.json").read_text())


def test_values_are_separated_by_commas_or_where_there_is_one_by_bars():
    assert parse_axis("kd-apc-shift=1,2,4") == Axis("kd-apc-shift", ("1", "2", "4"))
    assert parse_axis("--kd-layers=2.0,3.1|1.0") == Axis("kd-layers", ("2.0,3.1", "1.0"))
    assert parse_axis("chunk-size=8|8,16,-1") == Axis("chunk-size", ("8", "8,16,-1"))


def test_paths_that_hold_commas_can_be_given():
    assert parse_values("a,b") == ("a", "b") and parse_values("a") == ("a",)
    assert parse_values("chunk-size-8,16_seed-1|b") == ("chunk-size-8,16_seed-1", "b")
    assert parse_values("chunk-size-8,16_seed-1|") == ("chunk-size-8,16_seed-1",)


@pytest.mark.parametrize("flag", ["--grid", "--decode-grid"])
@pytest.mark.parametrize("text", ["a", "a=", "a=1", "a=1,", "a=1,1", "=1,2", "a=1,2,1"])
def test_a_grid_that_is_none_is_refused(monkeypatch, recipe, flag, text, capsys):
    assert run_sweep(monkeypatch, recipe, flag, text) == "2"
    assert f"error: argument {flag}: {text}: wants a flag and two or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "grid, name, instead",
    [
        ("--grid", "seed", "give --seeds, with each of which every point is trained"),
        ("--grid", "exp-dir", "give --exp-root"),
        ("--grid", "resume", "leave it out"),
        ("--decode-grid", "exp-dir", "give --exp-dirs"),
        ("--decode-grid", "system", "leave it out"),
        ("--decode-grid", "results-json", "leave it out"),
    ],
)
def test_a_grid_of_what_each_cell_has_for_itself_is_refused(monkeypatch, recipe, grid, name, instead):
    error = run_sweep(monkeypatch, recipe, grid, f"{name}=1,2")
    assert f"{grid} {name}: each cell has its own --{name}; {instead}" in error and events(recipe) == []


def test_points_are_all_combinations_or_a_star():
    assert list(points([SCALES, SHIFTS], False)) == [(a, b) for a in "013" for b in "12"]
    assert list(points([SCALES, SHIFTS], True)) == [("0", "1"), ("0", "2"), ("1", "1"), ("3", "1")]


@pytest.mark.parametrize(
    "flags, named",
    [
        ([], "nothing to sweep"),
        (["--grid", "a=1,2", "--exp-dirs", "exp/a"], "leave one of them out"),
        (["--decode-grid", "a=1,2", "--exp-dirs", "exp/a", "--train-flags", "--base-lr 1"], "are not trained"),
        (["--grid", "a=1,2", "--grid", "a=3,4"], "given twice"),
        (["--grid", "lm-exp-dir=a/b,a-b"], "several points are called lm-exp-dir-a-b"),
        (["--grid", "a=1,2", "--train-flags", "--max-train-batches 5"], "trained to the end of an epoch"),
    ],
)
def test_flags_that_make_no_sweep_are_refused(monkeypatch, recipe, flags, named):
    assert named in run_sweep(monkeypatch, recipe, *flags)
    assert events(recipe) == []


@pytest.mark.slow
def test_every_point_and_seed_is_trained_once_and_decoded_in_every_way(monkeypatch, recipe):
    grid = ("--grid", "kd-feature-scale=0,1", "--decode-grid", "chunk-size=8,16", "--seeds", "1,2")
    assert run_sweep(monkeypatch, recipe, *grid) == ""
    trained = [name for _, name, *_ in events(recipe, "train")]
    assert trained == [f"kd-feature-scale-{scale}_seed-{seed}" for scale in "01" for seed in "12"]
    assert sorted((name, chunk) for _, name, chunk in events(recipe, "decode")) == sorted(
        (name, chunk) for name in trained for chunk in ("8", "16")
    )
    rows = rows_of(recipe)
    seen = [(r["kd-feature-scale"], r["decode chunk-size"], r["seed"], r["test set"]) for r in rows]
    assert sorted(seen) == sorted(
        (a, c, s, t) for a in "01" for c in ("8", "16") for s in (1, 2) for t in ("clean", "other")
    )
    assert all(row["interval"] == "[1.00, 99.00]" for row in rows)
    assert rows[0]["command"] == (
        "python train.py --exp-dir sweep/kd-feature-scale-0_seed-1 --resume 1 --num-epochs 1 --kd-feature-scale 0 "
        "--seed 1 && python decode.py --exp-dir sweep/kd-feature-scale-0_seed-1 --epoch 1 --chunk-size 8 "
        "--system kd-feature-scale-0_decode-chunk-size-8"
    )
    text = (recipe / "sweep" / "sweep.md").read_text()
    assert all(row["command"] in text for row in rows) and "(sweep-clean.png)" in text and "(sweep-other.png)" in text
    assert "| kd-feature-scale | decode chunk-size | seed |" in render(recipe / "sweep" / "sweep.json")


@pytest.mark.slow
def test_a_sweep_grows_and_does_only_what_is_missing(monkeypatch, recipe):
    assert run_sweep(monkeypatch, recipe, "--grid", "kd-feature-scale=0,1") == ""
    before = events(recipe)
    assert run_sweep(monkeypatch, recipe, "--grid", "kd-feature-scale=0,1,3") == ""
    assert {line[1] for line in events(recipe)[len(before) :]} == {"kd-feature-scale-3_seed-1"}
    assert len(rows_of(recipe)) == 6


@pytest.mark.slow
def test_what_failed_is_told_and_the_rest_is_written(monkeypatch, recipe, capsys):
    assert "failed: base-lr-666_seed-1" in run_sweep(monkeypatch, recipe, "--grid", "base-lr=1,666")
    assert "the devil's" in capsys.readouterr().err
    assert [row["base-lr"] for row in rows_of(recipe)] == ["1", "1"]


@pytest.mark.slow
def test_experiments_that_are_there_are_decoded_and_their_own_results_left_alone(monkeypatch, recipe):
    assert run_sweep(monkeypatch, recipe, "--grid", "kd-feature-scale=0,1") == ""
    exp_dirs = [recipe / "sweep" / f"kd-feature-scale-{n}_seed-1" for n in "01"]
    kept = [(exp_dir / "results.json").read_text() for exp_dir in exp_dirs]
    flags = ("--exp-dirs", ",".join(map(str, exp_dirs)), "--decode-grid", "chunk-size=8,16", "--mode", "chunkwise")
    assert run_sweep(monkeypatch, recipe, *flags, "--train-flags", "") == ""
    assert [(exp_dir / "results.json").read_text() for exp_dir in exp_dirs] == kept
    rows = rows_of(recipe)
    assert {(row["exp-dir"], row["decode chunk-size"]) for row in rows} == {
        (f"sweep/kd-feature-scale-{n}_seed-1", chunk) for n in "01" for chunk in ("8", "16")
    }
    command = "python streaming_decode.py --exp-dir sweep/kd-feature-scale-0_seed-1 --epoch 1 --chunk-size 8"
    assert rows[0]["command"].startswith(command)
    assert len(events(recipe, "train")) == 2


@pytest.mark.slow
def test_a_star_in_one_command(monkeypatch, recipe):
    grids = ("--grid", "kd-feature-scale=0,1", "--grid", "kd-apc-shift=1,2", "--decode-grid", "chunk-size=8,16")
    assert run_sweep(monkeypatch, recipe, *grids, "--one-at-a-time", 1) == ""
    cells = [(r["kd-feature-scale"], r["kd-apc-shift"], r["decode chunk-size"]) for r in rows_of(recipe)[::2]]
    assert cells == [("0", "1", "8"), ("0", "1", "16"), ("0", "2", "8"), ("1", "1", "8")]
    trained = [name for _, name, *_ in events(recipe, "train")]
    assert trained == ["first_seed-1", "kd-apc-shift-2_seed-1", "kd-feature-scale-1_seed-1"]
    comparison = json.loads((recipe / "sweep" / "comparison.json").read_text())
    names = ["first", "decode-chunk-size-16", "kd-apc-shift-2", "kd-feature-scale-1"]
    assert [row["point"] for row in comparison] == names
    unmoved, *others, better = (row["clean vs first %"] for row in comparison)
    assert (
        unmoved is None and others == ["0.0 [0.0, 0.0] (1 seed)"] * 2 and better.startswith("20.0 [")
    )  # 75 errors to 60
    assert (recipe / "sweep" / "sweep-clean.png").stat().st_size > 10_000
