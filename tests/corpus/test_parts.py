"""What the parts of a corpus are for, and speech that is held out where some lack."""

from __future__ import annotations

import logging
import re

import pytest
from lhotse import Recording, SupervisionSegment
from lhotse.utils import fastcopy

from kdstream.corpus.parts import Roles, apart_by_channel, choose_roles, hold_out
from kdstream.corpus.recipes import Part
from support.data import error_of


@pytest.mark.parametrize(
    "found, train, dev, test",
    [
        (["train", "dev", "test"], ["train"], ["dev"], ["test"]),
        (["test", "valid", "train"], ["train"], ["valid"], ["test"]),
        (["train-clean-100", "dev-other", "test-other", "train-other-500"], ["train-clean-100", "train-other-500"],
         ["dev-other"], ["test-other"]),
        (["L", "DEV", "TEST_NET", "TEST_MEETING"], ["L"], ["DEV"], ["TEST_NET", "TEST_MEETING"]),
        (["en-train", "en-dev", "en-test"], ["en-train"], ["en-dev"], ["en-test"]),
        (["all"], ["all"], [], []),
        (["train", "evaltest", "devtest"], ["train"], ["devtest"], ["evaltest"]),
    ],
)  # fmt: skip
def test_parts_are_for_what_their_names_say(found, train, dev, test):
    assert choose_roles(found, Roles()) == Roles(train, dev, test)


def test_flags_say_otherwise_and_what_cannot_be_is_named():
    found = ["train", "dev", "test", "other"]
    assert choose_roles(found, Roles(train=["other"])) == Roles(["other"], ["dev"], ["test"])
    assert "no part maxi; its parts are train, dev" in error_of(lambda: choose_roles(found, Roles(test=["maxi"])))
    assert "part train is trained on and decoded" in error_of(lambda: choose_roles(found, Roles(test=["train"])))
    assert "--train-parts; there are XL, L" in error_of(lambda: choose_roles(["XL", "L"], Roles()))


def calls(speakers: list[list[str]]) -> Part:
    """Recordings of 10 s in each of which some speakers talk."""
    segments = [
        SupervisionSegment(f"{n}-{m}", f"r{n}", 5.0 * m, 5.0, m, text="A", speaker=speaker)
        for n, voices in enumerate(speakers)
        for m, speaker in enumerate(voices)
    ]
    recordings = {f"r{n}": Recording(f"r{n}", [], 8000, 80000, 10.0) for n in range(len(speakers))}
    return Part(recordings, segments)


def test_whole_speakers_and_recordings_are_held_out_the_same_ones_each_time():
    part = calls([[f"s{n}", f"s{n + 1}" if n % 4 == 0 else f"t{n}"] for n in range(40)])
    found, roles = hold_out({"all": part}, Roles(["all"]), 0.1)
    assert roles == Roles(["all"], ["dev"], ["test"])
    turned = hold_out({"all": part._replace(segments=part.segments[::-1])}, Roles(["all"]), 0.1)[0]
    for name in found:  # whatever the order in which a recipe finds the files
        assert sorted(s.id for s in turned[name].segments) == sorted(s.id for s in found[name].segments)
    assert sorted(s.id for its in found.values() for s in its.segments) == sorted(s.id for s in part.segments)
    for kind in ("speaker", "recording_id"):
        values = [{getattr(s, kind) for s in its.segments} for its in found.values()]
        assert sum(map(len, values)) == len(set.union(*values))
    for name in ("dev", "test"):
        assert 0.05 <= len(found[name].segments) / len(part.segments) <= 0.15
        assert set(found[name].recordings) == {s.recording_id for s in found[name].segments}


def test_only_what_lacks_is_held_out_and_one_speaker_gives_up_recordings(caplog):
    with_test = {"train": calls([["s"], ["s"], ["s"], ["s"]]), "test": calls([["t"]])}
    found, roles = hold_out(with_test, Roles(["train"], [], ["test"]), 0.05)
    assert roles == Roles(["train"], ["dev"], ["test"]) and found["test"] == with_test["test"]
    assert len(found["dev"].segments) == 1 and len(found["train"].segments) == 3
    complete = Roles(["train"], ["x"], ["test"])
    assert hold_out(with_test, complete, 0.05) == (with_test, complete)
    assert "2 recordings are too few to hold 2 parts out" in error_of(
        lambda: hold_out({"all": calls([["s"], ["t"]])}, Roles(["all"]), 0.05)
    )


def test_speech_without_speakers_is_held_out_by_recordings_and_the_log_says_so(caplog):
    part = apart_by_channel(calls([["a", "a"], ["b", "c"], ["d", "d"], ["e", "f"]]))
    nameless = apart_by_channel(part._replace(segments=[fastcopy(each, speaker=None) for each in part.segments]))
    assert {each.speaker for each in nameless.segments} == {None}  # both channels of a recording too
    for spoken, said in (
        (nameless.segments, "recordings are held out of the training parts for the parts that lack, for no segment"),
        ([*part.segments[:7], nameless.segments[7]], "speakers are .* lack; 1 segments name no speaker, and go"),
        (part.segments, "speakers are held out of the training parts for the parts that lack$"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found, _ = hold_out({"all": part._replace(segments=spoken)}, Roles(["all"]), 0.25)
        assert {name: len(its.recordings) for name, its in found.items()} == {"all": 2, "dev": 1, "test": 1}
        assert re.match(said, caplog.messages[0])


def test_both_sides_of_a_call_with_one_name_become_two_speakers():
    part = apart_by_channel(calls([["a", "a"], ["b", "c"]]))
    assert [segment.speaker for segment in part.segments] == ["a-0", "a-1", "b", "c"]
