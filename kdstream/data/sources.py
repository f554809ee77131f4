"""Sources of a cut's audio that notice when a file ends before its manifest says.

Where up to half a second is missing, Lhotse (1.33) fills it with the end of the audio played backwards
(`lhotse.audio.recording.assert_and_maybe_fix_num_samples`).  Its global tolerance cannot be lowered to a few samples:
the same number bounds what it may cut off where a recording is read in full for a cut that is a little shorter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.audio.utils import DurationMismatchError
from lhotse.augmentation import AudioTransform, Resample
from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut

from kdstream.audio.files import check_whole, why_unreadable
from kdstream.data.sphere import sphere_without_sph2pipe
from kdstream.errors import UserError

TOLERANCE = 2  # samples that rounding, of times and of changes of speed, may cost


@dataclass
class CheckedSource(AudioSource):
    """A source that counts the samples that its cut needs and the file lacks.

    rate: of the file, in Hz, by its manifest.
    needed: samples that the cut needs, from where it begins.
    lacking: samples of them that the file did not have, known once the audio was loaded; below 0 where it gave more
      for the seconds that it was asked for, which is to say that its rate is another.
    """

    rate: int = 0
    needed: int = 0
    lacking: int = field(default=0, compare=False)

    def load_audio(self, offset: float = 0.0, duration: float | None = None, **kwargs: Any) -> np.ndarray:
        """As Lhotse's: (channels, S) or (S,)."""
        try:
            with sphere_without_sph2pipe():
                samples = super().load_audio(offset, duration, **kwargs)
        except DurationMismatchError:  # more is lacking than Lhotse itself puts up with
            with sphere_without_sph2pipe():
                self.lacking = self.needed - super().load_audio(offset, **kwargs).shape[-1]
            raise
        self.lacking = self.needed - samples.shape[-1]
        if duration is None:  # all of the file, from which Lhotse takes what the cut needs
            self.lacking = max(0, self.lacking)
        return samples

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source if isinstance(self.source, str) else "audio in memory"

    @property
    def path(self) -> Path | None:
        """The file, if the source is one of its own; Lhotse can also read from a tar file by "NAME.tar/MEMBER"."""
        is_file = self.type == "file" and isinstance(self.source, str) and ".tar/" not in self.source
        return Path(str(self.source)) if is_file else None

    def raise_if_short(self, cut_id: str) -> None:
        """Raises UserError where samples are lacking, or too many."""
        if abs(self.lacking) <= TOLERANCE:
            return
        self._raise_if_of_another_rate(cut_id)
        if self.lacking > 0:
            raise UserError(
                f"{self.name}: ends {self.lacking / self.rate:.3f} s ({self.lacking} samples) before cut {cut_id} does",
                fix="restore the file, or make its manifest again, e.g. with Recording.from_file",
            )

    def _raise_if_of_another_rate(self, cut_id: str) -> None:
        """Raises UserError where the file says another rate than the manifest."""
        try:
            rate = self.rate if self.path is None else soundfile.info(str(self.path)).samplerate
        except (soundfile.SoundFileError, ValueError):
            return
        if rate != self.rate:
            raise UserError(
                f"{self.name}: {rate} Hz, but the manifest of cut {cut_id} says {self.rate} Hz",
                fix="make its manifest again, e.g. with Recording.from_file",
            )

    def raise_if_unreadable(self, cut_id: str) -> None:
        """Raises UserError where the file cannot be read, or not to the end of the cut."""
        self.raise_if_short(cut_id)
        if self.path is None:
            return
        reason = why_unreadable(self.path)
        if not reason:  # read as a whole, a file of another rate lacks nothing
            self._raise_if_of_another_rate(cut_id)
            return
        fix = f"restore the file, or take cut {cut_id} out"
        if reason == "no such file" and not self.path.is_absolute():
            fix += f"; its path counts from {Path.cwd()}, see cuts.with_recording_path_prefix"
        raise UserError(f"{self.path}: {reason}", fix=fix)


def with_checked_sources(cut: Cut) -> tuple[Cut, list[CheckedSource]]:
    """A copy of the cut whose audio comes from checked sources, and these."""
    if isinstance(cut, MixedCut):
        tracks, sources = [], []
        for track in cut.tracks:
            checked, those = with_checked_sources(track.cut)
            tracks.append(replace(track, cut=checked))
            sources += those
        return replace(cut, tracks=tracks), sources
    if not isinstance(cut, DataCut) or cut.recording is None:  # padding
        return cut, []
    checked = checked_sources(cut.recording, cut.start, cut.duration)
    return replace(cut, recording=replace(cut.recording, sources=checked)), checked


def checked_sources(recording: Recording, start: float, duration: float) -> list[CheckedSource]:
    """Sources that must give `duration` seconds of the recording from `start` on, both after its transforms."""
    transforms = [
        t if isinstance(t, AudioTransform) else AudioTransform.from_dict(t) for t in recording.transforms or []
    ]
    rate = recording.sampling_rate
    for transform in reversed(transforms):  # as `Recording.load_audio` does it
        start, reversed_duration = transform.reverse_timestamps(start, duration, rate)
        duration = reversed_duration or 0.0  # typed as if it could be None, which it is only of None
    rate = next((t.source_sampling_rate for t in transforms if isinstance(t, Resample)), rate)
    needed = round(duration * rate)
    return [
        CheckedSource(source.type, source.channels, source.source, source.video, rate=rate, needed=needed)
        for source in recording.sources
    ]


def check_files(recording: Recording, way_out: str) -> None:
    """Raises UserError for a file of the recording that `check_whole` refuses.  way_out: beside mending the file."""
    for source in checked_sources(recording, 0.0, recording.duration):
        if source.path is not None:
            check_whole(source.path, way_out)


def last_line(error: Exception) -> str:
    """What an error of Lhotse says, without its list of all that it tried and its copy of the whole cut."""
    text = str(error).split("[extra info]")[0]
    text = re.sub(r"\nSet LHOTSE_\w+=1 environment.*", "", text, flags=re.DOTALL).strip()
    line = text.splitlines()[-1] if text else type(error).__name__
    return re.sub(r"^Exception #\d+ \(.*?\): <class '.*?'>: ", "", line)[:300]
