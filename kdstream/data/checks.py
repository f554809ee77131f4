"""What a cut must be, as its manifest tells before any audio is read.  Training and every command ask here.

A cut's text is said in it, and it has a recording, or stored features of our filter bank.  What training can do without
it leaves out (see `Selection`); all else raises a UserError that names the manifest, the cut and a fix.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from lhotse import Features
from lhotse.cut import Cut, MixedCut, MultiCut
from lhotse.cut.data import DataCut

from kdstream.data.features import FBANK_CONFIG
from kdstream.data.shar import tar_of
from kdstream.data.sources import TOLERANCE
from kdstream.errors import UserError, option
from kdstream.models.streaming import SHORTEST
from kdstream.units import FEATURE_FRAME_MS, FRAMES_PER_SECOND, SAMPLE_RATE

TEXT_TOLERANCE = 0.1  # seconds by which a text may begin before its cut or end after it: no word is as short
FRAME_TOLERANCE = 2  # that stored features may have more or fewer than their cut: so many cost the edges of a file
WHOLE_SECONDS = 60.0  # so many pass in full context, however small --max-duration is
FBANK_TYPES = ("kaldi-fbank", "kaldifeat-fbank", "fbank")  # Lhotse's names of extractors that can give our features
TRIM = "cuts.trim_to_supervisions(keep_overlapping=False)"
TAKE_A_CHANNEL = "take one, cut.to_mono()[0], or convert the file to mono"  # a mean cannot be stored in a manifest
STREAM = "decode with a streaming model and --left-context-frames 64 or the like"  # ways out for a cut that is too long
SHORTER = "lower --max-utterance-seconds"
COMPUTE_FEATURES = "use --on-the-fly-feats 1, or take the features away with cuts.drop_features()"
COMPUTE_AGAIN = "compute its features again, or take the cut out"


class Fault(NamedTuple):
    """Why a cut cannot be used.  problem: of this cut; reason: the same in a count of many cuts."""

    problem: str
    fix: str
    reason: str = ""


def frames_of(cut: Cut) -> int:
    """Feature frames (10 ms) that the cut has or will have."""
    return cut.num_frames or round(cut.duration * FRAMES_PER_SECOND)


def is_heard(cut: Cut, from_audio: bool) -> bool:
    """Whether features are computed from the cut's audio: where that is asked for, and where none are stored."""
    return cut.has_recording and (from_audio or not cut.has_features)


def text_fault(cut: Cut) -> Fault | None:
    """Why a cut's text is not what is said in it; None where it is, and where there is no text."""
    for spoken in cut.supervisions:
        if spoken.start < -TEXT_TOLERANCE or spoken.end > cut.duration + TEXT_TOLERANCE:
            return Fault(
                f"its text is said from {spoken.start:.2f} to {spoken.end:.2f} s of a cut of {cut.duration:.2f} s",
                f"in place of windows or truncation use {TRIM} on the whole recordings",
                "with text outside them",
            )
    if len(cut.supervisions) > 1:
        return Fault(f"{len(cut.supervisions)} supervisions", f"use {TRIM} first", "with several supervisions")
    return None


def _data_fault(cut: Cut, from_audio: bool, path: Path) -> Fault | None:
    if not cut.has_recording and not cut.has_features:
        return Fault("neither a recording nor stored features", "take the cut out")
    if is_heard(cut, from_audio):
        recordings = [part.recording for part in _parts(cut) if part.recording]
        sources = [source for recording in recordings for source in recording.sources]
        if any(source.type == "shar" and not source.source for source in sources):  # not read by shar.py
            return Fault("its audio is in a Shar directory", f"name the directory, {path.parent}")
        if isinstance(cut, MultiCut) and cut.num_channels != 1:
            return Fault(f"{cut.num_channels} channels", TAKE_A_CHANNEL)
        return next(filter(None, (_recording_fault(part) for part in _parts(cut) if part.recording)), None)
    for features in (part.features for part in _parts(cut) if part.features):
        kind = (features.type, features.num_features, round(features.frame_shift * 1000), features.sampling_rate)
        if kind[0] not in FBANK_TYPES or kind[1:] != (FBANK_CONFIG.num_filters, FEATURE_FRAME_MS, SAMPLE_RATE):
            return Fault(
                f"stored features are {kind[0]} of {kind[1]} bins every {kind[2]} ms at {kind[3]} Hz, not fbank of "
                f"{FBANK_CONFIG.num_filters} every {FEATURE_FRAME_MS} ms at {SAMPLE_RATE} Hz",
                COMPUTE_FEATURES if cut.has_recording else "give cuts with recordings, whose features are computed",
            )
    return next(filter(None, (_features_fault(part) for part in _parts(cut) if part.features)), None)


