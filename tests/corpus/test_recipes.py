"""Lhotse's recipes on trees in the true layouts: their parts, and what is said of a tree that is not whole."""

from __future__ import annotations

import csv
import logging
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet, fix_manifests, recipes
from lhotse.recipes import commonvoice

from kdstream.corpus.recipes import Part, parse_arguments, run_recipe
from support import corpora
from support.data import error_of
from support.sound import tone, wav


@pytest.fixture(autouse=True)
def threads(monkeypatch) -> None:
    """In place of processes, which take seconds to import Lhotse anew."""
    monkeypatch.setattr(commonvoice, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor())


def found_in(name: str, corpus_dir: Path, arguments: str = "") -> dict[str, Part]:
    return run_recipe(name, corpus_dir, corpus_dir / "lhotse", parse_arguments(arguments), 1)


def counts(parts: dict[str, Part]) -> dict[str, tuple[int, int]]:
    return {name: (len(part.recordings), len(part.segments)) for name, part in parts.items()}


def test_each_layout_gives_its_parts(tmp_path):
    assert counts(found_in("aishell", corpora.make_aishell(tmp_path / "a"))) == {
        "train": (8, 8), "dev": (4, 4), "test": (4, 4),
    }  # fmt: skip
    assert counts(found_in("tedlium", corpora.make_tedlium(tmp_path / "t"))) == {
        "train": (2, 8), "dev": (1, 4), "test": (1, 4),
    }  # fmt: skip
    only = found_in("tedlium", tmp_path / "t", "dataset_parts=dev")
    assert counts(only) == {"dev": (1, 4)}
    assert counts(found_in("commonvoice", corpora.make_commonvoice(tmp_path / "c"))) == {
        "test": (4, 4), "dev": (4, 4), "train": (8, 8),
    }  # fmt: skip
    audio = corpora.make_switchboard(tmp_path / "s")
    transcripts = f"transcripts_dir={tmp_path / 's' / 'swb_ms98_transcriptions'}"
    calls = found_in("switchboard", audio, transcripts)
    assert counts(calls) == {"all": (4, 24)}
    assert {str(segment.channel) for segment in calls["all"].segments} == {"0", "1"}
    relative = found_in("switchboard", audio, f"{transcripts} absolute_paths=false")["all"]
    assert [its.sources[0].source for its in relative.recordings.values()] == sorted(map(str, audio.rglob("*.sph")))


def test_two_languages_are_parts_of_their_own(tmp_path):
    root = corpora.make_commonvoice(tmp_path)
    shutil.copytree(root / "en", root / "cy")
    assert sorted(found_in("commonvoice", root)) == sorted(
        f"{language}-{part}" for language in ("en", "cy") for part in corpora.PARTS
    )


def test_arguments_are_words_numbers_truths_and_lists():
    assert parse_arguments("a=x b=3 c=True d=x,4 e='two words' f=null n=none g= h=x,") == {
        "a": "x", "b": 3, "c": True, "d": ["x", 4], "e": "two words", "f": None, "n": "none", "g": "", "h": ["x"],
    }  # fmt: skip
    assert "--recipe-args: 3=a names no argument" in error_of(lambda: parse_arguments("3=a"))


@pytest.mark.parametrize("text, problem", [("a=O'Neil", "no closing quotation"), ("a=b\\", "no escaped character")])
def test_an_apostrophe_alone_is_refused_with_how_to_write_it(text, problem):
    message = error_of(lambda: parse_arguments(text))
    (typed,) = shlex.split(message.partition("e.g. ")[2])
    assert message.startswith(f"--recipe-args {text}: {problem}; ") and parse_arguments(typed) == {"speaker": "O'Neil"}


def test_what_a_recipe_refuses_is_one_line_with_the_tree_and_the_reason(tmp_path, caplog):
    caplog.set_level("INFO")  # as commands have it
    talks = corpora.make_tedlium(tmp_path / "t")
    lost = talks / "legacy" / "train" / "sph" / "AaronHuey_2010X.sph"
    lost.unlink()
    message = error_of(lambda: found_in("tedlium", talks))
    assert f"{talks}: Lhotse's prepare_tedlium stopped after 'Pr" in message
    assert "(AssertionError: Mismatch: found 1 sphere files and 2 STM" in message
    assert "help(r.prepare_tedlium)" in message
    calls = corpora.make_switchboard(tmp_path / "s")
    transcripts = tmp_path / "s" / "swb_ms98_transcriptions"
    next(transcripts.rglob("sw2002A*")).unlink()
    assert "KeyError: 'sw2002A'" in error_of(lambda: found_in("switchboard", calls, f"transcripts_dir={transcripts}"))
    shutil.rmtree(tmp_path / "s")
    calls = corpora.make_switchboard(tmp_path / "s")
    corpora.write_sphere(calls / "swb1" / "sw02003.sph", tone(20.0)[:, None], 16000)  # one channel
    message = error_of(lambda: found_in("switchboard", calls, f"transcripts_dir={transcripts}"))
    assert "sw2003B-ms98-a-0002: channel 1 does not exist" in message


