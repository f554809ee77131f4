"""Reference alignments: the files that are read, to which cuts they belong, and what is wrong with them."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.supervision import AlignmentItem
from lhotse.testing.dummies import dummy_recording
from lhotse.utils import fastcopy

from kdstream.errors import UserError
from kdstream.evaluation.references import read_word_ends
from kdstream.words import split_words

LIBRISPEECH = """61-70968-0000 ",HE,BEGAN,,A,CONFUSED," "0.410,0.550,0.880,0.910,1.005,1.500,2.000"
61-70968-0001 "GIVE,NOT" "0.5,0.75"
"""


def make_cut(cut_id: str, text: str, supervision_id: str = "", words: list[AlignmentItem] | None = None) -> MonoCut:
    alignment = None if words is None else {"word": words}
    supervision = SupervisionSegment(supervision_id or cut_id, "rec", 0.0, 3.0, text=text, alignment=alignment)
    return MonoCut(cut_id, 0.0, 3.0, 0, [supervision])


def write_librispeech(folder: Path) -> Path:
    path = folder / "61" / "70968" / "61-70968.alignment.txt"
    path.parent.mkdir(parents=True)
    path.write_text(LIBRISPEECH)
    return path


HE_BEGAN = make_cut("61-70968-0000", "HE BEGAN A CONFUSED")


def test_librispeechs_files_give_ends_without_the_silences(tmp_path):
    path = write_librispeech(tmp_path)
    for given in (path, tmp_path):  # a file, or a directory of them
        assert read_word_ends([given], [HE_BEGAN]) == {"61-70968-0000": [550.0, 880.0, 1005.0, 1500.0]}


def test_an_alignment_finds_its_cut_by_the_supervision_and_whatever_the_case(tmp_path):
    cuts = [make_cut("61-70968-0000-0", "he began a confused", "61-70968-0000"), make_cut("61-70968-0001", "Give not")]
    ends = read_word_ends([write_librispeech(tmp_path)], cuts)
    assert list(ends) == ["61-70968-0000-0", "61-70968-0001"] and ends["61-70968-0001"] == [500.0, 750.0]


def test_words_of_several_characters_are_divided_among_them(tmp_path):
    """However the alignment parts a text without blanks, and however it is scored."""
    items = [AlignmentItem("今天", 0.5, 0.5), AlignmentItem("天气", 1.0, 0.5), AlignmentItem("OK", 2.0, 0.25)]
    path = tmp_path / "supervisions.jsonl"
    SupervisionSet.from_segments(make_cut("a", "今天天气 OK", words=items).supervisions).to_file(path)
    cut = make_cut("a", "今天天气ＯＫ")
    for score_by, ends in (("auto", [750.0, 1000.0, 1250.0, 1500.0, 2250.0]), ("word", [2250.0])):
        words_of = lambda text, score_by=score_by: split_words(unicodedata.normalize("NFKC", text), score_by)  # noqa: E731
        assert read_word_ends([path], [cut], words_of) == {"a": ends}


def test_cuts_with_other_words_are_counted_and_left_out(tmp_path, caplog):
    path = write_librispeech(tmp_path)
    with caplog.at_level(logging.WARNING):
        ends = read_word_ends([path], [HE_BEGAN, make_cut("61-70968-0001", "GIVE"), make_cut("x", "NOTHING")])
    assert list(ends) == ["61-70968-0000"]
    assert "2 of 3 cuts have no alignment there, such as 61-70968-0001" in caplog.text


WORDS = [AlignmentItem("", 10.0, 0.5), AlignmentItem("ONE", 10.5, 0.25), AlignmentItem("TWO", 10.75, 0.41)]


def test_supervisions_count_from_their_own_start(tmp_path):
    supervision = SupervisionSegment("a", "rec", 10.0, 3.0, text="ONE TWO", alignment={"word": WORDS})
    other = SupervisionSegment("b", "rec", 13.0, 3.0, text="ONE")
    SupervisionSet.from_segments([supervision, other]).to_file(tmp_path / "supervisions.jsonl.gz")
    assert read_word_ends([tmp_path / "supervisions.jsonl.gz"], [make_cut("a", "ONE TWO")]) == {"a": [750.0, 1160.0]}


def test_words_count_from_the_cut_where_its_supervision_begins_later(tmp_path):
    path = write_librispeech(tmp_path)
    later = fastcopy(HE_BEGAN, supervisions=[fastcopy(HE_BEGAN.supervisions[0], start=0.5)])
    assert read_word_ends([path], [later]) == {"61-70968-0000": [1050.0, 1380.0, 1505.0, 2000.0]}


def test_cuts_count_from_the_cuts_start_and_several_files_are_one(tmp_path):
    supervision = SupervisionSegment("a", "rec", 10.0, 3.0, text="ONE TWO", alignment={"word": WORDS})
    whole = MonoCut("whole", 0.0, 20.0, 0, [supervision], recording=dummy_recording(0, duration=20.0))
    later = whole.truncate(offset=9.5, duration=4.0).with_id("later")
    CutSet.from_cuts([later]).to_file(tmp_path / "later.jsonl")
    CutSet.from_cuts([make_cut("b", "SIX", words=[AlignmentItem("SIX", 0.0, 1.5)])]).to_file(tmp_path / "b.jsonl")
    ends = read_word_ends([tmp_path / "later.jsonl", tmp_path / "b.jsonl"], [later, make_cut("b", "SIX")])
    assert ends == {"later": [1250.0, 1660.0], "b": [1500.0]}


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.alignment.txt", 'a "ONE"\n'),
        ("x.alignment.txt", 'a "ONE" "early"\n'),
        ("x.jsonl", "no manifest"),
        ("x.jsonl", ""),
        ("x.txt", LIBRISPEECH),
        ("missing.jsonl", None),
        ("missing.alignment.txt", None),
        ("missing", None),
    ],
)
def test_files_of_something_else_are_named(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    problem = ": no such file" if content is None else ""
    with pytest.raises(UserError, match=f"--alignments {path}{problem}") as error:
        read_word_ends([path], [HE_BEGAN])
    assert "\n" not in str(error.value)


def test_alignments_of_nothing_in_the_test_set_are_refused(tmp_path):
    RecordingSet.from_recordings([dummy_recording(0)]).to_file(tmp_path / "recordings.jsonl")
    CutSet.from_cuts([make_cut("a", "ONE")]).to_file(tmp_path / "bare.jsonl")
    for path in (tmp_path / "recordings.jsonl", tmp_path / "bare.jsonl", tmp_path, write_librispeech(tmp_path)):
        with pytest.raises(UserError, match=f"--alignments {path}"):
            read_word_ends([path], [make_cut("a", "ONE")])
