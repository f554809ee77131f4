"""Copies of cuts, as through lines and with pauses: each changes what it says it changes, and nothing else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.augmentation.utils import FastRandomRIRGenerator
from lhotse.cut.data import DataCut
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy

from kdstream.corpus.line_table import LINES, names_of
from kdstream.corpus.lines import augment_cuts, copy_of, make_room
from kdstream.data.reading import read_audio, read_utterance
from kdstream.evaluation.references import read_word_ends
from support.data import error_of
from support.decoding import run_script

SECONDS = 2.0
RATE = 16000


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> Path:
    """Cuts of noise at 16, 8, 22.05 and 44.1 kHz, with a click in the middle and quiet before it, and 20 more."""
    folder = tmp_path_factory.mktemp("cuts")
    made = []
    for number, rate in enumerate((16000, 8000, 22050, 44100, *[16000] * 20)):
        samples = np.random.default_rng(number).normal(size=int(SECONDS * rate)) * 0.05
        samples[: rate // 2] = 0.0
        samples[rate] = 0.9
        soundfile.write(folder / f"{number}.wav", samples, rate)
        cut = Recording.from_file(folder / f"{number}.wav").to_cut().with_id(f"cut-{number}")
        assert isinstance(cut, DataCut)
        cut.supervisions = [SupervisionSegment(f"said-{number}", cut.recording_id, 0.0, SECONDS, text="ONE")]
        made.append(cut)
    CutSet.from_cuts(made).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def read(path: Path) -> list[DataCut]:
    return [cut for cut in CutSet.from_file(path) if isinstance(cut, DataCut)]


def power(samples: np.ndarray, low: float, high: float) -> float:
    """Of the frequencies between, per sample."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum()) / len(samples)


@pytest.fixture(scope="module")
def heard(cuts, tmp_path_factory) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """By line, the samples of each cut and of its copy."""
    folder = tmp_path_factory.mktemp("audio")
    return {
        name: [(read_audio(cut).numpy(), read_audio(copy_of(cut, name, folder)).numpy()) for cut in read(cuts)[:8]]
        for name in LINES
    }


@pytest.mark.parametrize("name", [name for name in LINES if name != "pauses"])
def test_a_copy_lasts_as_long_and_is_another_sound_each_time_the_same(heard, name, cuts, tmp_path):
    for (cut, copy), original in zip(heard[name], read(cuts), strict=False):
        assert len(cut) == len(copy) == SECONDS * RATE and np.abs(cut - copy).max() > 1e-3
        again = copy_of(original, name, tmp_path)
        assert np.array_equal(read_audio(again).numpy(), copy)
        assert (again.id, again.supervisions[0].id) == (
            f"{original.id}_{name}",
            f"{original.supervisions[0].id}_{name}",
        )
        assert (again.duration, again.sampling_rate) == (SECONDS, RATE)
        assert (again.supervisions[0].text, again.supervisions[0].end) == ("ONE", SECONDS)


@pytest.mark.parametrize("name", ["narrowband", "mp3", "opus"])
def test_a_click_stays_in_its_place(heard, name):
    for cut, copy in heard[name]:
        assert abs(int(np.abs(cut).argmax()) - int(np.abs(copy).argmax())) <= 16  # 1 ms


def test_nothing_above_4_khz_passes_a_telephone_line(heard):
    for cut, copy in heard["narrowband"]:
        assert power(copy, 4200, 8000) < 0.02 * max(power(cut, 4200, 8000), power(cut, 300, 3000))
        assert power(copy, 300, 3000) == pytest.approx(power(cut, 300, 3000), rel=0.1)


def test_codecs_leave_the_low_frequencies(heard):
    for name in ("mp3", "opus"):
        for cut, copy in heard[name]:
            assert power(copy, 300, 2000) == pytest.approx(power(cut, 300, 2000), rel=0.3)


def test_volume_multiplies_by_another_number_for_each_cut(heard):
    factors = []
    for cut, copy in heard["volume"]:
        factors.append(float(np.dot(cut, copy) / np.dot(cut, cut)))
        assert np.allclose(copy, factors[-1] * cut, atol=1e-4) and 0.05 <= factors[-1] <= 1
    assert len({round(factor, 3) for factor in factors}) == len(factors)


def test_pauses_are_quiet_and_the_text_is_said_between_them(heard, cuts, tmp_path):
    lengths = []
    for (cut, copy), original in zip(heard["pauses"], read(cuts), strict=False):
        again = copy_of(original, "pauses", tmp_path / "again")
        assert np.array_equal(read_audio(again).numpy(), copy)
        (supervision,) = again.supervisions
        assert (supervision.text, supervision.duration) == ("ONE", pytest.approx(SECONDS, abs=1e-3))
        assert supervision.recording_id == again.recording_id == again.recording.id
        begin = round(supervision.start * RATE)
        end = begin + len(cut)
        assert np.abs(copy[begin:end] - cut).max() < 1e-4  # 16 bits
        quiet = np.concatenate([copy[:begin], copy[end:]])
        assert not quiet.any()  # as the cut begins
        lengths += [begin / RATE, (len(copy) - end) / RATE]
    assert 0 <= min(lengths) < 0.5 and 1.5 < max(lengths) <= 2