def test_a_part_that_is_not_there_is_named(tmp_path, caplog):
    shutil.rmtree(corpora.make_aishell(tmp_path) / "data_aishell" / "wav" / "dev")
    with caplog.at_level(logging.INFO):
        message = error_of(lambda: found_in("aishell", tmp_path))
    assert "prepare_aishell stopped after 'Processing aishell subset: dev' (AssertionError: No recordings " in message


@pytest.mark.parametrize(
    "data, problem", [(b"", "an empty file; restore it"), (b"RIFF\0\0\0\0WAVE", "damaged, or in a coding ")]
)
def test_a_file_that_lhotse_cannot_open_is_named(tmp_path, data, problem):
    aishell = corpora.make_aishell(tmp_path / "a")
    unreadable = aishell / "data_aishell" / "wav" / "dev" / "S0724" / "BAC009S0724W0122.wav"
    unreadable.write_bytes(data)
    message = error_of(lambda: found_in("aishell", aishell))
    problem, _, fix = problem.partition(";")
    assert f"{unreadable}: {problem}" in message and message.endswith(f"{fix}, or take it out of the corpus")
    assert "Lhotse's prepare_aishell stopped" in message


def test_clips_that_are_not_there_are_counted_and_named(tmp_path, caplog):
    root = corpora.make_commonvoice(tmp_path)
    with open(root / "en" / "train.tsv") as file:
        names = [row["path"] for row in csv.DictReader(file, delimiter="\t")]
    for name in names[:2]:
        (root / "en" / "clips" / name).unlink()
    with caplog.at_level(logging.INFO):
        assert counts(found_in("commonvoice", root))["train"] == (6, 6)
    (warning,) = [
        record.getMessage() for record in caplog.records if "prepare_commonvoice logged" in record.getMessage()
    ]
    assert "logged 2 times" in warning and all(name in warning for name in names[:2])


def test_transcripts_without_audio_are_counted_and_named_where_a_recipe_goes_by_the_audio(tmp_path, caplog):
    wavs = sorted(corpora.make_aishell(tmp_path / "a").glob("data_aishell/wav/train/S0002/*.wav"))
    for path in wavs[1:3]:
        path.unlink()
    assert counts(found_in("aishell", tmp_path / "a"))["train"] == (6, 6)
    named = f"BAC009S0764W0999, {wavs[1].stem}, {wavs[2].stem}"  # the first is in the maker's transcripts alone
    assert f"{tmp_path / 'a'}: 3 recordings have a transcript and no audio file: {named}" in caplog.messages
    calls = corpora.make_switchboard(tmp_path / "s")
    arguments = f"transcripts_dir={tmp_path / 's' / 'swb_ms98_transcriptions'}"
    caplog.clear()
    found_in("switchboard", calls, arguments)
    assert not caplog.messages
    (calls / "swb1" / "sw02003.sph").unlink()
    found_in("switchboard", calls, arguments)
    assert f"{calls}: 1 recordings have a transcript and no audio file: sw02003" in caplog.messages


def test_segments_that_lhotse_takes_out_for_want_of_audio_are_said_again(tmp_path, caplog):
    def recipe(corpus_dir):
        recordings = RecordingSet.from_recordings([Recording("a", [], 16000, 16000, 1.0)])
        spoken = [SupervisionSegment(name, name, 0.0, 1.0, text="ONE") for name in "abc"]
        fixed = fix_manifests(recordings, SupervisionSet.from_segments(spoken))
        return dict(zip(("recordings", "supervisions"), fixed, strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "prepare_mine", recipe, raising=False)
        assert counts(found_in("mine", tmp_path)) == {"all": (1, 1)}
    assert "prepare_mine logged 1 times that something is not there: Removed 2 supervisions with" in caplog.text


def test_unknown_recipes_and_arguments_are_refused_with_what_there_is(tmp_path):
    assert "--lhotse-recipe maxi: Lhotse has no such recipe; use " in error_of(lambda: found_in("maxi", tmp_path))
    message = error_of(lambda: found_in("aishell", tmp_path, "part=x"))
    assert "--recipe-args: prepare_aishell has no part; it has corpus_dir, output_dir" in message
    assert "needs transcript_dir; add 'transcript_dir=...'" in error_of(lambda: found_in("callhome_egyptian", tmp_path))
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "noise.wav").write_bytes(wav(tone()))
    message = error_of(lambda: found_in("musan", tmp_path, "parts=noise"))
    assert f"{tmp_path}: Lhotse's prepare_musan found no transcribed speech" in message