def _recording_fault(part: DataCut) -> Fault | None:
    """Why a cut, or one that a mix is made of, is no part of its recording."""
    recording = part.recording
    assert recording is not None
    slack = (TOLERANCE + 0.5) / recording.sampling_rate
    end = part.start + part.duration  # the property of Lhotse rounds, which takes as long as all else that is checked
    if part.start < -slack or end > recording.duration + slack:
        return Fault(
            f"lies from {part.start:.3f} to {end:.3f} s of a recording of {recording.duration:.3f} s",
            "mend its start and duration, or take the cut out",
        )
    channels = {part.channel} if isinstance(part.channel, int) else set(part.channel)
    if not channels <= set(recording.channel_ids or ()):
        shown = ", ".join(map(str, sorted(channels)))
        there = ", ".join(map(str, recording.channel_ids or ())) or "none"
        return Fault(f"is of channel {shown}, and its recording has {there}", "mend its channel, or take the cut out")
    return None


def _features_fault(part: DataCut) -> Fault | None:
    """Why stored features are not those of their cut, as far as the manifest tells."""
    features = part.features
    assert features is not None
    slack = (FRAME_TOLERANCE + 0.5) / FRAMES_PER_SECOND
    end = part.start + part.duration
    if part.start < features.start - slack or end > features.end + slack:
        problem = f"lies from {part.start:.2f} to {end:.2f} s, and its stored features from {features.start:.2f}"
        return Fault(f"{problem} to {features.end:.2f} s", COMPUTE_AGAIN)
    if abs(features.num_frames - features.duration * FRAMES_PER_SECOND) > FRAME_TOLERANCE + 0.5:
        problem = f"its stored features have {features.num_frames} frames (10 ms each) for {features.duration:.2f} s"
        return Fault(problem, COMPUTE_AGAIN)
    return None


def check_text(cut: Cut, path: Path, instead: str = "") -> None:
    """Raises UserError unless the cut's text is said in it.  instead: another fix than the usual one."""
    fault = text_fault(cut)
    if fault is not None:
        raise UserError(
            f"{path}: cut {cut.id}: {fault.problem}", fix=fault.fix + (f", or {instead}" if instead else "")
        )


def check_data(cut: Cut, from_audio: bool, path: Path) -> None:
    """Raises UserError unless the cut has a recording or features that a model can hear."""
    fault = _data_fault(cut, from_audio, path)
    if fault is not None:
        raise UserError(f"{path}: cut {cut.id}: {fault.problem}", fix=fault.fix)


def check_readable(cut: Cut, from_audio: bool, path: Path) -> None:
    """`check_data`; and the cut makes an output frame, and its files are there.  It looks for files: not for training.

    What the files hold is found out only when they are read.
    """
    check_data(cut, from_audio, path)
    check_frames(f"{path}: cut {cut.id}", frames_of(cut), "take the cut out")
    for part in _parts(cut):
        missing = _missing_file(part, is_heard(cut, from_audio))
        if missing:
            raise UserError(f"{path}: cut {cut.id}: {missing}: no such file", fix="restore it or take the cut out")


def check_frames(what: str, frames: int, fix: str) -> None:
    """Raises UserError for fewer feature frames than make one frame of an encoder."""
    if frames < SHORTEST:
        raise UserError(f"{what}: only {max(0, frames)} frames (10 ms each), and a model needs {SHORTEST}", fix=fix)


def check_length(what: str, seconds: float, max_duration: float, way_out: str) -> None:
    """Raises UserError for more than WHOLE_SECONDS, and than `max_duration`, to be heard at once, not chunk by chunk.

    Attention without a limit takes memory by their square: ten minutes ask for 14 GB.
    way_out: beside splitting it and raising the flag.
    """
    if seconds > max(WHOLE_SECONDS, max_duration):
        flag, heard = option("max_duration", f"{max_duration:g}"), "all that a model hears at once"
        limit = f"{flag}, {heard}" if max_duration > WHOLE_SECONDS else f"a minute, {heard} with {flag}"
        raise UserError(
            f"{what}: {seconds:.0f} s are more than {limit}",
            fix=f"split it, raise the flag to {math.ceil(seconds)}, or {way_out}",
        )


def _parts(cut: Cut) -> list[DataCut]:
    """The cut, or the cuts that it mixes, without padding."""
    parts = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    return [part for part in parts if isinstance(part, DataCut)]


def _missing_file(part: DataCut, heard: bool) -> str:
    """The first file that features are computed of, or read from, and that is not there; ""."""
    if heard:
        sources = part.recording.sources if part.recording else []
        files = [source.source for source in sources if source.type == "file"]
        files += [tar_of(str(source.source))[0] for source in sources if source.type == "shar"]
    else:
        files = [_feature_file(part.features)] if part.features else []
    return next((str(file) for file in files if "://" not in str(file) and not os.path.exists(file)), "")


def _feature_file(features: Features) -> str:
    """Where features are stored; "." where that is no file."""
    if features.storage_type.startswith("memory"):
        return "."
    in_folder = features.storage_type.endswith("_files")
    return os.path.join(features.storage_path, str(features.storage_key)) if in_folder else features.storage_path
