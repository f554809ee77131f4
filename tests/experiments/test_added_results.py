"""Seeds that --add-results brings from elsewhere: which count, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdstream.errors import UserError
from kdstream.evaluation.compare import compare_seeds
from kdstream.evaluation.records import add_record
from support.experiments import compare, events, make_recipe
from support.records import make_record

LIKE_THE_STUBS = {"utterance_errors": (1,) * 30, "utterance_words": (10,) * 30}
FEW = "baseline,token-full,token-collapsed,branch-feature"


@pytest.fixture()
def recipe(tmp_path) -> Path:
    return make_recipe(tmp_path / "egs" / "recipe")


@pytest.mark.slow
def test_seeds_of_another_machine_count_too(monkeypatch, recipe):
    """What two roots with two seeds each say together is what one with all four says."""
    few = ("--methods", FEW)
    here, there, all_of_them = (recipe / name for name in ("here", "there", "all"))
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,3", "--exp-root", there, "--publish", there / "seeds") == ""
    added = ("--add-results", there / "seeds.json", "--publish", here / "seeds")
    assert compare(monkeypatch, recipe, *few, "--seeds", "2,4", "--exp-root", here, *added) == ""
    assert compare(monkeypatch, recipe, *few, "--seeds", "1,2,3,4", "--exp-root", all_of_them) == ""
    together, at_once = (json.loads((root / "comparison.json").read_text()) for root in (here, all_of_them))
    assert together == at_once and together[1]["seeds"] == 4
    assert f"are those of {there / 'seeds.json'}." in (here / "comparison.md").read_text()
    twice = ("--seeds", "4", "--exp-root", here, "--add-results", here / "seeds.json")
    assert compare(monkeypatch, recipe, *few, *twice) == ""
    assert json.loads((here / "comparison.json").read_text()) == at_once  # no seed counts twice


def test_results_that_cannot_be_added_are_refused_before_anything_is_trained(monkeypatch, recipe):
    few = ("--methods", "baseline", "--seeds", "1", "--add-results")
    missing = recipe / "missing.json"
    assert f"--add-results: {missing}: no such file; name a results JSON" in compare(monkeypatch, recipe, *few, missing)
    (recipe / "damaged.json").write_text("[{")
    damaged = compare(monkeypatch, recipe, *few, recipe / "damaged.json")
    assert f"--add-results: {recipe / 'damaged.json'}: not a results JSON (" in damaged
    add_record(recipe / "other.json", make_record(system="distilled"))
    assert "other.json: not from a comparison of methods; it has distilled" in compare(
        monkeypatch, recipe, *few, recipe / "other.json"
    )
    assert not events(recipe)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({}, "baseline, seed 9, clean: its record lacks utterance_errors"),
        ({"utterance_errors": (1, 2), "utterance_words": (5, 5)}, "scored on other utterances"),
        (
            {**LIKE_THE_STUBS, "chunk_ms": 320},
            "seed 9, clean: was decoded as epoch-30_avg-9, simulated, 320, 640, 0, greedy_search, word, but ",
        ),
        (
            {**LIKE_THE_STUBS, "checkpoint": "epoch-40_avg-9"},
            "seed 9, clean: was decoded as epoch-40_avg-9, simulated, 160, 640, 0, greedy_search, word, but ",
        ),
        ({**LIKE_THE_STUBS, "chunk_ms": 320, "seed": 1}, "baseline, seed 1, clean: was decoded as epoch-"),
    ],
)
def test_seeds_of_other_utterances_or_settings_are_not_pooled(monkeypatch, recipe, changes, named):
    few = ("--methods", "baseline", "--seeds", "1")
    add_record(recipe / "odd.json", make_record(**{"system": "baseline", "seed": 9, "test_set": "clean", **changes}))
    assert named in compare(monkeypatch, recipe, *few, "--add-results", recipe / "odd.json")


def test_a_seed_of_two_files_is_pooled_with_neither(monkeypatch, recipe):
    """Two machines that both trained seed 9 have trained it twice; which of the two counts, nobody could tell."""
    paths = [recipe / "one.json", recipe / "other.json"]
    for path, errors in zip(paths, ((1,) * 30, (2,) * 30), strict=True):
        stub = {**LIKE_THE_STUBS, "utterance_errors": errors}
        add_record(path, make_record(system="baseline", seed=9, test_set="clean", **stub))
    both = ("--methods", "baseline", "--seeds", "1", "--add-results", ",".join(map(str, paths)))
    problem = f"--add-results {paths[1]}: baseline, seed 9, clean: is in {paths[0]} too, with other errors"
    assert problem in compare(monkeypatch, recipe, *both)
    assert not events(recipe)


@pytest.mark.slow
def test_a_seed_that_is_trained_here_too_counts_as_here(monkeypatch, recipe, caplog):
    few = ("--methods", "baseline", "--seeds", "1")
    assert compare(monkeypatch, recipe, *few) == ""
    alone = (recipe / "exp" / "comparison.json").read_text()
    there = {"utterance_errors": (3,) * 30, "utterance_words": (10,) * 30}
    add_record(recipe / "there.json", make_record(system="baseline", seed=1, test_set="clean", **there))
    assert compare(monkeypatch, recipe, *few, "--add-results", recipe / "there.json") == ""
    assert (recipe / "exp" / "comparison.json").read_text() == alone
    assert [m for m in caplog.messages if "baseline, seed 1, clean: does not count, as the seed was trained here" in m]


def test_a_seed_counts_once():
    record = make_record(seed=3, **LIKE_THE_STUBS)
    with pytest.raises(UserError, match="baseline, seed 3, test-clean: is there twice"):
        compare_seeds([record, record], "baseline", [])


def test_a_seed_lacks_no_test_set():
    records = [make_record(seed=n, test_set=name, **LIKE_THE_STUBS) for name in ("clean", "other") for n in (1, 2)]
    assert compare_seeds(records, "baseline", [])[0]["seeds"] == 2
    for few, lacking in ((records[:3], "clean, and not on other"), (records[1:], "other, and not on clean")):
        with pytest.raises(UserError, match=f"^baseline, seed [12]: is scored on {lacking}; decode it on both"):
            compare_seeds(few, "baseline", [])