def test_words_of_a_copy_with_pauses_end_later_by_the_quiet_before_them(cuts, tmp_path):
    spoken = read(cuts)[3].truncate(offset=0.5, duration=1.2, preserve_id=True)  # which decides how long the pauses are
    word = AlignmentItem("ONE", 0.75, 0.5)  # counted from the start of the recording, as Lhotse does
    (supervision,) = spoken.supervisions
    spoken.supervisions = [fastcopy(supervision, start=0.1, duration=1.0, alignment={"word": [word]})]
    copy = copy_of(spoken, "pauses", tmp_path)
    later = copy.supervisions[0].start - 0.1
    assert later > 0.1
    CutSet.from_cuts([spoken, copy]).to_file(tmp_path / "both.jsonl.gz")
    ends = read_word_ends([tmp_path / "both.jsonl.gz"], [spoken, copy])
    assert ends[spoken.id] == [750] and ends[copy.id] == [pytest.approx(750 + 1000 * later, abs=0.6)]


def test_pauses_are_no_louder_than_the_quietest_tenth_of_the_speech(tmp_path):
    samples = np.random.default_rng(1).normal(size=RATE) * np.where(np.arange(RATE) < RATE // 5, 0.01, 0.1)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    recording = Recording.from_file(tmp_path / "a.wav")
    spoken = SupervisionSegment("said", recording.id, 0.0, 1.0, text="ONE")
    levels = []
    for number in range(20):
        cut = recording.to_cut().with_id(f"a/{number}")  # ids may hold any letters
        cut.supervisions = [spoken]
        copy = copy_of(cut, "pauses", tmp_path)
        quiet = read_audio(copy).numpy()[: round(copy.supervisions[0].start * RATE)]
        levels += [float(np.sqrt(np.square(quiet).mean()))] if len(quiet) else []
    assert max(levels) < 0.0115 and min(levels) < 0.003


def test_a_room_rings_after_the_sound_and_not_before_it(heard):
    for cut, copy in heard["reverb"]:
        assert np.abs(copy[: RATE // 2 - 200]).max() < 0.02 * np.abs(copy).max()
        assert power(copy, 0, 8000) == pytest.approx(power(cut, 0, 8000), rel=0.05)
    assert len({copy[RATE : RATE + 100].tobytes() for _, copy in heard["reverb"]}) == len(heard["reverb"])


def test_rooms_are_the_same_on_every_machine_and_leave_torchs_numbers_alone(tmp_path):
    before = torch.random.get_rng_state()
    first, second = (make_room(tmp_path / name, 3).load_audio() for name in "ab")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(first, second) and np.abs(first).max() == 1 and first.shape[1] > 0.1 * RATE
    assert not np.array_equal(make_room(tmp_path, 4).load_audio()[:, :1000], first[:, :1000])


def test_a_room_is_drawn_by_one_thread(tmp_path, monkeypatch):
    seen, draw = [], FastRandomRIRGenerator.__call__

    def watched(generator):
        seen.append(torch.get_num_threads())
        return draw(generator)

    monkeypatch.setattr(FastRandomRIRGenerator, "__call__", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # which make another room each time where both are busy
    try:
        make_room(tmp_path, 3)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_command_writes_features_of_a_share_of_the_cuts(cuts, tmp_path, monkeypatch):
    output = tmp_path / "some_lines.jsonl.gz"
    flags = ("--augment", "narrowband, volume,volume,", "--share", "0.5", "--jobs", "1", "--output", output)
    assert run_script(monkeypatch, "local/augment_cuts.py", "--cuts", cuts, *flags) == ""
    copies = read(output)
    for name in ("narrowband", "volume"):
        assert 6 <= sum(copy.id.endswith(name) for copy in copies) <= 18  # of 24
    assert len({copy.id.rpartition("_")[0] for copy in copies}) > 12  # not the same cuts for both
    for copy in copies[:3] + copies[-3:]:
        stored, computed = (read_utterance(copy, from_audio).features for from_audio in (False, True))
        assert (stored - computed).abs().median() < 0.05 and len(stored) == len(computed) == 200
    before = output.read_bytes(), [copy.id for copy in copies]
    assert run_script(monkeypatch, "local/augment_cuts.py", "--cuts", cuts, *flags) == ""
    assert [copy.id for copy in read(output)] == before[1]


def test_names_may_have_blanks_beside_them_and_come_twice():
    assert names_of("narrowband, mp3,narrowband,") == ["narrowband", "mp3"]
    assert error_of(lambda: names_of("narrowband,telefax")) == (
        "--augment telefax: unknown; use one of narrowband, mp3, opus, reverb, volume, pauses, or "
        "import the module that adds it"
    )


def test_what_cannot_be_copied_is_named(cuts, tmp_path):
    def message(names: str, share: float = 1.0, path: Path = cuts, output: Path = tmp_path / "x.jsonl.gz") -> str:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return error_of(lambda: augment_cuts([path], names.split(","), share, output, pool))

    assert "--share 0: must be more than 0" in message("mp3", 0.0)
    assert message("mp3", output=cuts) == f"--output {cuts}: is what --cuts names; give it another name"
    text = tmp_path / "x.txt"
    assert message("mp3", output=text) == f"--output {text}: must be named .jsonl.gz or .jsonl; rename it"
    mix = read(cuts)[0].mix(read(cuts)[4])
    CutSet.from_cuts([mix]).to_file(tmp_path / "mix.jsonl.gz")
    assert f"cut {mix.id} is a mix" in message("mp3", path=tmp_path / "mix.jsonl.gz")
    assert not (tmp_path / "x.jsonl.gz").exists()
