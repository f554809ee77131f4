"""The embedded corpus."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdstream.corpus import mini
from kdstream.corpus.mini_grammar import HOMOPHONES, make_parts
from kdstream.errors import UserError

pytestmark = pytest.mark.slow

SIZES = {"test": 160, "dev": 60, "train": 900}
TINY = {"test": 12, "dev": 0, "train": 0}  # every test voice once, by the shares of its speakers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Twelve utterances of the test set, spoken by two processes."""
    path = tmp_path_factory.mktemp("mini")
    mini.make_corpus(path, seed=0, sizes=TINY, jobs=2)
    return path


def test_sentences_repeat_with_the_seed_and_differ_with_another():
    assert make_parts(3, SIZES) == make_parts(3, SIZES)
    assert not set(make_parts(3, SIZES)["test"]) & set(make_parts(4, SIZES)["test"][:20])


def test_sentences_and_speakers_of_the_parts_do_not_overlap():
    parts = make_parts(0, SIZES)
    for part, sentences in parts.items():
        assert len(set(sentences)) == SIZES[part]
    everything = [sentence for sentences in parts.values() for sentence in sentences]
    assert len(set(everything)) == sum(SIZES.values())
    voices = {}
    for speaker in mini.SPEAKERS.values():
        voices.setdefault((speaker.voice, speaker.pitch), set()).add(speaker.part)
    assert all(len(parts) == 1 for parts in voices.values())
    spoken = Counter(mini.SPEAKERS[line.speaker].part for line in mini.assign_speakers(parts))
    assert spoken == SIZES


def test_the_test_set_does_not_change_with_the_amount_of_training_speech():
    assert make_parts(0, SIZES)["test"] == make_parts(0, {**SIZES, "train": 10})["test"]


def test_training_has_every_word_of_the_test_set_and_both_spellings_of_every_homophone():
    parts = make_parts(0, SIZES)
    counts = Counter(word for sentence in parts["train"] for word in sentence.split())
    words = [word for sentence in parts["test"] for word in sentence.split()]
    assert len(words) >= 1200 and set(words) <= set(counts)
    assert 150 <= len(counts) <= 400
    for first, _, second, _ in HOMOPHONES:
        assert min(counts[first.upper()], counts[second.upper()]) >= 10


def test_speech_is_repeatable_bit_for_bit_whatever_was_spoken_before(tiny):
    lines = mini.assign_speakers(make_parts(0, TINY))
    assert len({mini.SPEAKERS[line.speaker].voice for line in lines}) == 4
    for line in reversed(lines):  # the fixture spoke them in another order, in two other processes
        stored, rate = soundfile.read(line.path(tiny / "LibriSpeech"), dtype="int16")
        assert rate == 16000
        again = np.rint(mini.speak(line, seed=0).astype(np.float64) * 32768).clip(-32768, 32767)
        assert np.array_equal(again, stored), line.id
    assert not np.array_equal(mini.speak(lines[0], seed=0), mini.speak(lines[0], seed=1))


def test_utterances_are_audible_and_end_in_a_pause(tiny):
    for path in (tiny / "LibriSpeech").rglob("*.flac"):
        samples, _ = soundfile.read(path)
        assert 1.0 < len(samples) / 16000 < 7.0
        assert 0.25 < np.abs(samples).max() <= 1.0
        assert np.abs(samples[-800:]).max() < 0.05


def test_layout_is_librispeechs(tiny):
    folder = tiny / "LibriSpeech" / "test" / "301" / "1"
    transcripts = (folder / "301-1.trans.txt").read_text().splitlines()
    assert [line.split()[0] for line in transcripts] == [f"301-1-{i:04d}" for i in range(3)]
    assert sorted(p.name for p in folder.glob("*.flac")) == [f"301-1-{i:04d}.flac" for i in range(3)]
    assert "301 | test | hibari" in (tiny / "LibriSpeech" / "SPEAKERS.TXT").read_text()


def test_an_interrupted_run_speaks_only_what_is_missing(tiny, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in tiny.rglob("*.flac")}
    settings = json.loads((tiny / mini.SETTINGS_FILE).read_text())
    lost = sorted(files)[0]
    content = lost.read_bytes()
    lost.unlink()
    settings.pop("finished")
    (tiny / mini.SETTINGS_FILE).write_text(json.dumps(settings))
    mini.make_corpus(tiny, seed=0, sizes=TINY, jobs=1)
    assert lost.read_bytes() == content
    files.pop(lost)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())

    monkeypatch.setattr(mini, "write_lists", lambda *_: pytest.fail("a finished corpus was made again"))
    mini.make_corpus(tiny, seed=0, sizes=TINY, jobs=1)


def test_another_corpus_in_the_directory_is_not_touched(tiny):
    with pytest.raises(UserError, match="another corpus"):
        mini.make_corpus(tiny, seed=1, sizes=TINY, jobs=1)


def test_a_missing_synthesiser_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(mini.REQUIREMENTS, "no_such_synthesiser", "no-such-synthesiser==1.0")
    with pytest.raises(UserError, match="no-such-synthesiser==1.0 is missing; pip install hibari-tts"):
        mini.make_corpus(tmp_path / "new", seed=0, sizes=TINY, jobs=1)
    assert not (tmp_path / "new").exists()
