"""Checks of cuts, as training and decoding will read them, and what a manifest of them holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lhotse.cut import Cut
from tqdm import tqdm

from kdstream.audio.files import check_whole
from kdstream.data.checks import check_readable, check_text
from kdstream.data.cuts import DistinctIds, iterate, read_manifest, text_of
from kdstream.data.reading import check_filter_bank, read_utterance
from kdstream.data.sources import with_checked_sources
from kdstream.errors import UserError


def check_cut(cut: Cut, path: Path) -> None:
    """Raises UserError, which names `path`, unless the cut has one transcript, said in it, and can be read."""
    check_readable(cut, from_audio=False, path=path)
    if not text_of(cut):
        raise UserError(f"{path}: cut {cut.id}: no transcript", fix="fill it or take the cut out")
    check_text(cut, path)


class Found:
    """What a manifest holds: cuts, hours, lengths, speakers, and characters of text, blanks not among them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durations: list[float] = []
        self.speakers: set[str] = set()
        self.letters: set[str] = set()
        self.characters = 0

    def add(self, cut: Cut) -> None:
        self.durations.append(cut.duration)
        self.speakers.update(spoken.speaker for spoken in cut.supervisions if spoken.speaker)
        text = "".join(text_of(cut).split())
        self.letters.update(text)
        self.characters += len(text)

    def __str__(self) -> str:
        shortest, mean, longest = self.lengths
        return (
            f"{self.path}: {len(self.durations)} cuts, {self.hours:.2f} h, {shortest:.1f} to {longest:.1f} s, "
            f"mean {mean:.1f} s, {len(self.speakers)} speakers, {self.characters} characters ({len(self.letters)} "
            "different)"
        )

    @property
    def hours(self) -> float:
        return sum(self.durations) / 3600

    @property
    def lengths(self) -> tuple[float, float, float]:
        """Of a cut, in seconds: the shortest, the mean and the longest."""
        return min(self.durations), sum(self.durations) / len(self.durations), max(self.durations)


def check_manifest(path: Path, read: bool = False) -> Found:
    """What the manifest holds.  Raises UserError at the first cut that training or decoding could not take.

    read: read every feature matrix too, and look for audio files that are there and would not be heard to their end.
    """
    check_filter_bank(iterate(read_manifest(path)), path)
    found, ids = Found(path), DistinctIds(str(path))
    looked_at: set[Path] = set()
    for cut in tqdm(iterate(read_manifest(path)), desc=path.name, unit=" cuts", disable=None):
        check_cut(cut, path)
        ids.add(cut.id)
        if read:
            read_utterance(cut, from_audio=False)
            for audio in {source.path for source in with_checked_sources(cut)[1] if source.path} - looked_at:
                looked_at.add(audio)
                check_whole(audio, f"take cut {cut.id} out")  # stored features may outlive it
        found.add(cut)
    return found


def table(rows: Iterable[Found]) -> str:
    """A header and a line for each manifest; columns have fixed widths, so that tables can be put together."""
    lines = [
        f"{'cuts':>9} {'hours':>9} {'seconds each':>18} {'speakers':>9} {'characters':>11} {'different':>9}  manifest"
    ]
    for row in rows:
        seconds = "{:.1f} {:.1f} {:.1f}".format(*row.lengths)
        lines.append(
            f"{len(row.durations):9} {row.hours:9.2f} {seconds:>18} {len(row.speakers):9} {row.characters:11} "
            f"{len(row.letters):9}  {row.path.name}"
        )
    return "".join(line + "\n" for line in lines)
