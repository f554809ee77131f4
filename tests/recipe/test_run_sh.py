"""run.sh with a python that only pretends: what it does again, what it does not, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.paths import ROOT

RECIPE = ROOT / "egs" / "librispeech"

# Notes its arguments; a training leaves its last epoch and its config.json.  Where there is a file `slow`, a decoding
# notes its process and waits.  Asked, it knows of no GPU, and of no training that has not ended but that in `unended`.
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c && $2 == *has_ended* ]]; then [[ ! -f unended || $3 != $(<unended) ]]; exit; fi
[[ $1 != -c ]] || { echo 0; exit; }
echo "$*" >>calls
if [[ $1 == train.py ]]; then
  while (($#)); do
    case $1 in --exp-dir) exp_dir=$2 ;; --num-epochs) epoch=$2 ;; esac
    shift
  done
  mkdir -p "$exp_dir"
  echo '{"use_ctc": false}' >"$exp_dir/config.json"
  touch "$exp_dir/epoch-$epoch.pt"
elif [[ -f slow ]]; then
  echo $$ >>slow
  exec sleep 60
fi
"""


@pytest.fixture()
def recipe(tmp_path: Path) -> Path:
    """A checkout, in a directory with a space, of which run.sh is real."""
    recipe = tmp_path / "a checkout" / "egs" / "librispeech"
    recipe.mkdir(parents=True)
    for name in ("run.sh", "corpora.sh"):
        shutil.copy(RECIPE / name, recipe)
    python = recipe.parents[1] / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return recipe


