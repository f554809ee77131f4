"""prepare.sh on small trees of audio: what it makes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from kdstream.config.sections import DataConfig
from kdstream.corpus.line_table import LINES
from kdstream.corpus.manifests import prepare_part
from support.data import batches_of, make_part
from support.paths import ROOT

# Notes its arguments, and leaves what each script would leave.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>calls
flag() { while [[ $1 != "$name" ]]; do shift; done; echo "$2"; }
out=$(name=--output-dir; [[ "$*" != *--output-dir* ]] || flag "$@")
case $1 in
  *prepare_recipe.py) printf 'train_parts=all\\ndev_parts=dev\\ntest_parts=test\\n' >"$out/yesno_parts.sh" ;;
  *compute_fbank.py)
    table=$(name=--table; flag "$@")
    part=${table##*/.}
    cuts=yesno_cuts_${part%.table}.jsonl.gz
    touch "$out/$cuts"
    printf '  cuts hours\\n     1  0.00 %s\\n' "$cuts" >"$table" ;;
  *train_bpe_model.py) lang=$(name=--lang-dir; flag "$@"); mkdir -p "$lang"; touch "$lang/bpe.model" ;;
esac
"""


def run_prepare(*arguments: str, cwd: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "egs" / "librispeech" / "prepare.sh"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_prepare_takes_any_tree_in_librispeechs_layout_and_skips_what_is_done(tmp_path):
    make_part(tmp_path / "mine", "train-a", 1, 8, seed=1)
    make_part(tmp_path / "mine", "train-b", 2, 8, seed=2)
    make_part(tmp_path / "mine", "dev-a", 3, 3, seed=3)
    arguments = ["--corpus-dir", "mine", "--train-parts", "train-a,train-b", "--dev-parts", "dev-a"]
    arguments += ["--test-parts", "dev-a", "--vocab-size", "30", "--data-dir", "my data", "--perturb-speed", "true"]
    result = run_prepare(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = tmp_path / "my data"
    tokens = (data / "lang_bpe_30" / "tokens.txt").read_text().splitlines()
    assert tokens[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert [line.split()[1] for line in tokens] == [str(i) for i in range(30)]
    assert any(line.startswith("\u2581") for line in tokens)
    cuts = list(CutSet.from_file(data / "fbank" / "librispeech_cuts_train-a.jsonl.gz"))
    copies = ("", "_sp0.9", "_sp1.1")
    assert sorted(cut.id for cut in cuts) == sorted(f"1-1-{i:04d}{copy}" for i in range(8) for copy in copies)
    assert len(list(CutSet.from_file(data / "fbank" / "librispeech_cuts_dev-a.jsonl.gz"))) == 3
    config = DataConfig(
        manifest_dir=str(data / "fbank"),
        train_parts=("train-a", "train-b"),
        dev_parts=("dev-a",),
        test_parts=("dev-a",),
        bpe_model=str(data / "lang_bpe_30" / "bpe.model"),
        max_duration=10.0,
        num_workers=0,
    )
    seen = [i for b in batches_of(config) for i in b.cut_ids]
    assert len(seen) == len(set(seen)) == 48

    before = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    again = run_prepare(*arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()} == before

    lost = data / "fbank" / "librispeech_cuts_train-a.jsonl.gz"
    lost.unlink()
    assert run_prepare(*arguments, cwd=tmp_path).returncode == 0 and lost.is_file()
    after = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    anew = [str(path.relative_to(data)) for path in after if after[path] != before.get(path)]
    assert anew and all("train-a" in name for name in anew)

    for path in (tmp_path / "mine" / "LibriSpeech" / "train-b").rglob("*.trans.txt"):
        path.write_text(path.read_text().replace(path.read_text().split()[1], "MENDED", 1))
    assert run_prepare(*arguments, cwd=tmp_path).returncode == 0
    texts = [cut.supervisions[0].text for cut in CutSet.from_file(data / "fbank" / "librispeech_cuts_train-b.jsonl.gz")]
    assert sum("MENDED" in text for text in texts) == 3  # at each speed
    mended = [path for path in after if path.stat().st_mtime_ns != after[path]]
    assert all("train-b" in path.name or "train-b" in path.parent.name for path in mended)

    tokens_before = (data / "lang_bpe_30" / "bpe.model").read_bytes()
    other = run_prepare(*arguments, "--train-parts", "train-a", cwd=tmp_path)
    assert other.returncode == 1 and "lang_bpe_30: has the tokens of other text" in other.stderr
    assert (data / "lang_bpe_30" / "bpe.model").read_bytes() == tokens_before
    both = run_prepare(*arguments, "--test-parts", "train-a", cwd=tmp_path)
    assert both.returncode == 1 and "part train-a: is to be trained on" in both.stderr


@pytest.mark.slow
def test_prepare_makes_tokens_of_each_type_and_copies_as_through_lines(tmp_path):
    make_part(tmp_path / "mine", "train-a", 1, 8, seed=1)
    make_part(tmp_path / "mine", "dev-a", 3, 2, seed=3)
    parts = ["--train-parts", "train-a", "--dev-parts", "dev-a", "--test-parts", "dev-a"]
    arguments = ["--corpus-dir", "mine", *parts, "--data-dir", "data", "--perturb-speed", "false"]
    augment = ["--augment", "narrowband,volume", "--augment-share", "1"]
    chars = run_prepare(*arguments, *augment, "--token-type", "char", "--text-case", "lower", cwd=tmp_path)
    assert chars.returncode == 0, chars.stderr
    assert "--train-parts train-a,train-a_augmented --dev-parts dev-a" in chars.stdout
    assert "data/lang_char/bpe.model" in chars.stdout
    pieces = [line.split()[0] for line in (tmp_path / "data" / "lang_char" / "tokens.txt").read_text().splitlines()]
    assert all(len(piece) == 1 and not piece.isupper() for piece in pieces[3:]) and "\u2581" in pieces
    copies = CutSet.from_file(tmp_path / "data" / "fbank" / "librispeech_cuts_train-a_augmented.jsonl.gz")
    names = sorted(f"1-1-{i:04d}_{name}" for i in range(8) for name in ("narrowband", "volume"))
    assert sorted(cut.id for cut in copies) == names
    config = DataConfig(
        manifest_dir=str(tmp_path / "data" / "fbank"),
        train_parts=("train-a", "train-a_augmented"),
        bpe_model=str(tmp_path / "data" / "lang_char" / "bpe.model"),
        max_duration=10.0,
        num_workers=0,
    )
    assert sum(len(batch.cut_ids) for batch in batches_of(config)) == 24
    bytes_too = run_prepare(*arguments, "--stage", "5", "--token-type", "byte-bpe", "--vocab-size", "280", cwd=tmp_path)
    assert bytes_too.returncode == 0 and "<0xFF> 258" in (tmp_path / "data/lang_bbpe_280/tokens.txt").read_text()


def test_blanks_beside_commas_and_a_comma_at_the_end_are_no_part_of_names(tmp_path):
    (tmp_path / "mine" / "LibriSpeech").mkdir(parents=True)
    parts = ["--train-parts", " a, b c ,", "--dev-parts", "d ", "--test-parts", "d,,e"]
    result = run_prepare("--corpus-dir", "mine", *parts, "--data-dir", "data", "--stage", "6", cwd=tmp_path)
    assert "/data/fbank --train-parts a,b c --dev-parts d --test-parts d,e " in result.stdout, result.stderr


@pytest.mark.slow
def test_prepare_takes_the_musan_that_is_there_and_makes_its_manifests_anew_where_they_are_lost(tmp_path):
    make_part(tmp_path / "mine", "a", 1, 4, seed=1)
    for kind in ("music", "speech", "noise"):
        (tmp_path / "there" / "musan" / kind).mkdir(parents=True)
        soundfile.write(tmp_path / "there" / "musan" / kind / f"{kind}.wav", np.zeros(96000), 16000)
    (tmp_path / "there" / "musan" / "music" / "ANNOTATIONS").write_text("music classical N nobody\n")
    flags = ["--corpus-dir", "mine", "--train-parts", "a", "--dev-parts", "b", "--test-parts", "b", "--musan", "true"]
    flags += ["--dl-dir", "there", "--data-dir", "data"]
    for lost in ((), ("musan_recordings_music", "musan_recordings_noise", "musan_recordings_speech")):
        for name in lost:
            (tmp_path / "data" / "manifests" / f"{name}.jsonl.gz").unlink()
        for stages in (("0", "0"), ("2", "2"), ("4", "4")):
            result = run_prepare(*flags, "--stage", stages[0], "--stop-stage", stages[1], cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        cuts = CutSet.from_file(tmp_path / "data" / "fbank" / "musan_cuts.jsonl.gz")
        assert {cut.recording.sources[0].source for cut in cuts} == {
            str(tmp_path / "there" / "musan" / kind / f"{kind}.wav") for kind in ("music", "speech", "noise")
        }


@pytest.mark.slow
def test_prepare_leaves_a_corpus_that_is_there_alone(tmp_path):
    for index, part in enumerate(("train-clean-5", "dev-clean-2"), start=1):
        make_part(tmp_path / "there", part, index, 4, seed=index)
    kept = {path: path.read_bytes() for path in (tmp_path / "there").rglob("*.flac")}
    flags = ("--corpus", "mini-librispeech", "--dl-dir", "there", "--data-dir", "data", "--stop-stage", "1")
    assert run_prepare(*flags, cwd=tmp_path).returncode == 0
    assert {path: path.read_bytes() for path in (tmp_path / "there").rglob("*.flac")} == kept
    assert (tmp_path / "data" / "manifests" / "librispeech_supervisions_dev-clean-2.jsonl.gz").is_file()


def test_a_recipe_is_run_once_for_its_settings_and_tells_the_parts(tmp_path):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def prepare(*more: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "calls").write_text("")
        flags = ("--lhotse-recipe", "yesno", "--corpus-dir", ".", "--data-dir", "my data", "--vocab-size", "30")
        result = run_prepare(*flags, *more, cwd=tmp_path, python=str(python))
        return result, [line.split()[0].rpartition("/")[2] for line in (tmp_path / "calls").read_text().splitlines()]

    early, none = prepare("--stage", "3")
    assert early.returncode == 1 and "yesno_parts.sh: no such file; run stage 1" in early.stderr and none == []
    first, calls = prepare("--text-remove", r"\[[^]]*\]|[ ]")
    assert first.returncode == 0, first.stderr
    parts = 3 * ["compute_fbank.py"]
    assert calls == ["prepare_recipe.py", *parts, "train_bpe_model.py"]
    assert first.stdout.splitlines()[-6:-2] == [
        "  cuts hours", *(f"     1  0.00 yesno_cuts_{part}.jsonl.gz" for part in ("all", "dev", "test")),
    ]  # fmt: skip
    data = tmp_path / "my data"
    assert first.stdout.splitlines()[-2] == (
        f"train.py:  --manifest-dir {data}/fbank --train-parts all --dev-parts dev --test-parts test "
        f"--bpe-model {data}/lang_bpe_30/bpe.model"
    )
    again, calls = prepare("--text-remove", r"\[[^]]*\]|[ ]")
    assert again.returncode == 0 and calls == [] and again.stdout.splitlines()[-6:] == first.stdout.splitlines()[-6:]
    later, calls = prepare("--stage", "3", "--train-parts", "all", "--test-parts", "dev")
    assert later.returncode == 0 and calls == []  # the same speech, whichever of its parts are named
    assert "--train-parts all --dev-parts dev --test-parts dev" in later.stdout
    longer, calls = prepare("--text-remove", r"\[[^]]*\]|[ ]", "--dev-parts", "x", "--stop-stage", "3")
    assert longer.returncode == 0 and calls == ["prepare_recipe.py", *parts]  # training may have less left
    other, calls = prepare("--recipe-args", "a=b")
    assert other.returncode == 1 and "has the tokens of other text" in other.stderr and calls == ["prepare_recipe.py"]


@pytest.mark.slow
def test_prepare_takes_marks_out_of_texts_in_librispeechs_layout(tmp_path):
    make_part(tmp_path / "mine", "train", 1, 8, seed=1)
    make_part(tmp_path / "mine", "dev", 2, 3, seed=2)
    path = tmp_path / "mine" / "LibriSpeech" / "dev" / "2" / "1" / "2-1.trans.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ", OH!", lines[1], "2-1-0002 ?"]) + "\n")
    parts = ("--train-parts", "train", "--dev-parts", "dev", "--test-parts", "dev", "--data-dir", "data")
    flags = ("--corpus-dir", "mine", *parts, "--vocab-size", "30", "--perturb-speed", "false", "--stop-stage", "3")

    def texts_of(*more: str) -> list[str]:
        done = run_prepare(*flags, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        cuts = CutSet.from_file(tmp_path / "data" / "fbank" / "librispeech_cuts_dev.jsonl.gz")
        return sorted(f"{cut.id} {cut.supervisions[0].text}" for cut in cuts)

    assert texts_of() == [lines[0] + ", OH!", lines[1], "2-1-0002 ?"]
    assert texts_of("--text-remove", "[,!?]") == [lines[0] + " OH", lines[1]]  # done anew


@pytest.mark.slow
def test_tokens_alone_need_no_parts_but_those_of_training(tmp_path):
    make_part(tmp_path / "mine", "train", 1, 8, seed=1)
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    prepare_part(tmp_path / "mine" / "LibriSpeech", "train", tmp_path / "data" / "manifests")
    flags = ("--corpus-dir", "mine", "--train-parts", "train", "--data-dir", "data", "--vocab-size", "30")
    assert "name its parts too" in run_prepare(*flags, "--stage", "3", cwd=tmp_path).stderr
    done = run_prepare(*flags, "--stage", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "lang_bpe_30" / "bpe.model").is_file()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--corpus", "maxi"], "--corpus maxi"),
        (["--vocabsize", "3"], "--vocabsize"),
        (["--stage"], "--stage"),
        (["--corpus-dir", "nowhere", "--train-parts", "a", "--dev-parts", "b", "--test-parts", "c"], "nowhere"),
        (["--corpus-dir", "."], "--train-parts"),
        (["--perturb-speed", "maybe"], "--perturb-speed"),
        (["--token-type", "word"], "--token-type word"),
        (["--text-case", "title"], "--text-case title"),
        (["--vocab-size", "many"], "--vocab-size many: not a whole number of at least 1"),
        (["--stage", "two"], "--stage two: not a whole number of at least -1"),
        (["--stop-stage", "08"], "--stop-stage 08: not a whole number"),
        (["--nj", "0"], "--nj 0: not a whole number of at least 1"),
        (["--nj", ""], "--nj : not a whole number of at least 1"),
        (["--augment", "narrowband, noise"], f"--augment noise: unknown; use one of {', '.join(LINES)}, or"),
        (["--augment", ", "], f"--augment , : names nothing; use some of {','.join(LINES)}"),
        (["--augment-share", "0"], "--augment-share 0"),
        (["--augment-share", "1.5"], "--augment-share 1.5"),
        (["--lhotse-recipe", "tedlium"], "--corpus-dir"),
        (["--recipe-args", "a=b"], "--recipe-args a=b: is for --lhotse-recipe"),
        (["--corpus-dir", ".", "--channel", "1"], "--channel 1: is for --lhotse-recipe"),
        (["--lhotse-recipe", "tedlium", "--corpus-dir", "nowhere"], "--corpus-dir nowhere"),
    ],
)
def test_prepare_refuses_wrong_flags_with_one_line(tmp_path, arguments, expected):
    result = run_prepare("--data-dir", str(tmp_path / "data"), *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()
