"""A recipe's corpus becomes manifests of usable segments: channels apart, long files cut, and bad ones left out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.cut.data import DataCut

from kdstream.corpus.fbank import read_part
from kdstream.corpus.parts import Roles
from kdstream.corpus.prepare import parts_file, prepare_recipe
from kdstream.data.cuts import iterate, text_of
from kdstream.data.reading import read_audio
from support import corpora
from support.data import error_of
from support.tone_corpus import LETTER_SECONDS, LETTERS


def prepare(
    name: str, corpus_dir: Path, output_dir: Path, given: Roles | None = None, channel=None, text_remove="", **arguments
):
    output_dir.mkdir(exist_ok=True)
    return prepare_recipe(name, corpus_dir, output_dir, arguments, given or Roles(), 0.1, 1, channel, text_remove)


def cuts_of(output_dir: Path, part: str, corpus: str) -> list[DataCut]:
    return [cut for cut in iterate(read_part(output_dir, part, corpus)) if isinstance(cut, DataCut)]


def first_letter(cut: DataCut) -> str:
    """Whose tone the cut begins with."""
    samples = read_audio(cut).numpy()[: round(LETTER_SECONDS * 16000)]
    hertz = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() / LETTER_SECONDS
    return min(LETTERS, key=lambda letter: abs(250.0 * 1.4 ** LETTERS.index(letter) - hertz))


def test_both_channels_of_a_call_are_cut_apart_and_said_by_two(tmp_path):
    calls = corpora.make_switchboard(tmp_path / "tree")
    transcripts = str(tmp_path / "tree" / "swb_ms98_transcriptions")
    roles = prepare("switchboard", calls, tmp_path / "out", transcripts_dir=transcripts)
    assert roles == Roles(["all"], ["dev"], ["test"])
    assert (
        parts_file(tmp_path / "out", "switchboard").read_text() == "train_parts=all\ndev_parts=dev\ntest_parts=test\n"
    )
    cuts = [cut for part in roles.all for cut in cuts_of(tmp_path / "out", part, "switchboard")]
    assert sorted(cut.id[6] for cut in cuts) == 12 * ["A"] + 12 * ["B"]
    for cut in cuts:
        assert (
            cut.channel == "AB".index(cut.id[6]) and cut.supervisions[0].speaker == f"{cut.recording_id}A-{cut.channel}"
        )
        assert first_letter(cut) == text_of(cut)[0].upper()
    one = prepare("switchboard", calls, tmp_path / "one", channel=1, transcripts_dir=transcripts)
    assert {cut.id[6] for part in one.all for cut in cuts_of(tmp_path / "one", part, "switchboard")} == {"B"}


def test_a_talk_is_cut_into_what_is_said_in_it(tmp_path):
    roles = prepare(
        "tedlium", corpora.make_tedlium(tmp_path / "tree"), tmp_path / "out", Roles(test=["dev"], dev=["test"])
    )
    assert roles == Roles(["train"], ["test"], ["dev"])
    cuts = cuts_of(tmp_path / "out", "train", "tedlium")
    assert len(cuts) == 8 and len({cut.recording_id for cut in cuts}) == 2
    assert all(first_letter(cut) == text_of(cut)[0].upper() for cut in cuts)


def test_bad_segments_of_a_talk_are_left_out_with_their_place(tmp_path, caplog):
    talks = corpora.make_tedlium(tmp_path / "tree", segments=8)
    stm = talks / "legacy" / "train" / "stm" / "AaronHuey_2010X.stm"
    lines = stm.read_text().splitlines()
    words = [line.split(" ") for line in lines]
    words[1][6:] = []  # empty text
    words[3][4] = f"{float(words[4][3]) + 0.4:.2f}"  # overlaps the next one
    stm.write_text("\n".join(" ".join(each) for each in words) + "\n")
    with caplog.at_level(logging.WARNING):
        prepare("tedlium", talks, tmp_path / "out")
    sphere = talks / "legacy" / "train" / "sph" / "AaronHuey_2010X.sph"
    assert (
        f"part train: 3 of 16 segments are left out: 1 with an empty text: AaronHuey_2010X-1 ({sphere}, " in caplog.text
    )
    named = (tmp_path / "out" / "tedlium_left_out_train.txt").read_text()
    assert [line.split(" (")[0] for line in named.splitlines()] == [
        "with an empty text: AaronHuey_2010X-1",
        "that overlap another of their channel: AaronHuey_2010X-3",
        "that overlap another of their channel: AaronHuey_2010X-4",
    ]
    assert len(cuts_of(tmp_path / "out", "train", "tedlium")) == 13


def test_a_part_of_which_nothing_is_left_and_a_directory_that_is_not_there_are_refused(tmp_path):
    aishell = corpora.make_aishell(tmp_path / "tree")
    transcripts = aishell / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    lines = transcripts.read_text().splitlines()
    transcripts.write_text("".join(f"{line.split()[0] if 'S0724' in line else line}\n" for line in lines))
    message = error_of(lambda: prepare("aishell", aishell, tmp_path / "out"))
    assert "part dev: 4 of 4 segments are left out: 4 with an empty text: BAC009S0724W" in message
    assert "--corpus-dir: " in error_of(lambda: prepare("aishell", tmp_path / "nowhere", tmp_path / "out"))


@pytest.mark.parametrize("change", [lambda data: data[:-8000], lambda data: b""])
def test_a_damaged_talk_is_named_before_features_are_written(tmp_path, change):
    talks = corpora.make_tedlium(tmp_path / "tree")
    sphere = talks / "legacy" / "train" / "sph" / "AaronHuey_2010X.sph"
    prepare("tedlium", talks, tmp_path / "out")
    sphere.write_bytes(change(sphere.read_bytes()))
    cuts = cuts_of(tmp_path / "out", "train", "tedlium")
    last = max((cut for cut in cuts if cut.recording_id == "AaronHuey_2010X"), key=lambda cut: cut.start)
    assert f"{sphere}: " in error_of(lambda: read_audio(last))


def test_a_wav_that_ends_before_its_header_says_is_refused_with_its_transcript(tmp_path):
    aishell = corpora.make_aishell(tmp_path / "tree")
    short = aishell / "data_aishell" / "wav" / "dev" / "S0724" / "BAC009S0724W0122.wav"
    stated = soundfile.info(short).duration
    short.write_bytes(short.read_bytes()[: 44 + 2 * 4480])
    message = error_of(lambda: prepare("aishell", aishell, tmp_path / "out"))
    assert f"{short}: cut short: 0.28 s of the {stated:.2f} s that its header states; restore it" in message
    assert message.endswith(", or take BAC009S0724W0122 out of the corpus")
    assert not list((tmp_path / "out").glob("*.jsonl.gz"))


def test_a_cut_of_a_whole_recording_is_that_of_its_manifests(tmp_path):
    prepare("aishell", corpora.make_aishell(tmp_path / "tree"), tmp_path / "out")
    cuts = cuts_of(tmp_path / "out", "train", "aishell")
    assert {cut.id for cut in cuts} == {cut.recording_id for cut in cuts}
    assert all((cut.start, cut.duration) == (0.0, cut.recording.duration) for cut in cuts if cut.recording)
    assert CutSet.from_cuts(cuts).speakers == frozenset({"S0002", "S0003"})


def test_a_recipes_texts_with_the_name_of_a_token_are_refused(tmp_path):
    talks = corpora.make_tedlium(tmp_path / "tree")
    stm = talks / "legacy" / "train" / "stm" / "AdamDavidson_2008.stm"
    lines = stm.read_text().splitlines()
    stm.write_text("\n".join([lines[0], f"{lines[1]} <unk>", *lines[2:]]) + "\n")
    message = error_of(lambda: prepare("tedlium", talks, tmp_path / "out"))
    assert message.startswith("part train: <unk> in 1 of 8 transcripts, which is the name of a token")
    prepare("tedlium", talks, tmp_path / "out", text_remove="<unk>")
    assert all("unk" not in text_of(cut) for cut in cuts_of(tmp_path / "out", "train", "tedlium"))


def test_marks_are_taken_out_of_texts_and_segments_of_nothing_else_are_left_out(tmp_path, caplog):
    talks = corpora.make_tedlium(tmp_path / "tree")
    stm = talks / "legacy" / "train" / "stm" / "AdamDavidson_2008.stm"
    lines = stm.read_text().splitlines()
    before = lines[1].split(" ", 6)[6]
    lines[1] = lines[1].replace(before, f"[laughter] {before.replace(' ', ' [noise] ')}.")
    lines[2] = " ".join(lines[2].split(" ")[:6]) + " [applause]"
    stm.write_text("\n".join(lines) + "\n")
    prepare("tedlium", talks, tmp_path / "out", text_remove=r"\[[^]]*\]|[.]")
    texts = {cut.id: text_of(cut) for cut in cuts_of(tmp_path / "out", "train", "tedlium")}
    assert texts["AdamDavidson_2008-1"] == before and len(texts) == 7
    assert "1 with an empty text: AdamDavidson_2008-2 (" in caplog.text
