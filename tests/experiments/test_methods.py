"""The comparison of methods: what it trains under whom, in what order, and what it says of them."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.evaluation.compare import compare_seeds
from kdstream.evaluation.records import load_records
from kdstream.evaluation.scoring import read_recogs
from kdstream.evaluation.tables import render
from kdstream.experiments import methods
from kdstream.experiments.method_table import METHODS, WITHOUT_TEACHER
from kdstream.experiments.train_flags import read_section
from kdstream.kd.cache_shards import VERSION
from kdstream.kd.teachers import flags_without_effect
from support.experiments import compare, events, make_recipe
from support.paths import ROOT

RUN_SH = ROOT / "egs" / "librispeech" / "run.sh"
FEW = "baseline,token-full,token-collapsed,branch-feature"


@pytest.fixture()
def recipe(tmp_path) -> Path:
    return make_recipe(tmp_path / "egs" / "recipe")


def flags_of(recipe: Path, name: str) -> dict[str, str]:
    return json.loads((recipe / "exp" / name / "flags.json").read_text())


def rows_of(recipe: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads((recipe / "exp" / "comparison.json").read_text())}


def errors_of(recipe: Path, method: str, test_set: str, seeds: str) -> np.ndarray:
    """(seeds, utterances) word errors; the stub only replaces words."""
    return np.array(
        [
            [
                sum(a != b for a, b in zip(t.ref, t.hyp, strict=True))
                for t in read_recogs(folder / f"recogs-{test_set}.txt")
            ]
            for folder in (recipe / "exp" / f"{method}-{seed}" for seed in seeds)
        ]
    )


@pytest.mark.slow
def test_every_method_is_trained_under_one_teacher(monkeypatch, recipe):
    assert compare(monkeypatch, recipe, "--seeds", "2", "--jobs", 2) == ""
    trained = [name for _, name, *_ in events(recipe, "train")]
    assert sorted(trained) == sorted(["teacher", *(f"{method}-2" for method in METHODS)])
    teacher = flags_of(recipe, "teacher")
    assert (teacher["--causal"], teacher["--seed"], teacher["--num-epochs"]) == ("0", "1", "3")
    assert "--teacher-exp-dir" not in teacher
    for method in METHODS:
        flags = flags_of(recipe, f"{method}-2")
        assert (flags["--causal"], flags["--seed"], flags["--num-epochs"]) == ("1", "2", "2")
        guided = {name: flags[name] for name in flags if name.startswith("--teacher")}
        expected = {} if method in WITHOUT_TEACHER else {"--teacher-exp-dir": "exp/teacher", "--teacher-avg": "1"}
        assert guided == expected, method


@pytest.mark.slow
def test_methods_that_distil_wait_for_the_teacher_and_the_baseline_does_not(monkeypatch, recipe):
    few = ("--methods", "branch-feature,baseline", "--seeds", "1", "--jobs", 2, "--train-flags", "--warm-step 200")
    assert compare(monkeypatch, recipe, *few) == ""
    order = [(kind, name) for kind, name, *_ in events(recipe, "train", "trained")]
    assert order.index(("trained", "teacher")) < order.index(("train", "branch-feature-1"))
    assert order.index(("train", "baseline-1")) < order.index(("trained", "teacher"))


@pytest.mark.slow
def test_what_the_teacher_hears_is_stored_once_and_read_by_all_who_distil(monkeypatch, recipe):
    few = ("--methods", "baseline,init-from-teacher,branch-feature", "--seeds", "1", "--cache-teacher", 1)
    assert compare(monkeypatch, recipe, *few) == ""
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,2") == ""
    assert events(recipe, "cache") == [["cache", "teacher", "exp/teacher-cache-v3", "1"]]
    order = [(kind, name) for kind, name, *_ in events(recipe)]
    cached = order.index(("cache", "teacher"))
    assert order.index(("trained", "teacher")) < cached < order.index(("train", "branch-feature-1"))
    for method, expected in (("baseline", None), ("branch-feature", "exp/teacher-cache-v3")):
        assert flags_of(recipe, f"{method}-2").get("--teacher-cache") == expected


@pytest.mark.slow
def test_the_layers_that_are_stored_are_those_that_the_students_tap(monkeypatch, recipe):
    few = ("--methods", "branch-feature", "--seeds", "1", "--cache-teacher", 1, "--train-flags", "--kd-layers 1.0")
    assert "--cache-teacher 1: stores the last layer of each stack" in compare(monkeypatch, recipe, *few)
    alone = compare(monkeypatch, recipe, *few, "--cache-teacher", 0, "--cache-layers", "1.0")
    assert "--cache-layers: no cache is written; give --cache-teacher 1" in alone
    assert events(recipe) == []
    assert compare(monkeypatch, recipe, *few, "--cache-layers", "1.0") == ""
    cache = "exp/teacher-cache-v3-1.0"
    assert "--layers 1.0 " in (recipe / cache / "complete").read_text()
    assert flags_of(recipe, "branch-feature-1")["--teacher-cache"] == cache
    assert compare(monkeypatch, recipe, *few, "--cache-layers", "1.0") == ""
    assert len(events(recipe, "cache")) == 1
    assert compare(monkeypatch, recipe, *few, "--cache-layers", "1.0,2.1") == ""  # the student taps what it tapped
    assert len(events(recipe, "cache")) == 2 and len(events(recipe, "train")) == 2


def test_the_students_cuts_are_stored_whatever_the_teacher_was_trained_on(monkeypatch, recipe):
    few = ("--methods", "branch-feature", "--seeds", "1", "--cache-teacher", 1, "--train-flags")
    flags = "--train-parts mine,more --manifest-dir data/mine --warm-step 3 --teacher-epoch 2"
    assert compare(monkeypatch, recipe, *few, flags) == ""
    command = (recipe / "exp" / "teacher-cache-v3" / "complete").read_text()
    assert "--train-parts mine,more" in command and "--manifest-dir data/mine" in command
    assert "--warm-step" not in command
    assert "--train-cuts '' --pseudo-cuts ''" in command and "--max-utterance-seconds 20.0" in command
    assert "--teacher-epoch 2" in command and flags_of(recipe, "branch-feature-1")["--teacher-epoch"] == "2"


def test_flags_that_make_chunks_are_not_of_the_teacher(monkeypatch, recipe):
    chunks = ("--decode-flags", "--chunk-size 16 --left-context-frames 64 --beam-size 2")
    assert compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1", *chunks) == ""
    page = (recipe / "exp" / "comparison.md").read_text()
    assert "--avg 1 --beam-size 2 --system teacher" in page
    assert "--avg 1 --chunk-size 16 --left-context-frames 64 --beam-size 2 --system branch-feature" in page


def test_flags_for_training_are_added_to_those_of_the_embedded_corpus(monkeypatch, recipe):
    more = ("--train-flags", "--warm-step 7 --use-bf16 1")
    assert compare(monkeypatch, recipe, "--methods", "baseline", "--seeds", "1", *more) == ""
    flags = flags_of(recipe, "baseline-1")
    assert (flags["--warm-step"], flags["--use-bf16"], flags["--preset"]) == ("7", "1", "tiny")


def test_without_a_method_that_distils_there_is_no_teacher(monkeypatch, recipe):
    assert compare(monkeypatch, recipe, "--methods", "baseline,baseline", "--seeds", "1,1") == ""
    assert [name for _, name, *_ in events(recipe, "train")] == ["baseline-1"]
    assert list(rows_of(recipe)["baseline"]) == ["method", "seeds", "clean WER %", "clean vs baseline %"] + [
        "other WER %", "other vs baseline %", "compute (h)"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_teacher_that_is_there_is_used_and_left_as_it_is(monkeypatch, recipe):
    assert compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1") == ""
    teacher = recipe / "exp" / "teacher"
    before = {path: path.read_bytes() for path in teacher.iterdir() if path.suffix != ".txt"}
    other = ("--exp-root", recipe / "exp2", "--teacher-exp-dir", teacher, "--train-flags", "--base-lr 0.1")
    assert compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1", *other) == ""
    assert {path: path.read_bytes() for path in teacher.iterdir() if path.suffix != ".txt"} == before
    rows = json.loads((recipe / "exp2" / "comparison.json").read_text())
    assert [row["method"] for row in rows] == ["teacher", "branch-feature"]
    assert [name for _, name, *_ in events(recipe, "train")] == ["teacher", "branch-feature-1", "branch-feature-1"]


@pytest.fixture()
def other_teacher(monkeypatch, recipe) -> Path:
    """A teacher that was trained in another comparison, for three epochs."""
    assert compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1") == ""
    return recipe / "exp" / "teacher"


def under_another(recipe: Path, teacher: Path, train_flags: str = "--base-lr 0.1") -> tuple[Any, ...]:
    """Flags of a comparison in exp2 under a teacher that was trained elsewhere."""
    shared = ("--methods", "branch-feature", "--cache-teacher", 1, "--train-flags", train_flags)
    return (*shared, "--exp-root", recipe / "exp2", "--teacher-exp-dir", teacher)


def teacher_epochs(recipe: Path) -> list[str | None]:
    """Of the students in exp2, the epoch of their teacher."""
    students = sorted((recipe / "exp2").glob("branch-feature-*/flags.json"))
    return [json.loads(path.read_text()).get("--teacher-epoch") for path in students]


def decoded_epochs(recipe: Path) -> list[str]:
    """The epochs of the teacher that the page of exp2 decodes."""
    page = (recipe / "exp2" / "comparison.md").read_text()
    return re.findall(r"decode.py --exp-dir exp/teacher --epoch (\d)", page)


@pytest.mark.slow
def test_seeds_that_are_added_have_the_teachers_epoch_of_the_others(monkeypatch, recipe, other_teacher):
    few = under_another(recipe, other_teacher)
    assert compare(monkeypatch, recipe, *few, "--seeds", "1") == ""
    (other_teacher / "epoch-4.pt").touch()  # trained further since
    before = events(recipe)
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,2") == ""
    assert teacher_epochs(recipe) == ["3", "3"] and decoded_epochs(recipe) == ["3"]
    added = events(recipe)[len(before) :]
    assert {name for _, name, *_ in added} == {"branch-feature-2"}  # nothing is stored or decoded again


@pytest.mark.slow
def test_a_comparison_that_was_begun_without_the_teachers_epoch_goes_on(monkeypatch, recipe, other_teacher):
    few = under_another(recipe, other_teacher)
    assert compare(monkeypatch, recipe, *few, "--seeds", "1") == ""
    begun = recipe / "exp2" / "branch-feature-1"
    text = (begun / "train-flags.txt").read_text()
    (begun / "train-flags.txt").write_text(text.replace(" --teacher-epoch 3", ""))
    config = ExperimentConfig.load(begun)
    replace(config, distill=replace(config.distill, teacher_epoch=2)).save(begun)  # the last one at that time
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,2") == ""
    assert teacher_epochs(recipe) == ["3", "2"] and decoded_epochs(recipe) == ["2"]
    assert len(events(recipe, "train")) == 2 + 2


def test_the_teachers_epoch_that_is_typed_teaches_and_is_decoded(monkeypatch, recipe, other_teacher):
    few = (*under_another(recipe, other_teacher, "--base-lr 0.1 --teacher-epoch 2"), "--seeds", "1")
    assert compare(monkeypatch, recipe, *few) == ""
    assert teacher_epochs(recipe) == ["2"] and decoded_epochs(recipe) == ["2"]
    assert "--teacher-epoch 2 " in (recipe / "exp2" / "teacher-cache-v3" / "complete").read_text()
    other = (*under_another(recipe, other_teacher, "--base-lr 0.1 --teacher-epoch 1"), "--seeds", "1")
    assert "branch-feature-1/train-flags.txt: this training was begun with other" in compare(
        monkeypatch, recipe, *other
    )


@pytest.mark.slow
def test_a_comparison_with_a_cache_of_an_old_version_goes_on(monkeypatch, recipe):
    few = ("--methods", "branch-feature", "--cache-teacher", 1)
    monkeypatch.setattr(methods, "VERSION", 1)
    assert compare(monkeypatch, recipe, *few, "--seeds", "1") == ""
    monkeypatch.undo()
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,2") == ""
    assert [line[2] for line in events(recipe, "cache")] == ["exp/teacher-cache-v1", f"exp/teacher-cache-v{VERSION}"]
    caches = [flags_of(recipe, f"branch-feature-{seed}")["--teacher-cache"] for seed in (1, 2)]
    assert caches == ["exp/teacher-cache-v1", f"exp/teacher-cache-v{VERSION}"]
    assert len(events(recipe, "train")) == 3  # the first student is not trained again


def test_trainings_without_a_teacher_get_no_distillation_flags(monkeypatch, recipe):
    few = ("--methods", "baseline,branch-feature", "--seeds", "1", "--train-flags", "--kd-layers 1.0 --warm-step 3")
    assert compare(monkeypatch, recipe, *few) == ""
    for name in ("teacher", "baseline-1", "branch-feature-1"):
        flags = flags_of(recipe, name)
        given = {"--kd-layers", "--kd-warmup-batches", "--kd-feature-scale"} & set(flags)
        assert bool(given) == (name == "branch-feature-1") and flags["--warm-step"] == "3"


def test_no_training_of_a_comparison_is_given_flags_that_nothing_reads(recipe):
    comparison = methods.Comparison(recipe, recipe / "exp", list(METHODS), [1], 2, 3, 1, cache_teacher=True)
    for cell in comparison.cells():
        distill = read_section(DistillConfig, cell.train_flags)
        assert flags_without_effect(distill) == [], cell.exp_dir
        guided = distill.kd_warmup_batches == 100
        without = ("teacher", "baseline-1", "spec-aug-1", "cr-ctc-1", "init-from-teacher-1")
        assert guided == (cell.folder.name not in without)


def test_a_student_that_came_to_no_checkpoint_blocks_nothing(monkeypatch, recipe, other_teacher):
    few = ("--seeds", "1")
    failed = under_another(recipe, other_teacher, "--base-lr 666 --teacher-epoch 2")
    assert "failed: branch-feature-1" in compare(monkeypatch, recipe, *failed, *few)
    assert compare(monkeypatch, recipe, *under_another(recipe, other_teacher), *few) == ""
    assert teacher_epochs(recipe) == ["3"] and decoded_epochs(recipe) == ["3"]


@pytest.mark.parametrize("flags", ["--chunk 16", "--beam_size 2", "--kd-layers 1.0"])
def test_flags_that_decoding_does_not_have_are_refused_before_anything_runs(monkeypatch, recipe, flags):
    error = compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1", "--decode-flags", flags)
    assert error.startswith(f"error: {flags}: decode has no such flag;") and events(recipe) == []


@pytest.mark.slow
def test_our_own_teacher_of_other_flags_is_refused(monkeypatch, recipe):
    few = ("--methods", "branch-feature", "--seeds", "1")
    assert compare(monkeypatch, recipe, *few) == ""
    before = events(recipe)
    error = compare(monkeypatch, recipe, *few, "--teacher-num-epochs", 4)
    assert "teacher/train-flags.txt: this training was begun with other flags; use another --exp-root" in error
    assert events(recipe) == before


@pytest.mark.slow
def test_a_second_run_does_what_is_missing_alone(monkeypatch, recipe):
    assert compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1") == ""
    before, text = events(recipe), (recipe / "exp" / "comparison.md").read_text()
    assert compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1") == ""
    assert events(recipe) == before and (recipe / "exp" / "comparison.md").read_text() == text
    assert compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1,2") == ""
    assert {line[1] for line in events(recipe)[len(before) :]} == {f"{method}-2" for method in FEW.split(",")}


def test_where_the_teacher_fails_the_baseline_is_still_reported(monkeypatch, recipe, capsys):
    script = (recipe / "train.py").read_text()
    (recipe / "train.py").write_text(script.replace('"--base-lr") == "666"', '"--causal") == "0"'))
    error = compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1")
    assert error.startswith("error: failed: teacher, token-full-1") and "baseline" not in error
    assert "needs exp/teacher, which failed" in capsys.readouterr().err
    assert list(rows_of(recipe)) == ["baseline"]


def test_a_method_that_is_none_is_named(monkeypatch, recipe, capsys):
    assert compare(monkeypatch, recipe, "--methods", "baseline,bets") == "2"
    assert "no method bets; there are baseline," in capsys.readouterr().err


@pytest.mark.slow
def test_reductions_are_over_seeds_and_utterances_against_baseline_and_best_token_form(monkeypatch, recipe):
    """The stub's full form errs more than its collapsed one, which is therefore what to beat."""
    assert compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1,2") == ""
    rows = rows_of(recipe)
    for test_set in ("clean", "other"):
        errors = {method: errors_of(recipe, method, test_set, "12") for method in FEW.split(",")}
        assert errors["token-collapsed"].sum() < errors["token-full"].sum()
        system = errors["branch-feature"]
        for rival in ("baseline", "token-collapsed"):
            point, low, high = map(float, re.findall(r"-?[\d.]+", rows["branch-feature"][f"{test_set} vs {rival} %"]))
            assert point == pytest.approx(100 * (1 - system.sum() / errors[rival].sum()), abs=0.051)
            rng = random.Random(0)
            slow = []
            for _ in range(4000):
                drawn = rng.choices(range(30), k=30)
                after, before = (of[rng.choices(range(2), k=2)][:, drawn].sum() for of in (system, errors[rival]))
                slow.append(100 * (1 - after / before))
            assert [low, high] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist(), abs=0.08 * (high - low))
        assert rows["baseline"][f"{test_set} vs baseline %"] is None
        assert rows["token-collapsed"][f"{test_set} vs token-collapsed %"] is None
        assert f"{test_set} vs token-full %" not in rows["baseline"]


