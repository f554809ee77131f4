"""A field of a cut that holds what it cannot is named before anything is computed with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet, MonoCut, NumpyFilesWriter, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.fields import field_fault
from support.data import error_of
from support.training import make_cut


def sound_cut(folder: Path) -> MonoCut:
    cut = make_cut("cut-1", np.zeros((100, 80), np.float32), "A B", NumpyFilesWriter(folder / "feats"))
    cut.recording = Recording("cut-1", [AudioSource("file", [0], "a.wav")], 16000, 16000, 1.0)
    return cut


@pytest.mark.parametrize(
    "place, value, kind",
    [
        (["start"], "0", "a number"),
        (["duration"], None, "a number"),
        (["duration"], float("nan"), "a number"),
        (["duration"], True, "a number"),
        (["channel"], 1e300, "a channel or several"),
        (["id"], "cut\n1", "a name on one line, without tabs"),
        (["id"], "cut:\t1", "a name on one line, without tabs"),
        (["id"], "", "a name on one line, without tabs"),
        (["supervisions", 0, "text"], 1.5, "a text or null"),
        (["supervisions", 0, "text"], "\ud800", "a text or null"),
        (["supervisions", 0, "start"], [], "a number"),
        (["recording", "sampling_rate"], 0, "a rate in Hz"),
        (["recording", "num_samples"], "16000", "a whole number from 0 on"),
        (["recording", "sources", 0, "channels"], [None], "a channel or several"),
        (["features", "frame_shift"], 0, "a number above 0"),
        (["features", "num_frames"], -1, "a whole number from 0 on"),
        (["features", "storage_type"], -1, "a text"),
    ],
)
def test_the_field_is_named_with_its_value(tmp_path: Path, place: list, value: Any, kind: str) -> None:
    item = sound_cut(tmp_path).to_dict()
    inner = item
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(item).encode()))
    message = error_of(lambda: list(iterate(read_manifest(path))))
    assert message.startswith(f"{path}: cut ") and f".{place[-1]} is " in message
    assert message.endswith(f"not {kind}; mend it or take the cut out")


def test_sound_cuts_have_no_fault(tmp_path: Path) -> None:
    cut = sound_cut(tmp_path)
    no_text = SupervisionSegment("s", "cut-1", 0.0, 1.0)
    others = [MonoCut("cut-2", 0.0, 1.0, 0, [no_text], recording=cut.recording), cut.drop_recording()]
    mixes = [cut.pad(duration=2.0), cut.append(others[0]), cut.mix(others[0], snr=10)]
    for each in (cut, *others, *mixes, *CutSet.from_cuts([cut]).resample(8000)):
        assert field_fault(each) == ""