def run(recipe: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(recipe / "run.sh"), "--stage", "2", "--stop-stage", "5", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def calls(recipe: Path) -> list[str]:
    """The commands since the last question."""
    path = recipe / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_a_second_run_does_nothing_again(recipe):
    assert run(recipe).returncode == 0
    first = calls(recipe)
    assert [line.split()[2] for line in first[:3]] == ["exp/teacher", "exp/baseline", "exp/distilled"]
    assert sum(line.startswith(("decode.py", "streaming_decode.py")) for line in first) == 1 + 2 * 4
    assert run(recipe).returncode == 0
    assert calls(recipe) == []


@pytest.mark.parametrize("flags", [("--distill-flags", "--init-from-teacher 1"), ("--preset", "small")])
def test_a_training_with_other_flags_is_refused(recipe, flags):
    run(recipe)
    calls(recipe)
    refused = run(recipe, *flags)
    assert refused.returncode == 1 and calls(recipe) == []
    assert "train-flags.txt: this training was begun with other flags; use another --exp-root" in refused.stderr


def epochs(lines: list[str]) -> list[str]:
    """The experiments that are trained and their epochs."""
    trainings = [line.split() for line in lines if line.startswith("train.py")]
    return [f"{words[2]} {words[words.index('--num-epochs') + 1]}" for words in trainings]


def test_the_baseline_trains_as_long_as_teacher_and_student_together(recipe):
    run(recipe)
    assert epochs(calls(recipe)) == ["exp/teacher 10", "exp/baseline 15", "exp/distilled 5"]
    assert run(recipe, "--exp-root", str(recipe / "others"), "--teacher-num-epochs", "24").returncode == 0
    first = calls(recipe)
    assert epochs(first) == ["others/teacher 24", "others/baseline 29", "others/distilled 5"]
    decoded = [line.split()[2:5] for line in first if line.startswith("decode.py")]
    assert sorted(decoded) == [
        ["others/baseline", "--epoch", "29"], ["others/distilled", "--epoch", "5"], ["others/teacher", "--epoch", "24"]
    ]  # fmt: skip


def test_more_epochs_are_trained_and_decoded(recipe):
    run(recipe)
    calls(recipe)
    more = ("--num-epochs", "9", "--teacher-num-epochs", "11", "--baseline-num-epochs", "16")
    assert run(recipe, *more).returncode == 0
    again = calls(recipe)
    assert len(again) == 3 + 9 and epochs(again) == ["exp/teacher 11", "exp/baseline 16", "exp/distilled 9"]
    assert run(recipe, *more, "--num-epochs", "10").returncode == 0
    again = calls(recipe)
    assert len(again) == 1 + 4 and epochs(again) == ["exp/distilled 10"]


def test_what_has_been_trained_anew_is_decoded_anew(recipe):
    run(recipe)
    calls(recipe)
    (recipe / "exp" / "distilled" / "epoch-5.pt").unlink()
    assert run(recipe).returncode == 0
    again = calls(recipe)
    assert len(again) == 1 + 4 and all("--exp-dir exp/distilled" in line for line in again)


def test_a_training_that_was_killed_in_its_last_validation_is_resumed(recipe):
    run(recipe)
    calls(recipe)
    (recipe / "unended").write_text("exp/distilled\n")
    assert run(recipe).returncode == 0
    again = calls(recipe)
    assert len(again) == 1 + 4 and again[0].startswith("train.py --exp-dir exp/distilled --resume 1 ")


def test_other_test_speech_is_decoded_and_that_which_was_mended(recipe):
    run(recipe)
    assert all("--manifest-dir data/fbank --test-parts test" in line for line in calls(recipe)[3:])
    decode = ("--stage", "5", "--test-parts", "other,test", "--data-dir", str(recipe / "elsewhere"))
    assert run(recipe, *decode).returncode == 0
    again = calls(recipe)
    assert len(again) == 9 and all("--manifest-dir elsewhere/fbank --test-parts other,test" in line for line in again)
    assert run(recipe, *decode).returncode == 0 and not calls(recipe)
    (recipe / "elsewhere" / "fbank").mkdir(parents=True)
    (recipe / "elsewhere" / "fbank" / "librispeech_cuts_test.jsonl.gz").touch()
    assert run(recipe, *decode).returncode == 0 and len(calls(recipe)) == 9


def test_a_mean_of_more_epochs_than_there_will_be_is_refused_at_once(recipe):
    for flag, number in (("--num-epochs", "2"), ("--teacher-num-epochs", "1"), ("--baseline-num-epochs", "2")):
        refused = run(recipe, "--avg", "3", flag, number)
        assert refused.returncode == 1 and f"--avg 3: is more than {flag} {number}" in refused.stderr
        assert calls(recipe) == []


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--num-epochs", "eight"), ("--teacher-num-epochs", "0"), ("--avg", "3.5"), ("--stop-stage", "two"),
        ("--chunk-size", "8,16"), ("--left-context-frames", "-2"), ("--world-size", "0"), ("--vocab-size", "09"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused_at_once(recipe, flag, value):
    refused = run(recipe, flag, value)
    assert refused.returncode == 1 and refused.stderr.startswith(
        f"error: {flag} {value}: not a whole number of at least"
    )
    assert len(refused.stderr.splitlines()) == 1 and calls(recipe) == []


def test_a_corpus_of_a_recipe_has_places_of_its_own_and_the_parts_that_stage_1_found(recipe):
    refused = run(recipe, "--lhotse-recipe", "tedlium", "--corpus-dir", ".")
    assert (
        refused.returncode == 1
        and "data-tedlium/manifests/tedlium_parts.sh: no such file; run stage 1" in refused.stderr
    )
    assert "--corpus-dir" in run(recipe, "--lhotse-recipe", "tedlium").stderr
    found = recipe / "data-tedlium" / "manifests" / "tedlium_parts.sh"
    found.parent.mkdir(parents=True)
    found.write_text("train_parts=a,b\ndev_parts=c\ntest_parts=d\n")
    assert run(recipe, "--lhotse-recipe", "tedlium", "--corpus-dir", ".", "--token-type", "char").returncode == 0
    first = calls(recipe)[0]
    assert "--exp-dir exp-tedlium/teacher" in first and "--bpe-model data-tedlium/lang_char/bpe.model" in first
    assert "--manifest-dir data-tedlium/fbank --train-parts a,b --dev-parts c --test-parts d" in first
    typed = ("--exp-root", str(recipe / "other"), "--stage", "2", "--train-parts", "a,a_augmented", "--test-parts", "c")
    assert run(recipe, "--lhotse-recipe", "tedlium", "--corpus-dir", ".", *typed).returncode == 0
    later = next(call for call in calls(recipe) if "--exp-dir other/teacher" in call)
    assert "--train-parts a,a_augmented --dev-parts c --test-parts c" in later


def test_aishell_is_librispeechs_run_with_flags(recipe):
    aishell = recipe.parent / "aishell"
    aishell.mkdir()
    shutil.copy(ROOT / "egs" / "aishell" / "run.sh", aishell)
    found = aishell / "data" / "manifests" / "aishell_parts.sh"
    found.parent.mkdir(parents=True)
    found.write_text("train_parts=train\ndev_parts=dev\ntest_parts=test\n")
    command = ["bash", str(aishell / "run.sh"), "--corpus-dir", str(aishell), "--stage", "2", "--stop-stage", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    (call,) = calls(recipe)
    assert "--exp-dir ../aishell/exp/teacher" in call and "--bpe-model ../aishell/data/lang_char/bpe.model" in call


def hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs deaf to it


@pytest.mark.slow
def test_a_run_that_is_told_to_end_takes_its_decodings_along(recipe):
    run(recipe)
    for system in ("baseline", "distilled"):
        for mark in (recipe / "exp" / system).glob(".decoded*"):
            mark.unlink()
    (recipe / "slow").touch()
    command = ["bash", str(recipe / "run.sh"), "--stage", "5", "--stop-stage", "5"]
    runner = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hear_ctrl_c)
    pids: list[int] = []
    end = time.monotonic() + 30
    while len(pids) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        pids = [int(line) for line in (recipe / "slow").read_text().split()]
    assert len(pids) == 2
    os.killpg(runner.pid, signal.SIGINT)
    runner.wait(timeout=30)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