@pytest.mark.slow
def test_rows_have_mean_deviation_and_hours_over_the_seeds(monkeypatch, recipe):
    assert compare(monkeypatch, recipe, "--methods", "baseline", "--seeds", "1,2,3") == ""
    row = rows_of(recipe)["baseline"]
    wers = [r.wer for seed in "123" for r in load_records(recipe / "exp" / f"baseline-{seed}" / "results.json")][::2]
    assert row["clean WER %"] == f"{np.mean(wers):.2f} ± {np.std(wers, ddof=1):.2f}"
    assert (row["seeds"], row["compute (h)"]) == (3, 2.5)


@pytest.mark.slow
def test_what_is_published_is_rendered_and_names_every_command(monkeypatch, recipe):
    name = recipe / "published" / "methods"
    assert compare(monkeypatch, recipe, "--methods", FEW, "--seeds", "1,2", "--publish", name) == ""
    assert len(load_records(name.with_name("methods.json"))) == 2 * (1 + 4 * 2)
    assert render(name.with_name("methods-comparison.json")).startswith("| method | seeds | clean WER % |")
    page = (recipe / "exp" / "comparison.md").read_text()
    assert page.count("python train.py --exp-dir exp/") == 9 and page.count("python decode.py --exp-dir exp/") == 9


@pytest.mark.slow
def test_methods_can_be_held_against_any_of_them(monkeypatch, recipe):
    flags = ("--methods", FEW, "--seeds", "1", "--baseline", "branch-feature")
    assert compare(monkeypatch, recipe, *flags) == ""
    rows = rows_of(recipe)
    assert rows["branch-feature"]["clean vs branch-feature %"] is None
    assert rows["baseline"]["clean vs branch-feature %"] is not None and "clean vs baseline %" not in rows["baseline"]


@pytest.mark.slow
def test_a_comparison_without_what_to_compare_with_says_so(monkeypatch, recipe, capsys):
    assert compare(monkeypatch, recipe, "--methods", "branch-feature", "--seeds", "1") == ""
    assert "no record of baseline, so nothing is compared with it" in capsys.readouterr().err
    assert compare(monkeypatch, recipe, "--methods", "baseline", "--seeds", "1") == ""
    assert "no record of" not in capsys.readouterr().err


def test_an_empty_comparison_is_empty():
    assert compare_seeds([], "baseline", []) == []


def test_the_default_budget_is_that_of_run_sh():
    """Every flag that run.sh gives all of its trainings as a plain number, and --kd-warmup-batches of its student.

    But --lr-epochs: it goes with the passes, and run.sh's baseline has more.
    """
    text = RUN_SH.read_text()
    train = text[text.index("\ntrain() {") : text.index("\nif stages 5")] + re.search(r"train_flags=.*", text)[0]
    numbers = re.findall(r"(--[a-z-]+) ([\d.]+)(?![\w.])", train)
    settings = {name: value for name, value in numbers if name not in ("--resume", "--causal", "--lr-epochs")}
    words: list[str] = shlex.split(methods.EMBEDDED_CORPUS)
    ours = dict(zip(words[::2], words[1::2], strict=True))
    assert len(settings) >= 13 and {name: ours.get(name) for name in settings} == settings
    assert ours["--max-duration"] == re.search(r"^max_duration=(\d+)", text, re.MULTILINE)[1]
    assert ours["--accum-grad"] == "2"  # run.sh's processes where there is no GPU
