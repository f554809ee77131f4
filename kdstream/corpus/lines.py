"""What telephone lines, codecs, rooms and pauses do to speech: copies of cuts that are heard as through these.

A copy lasts as long as its cut, and its words are said at the same times, but for pauses.  What is drawn for it depends
on the id of its cut alone, so that every preparation makes the same copies.
"""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import Recording
from lhotse.augmentation.utils import FastRandomRIRGenerator
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy

from kdstream.corpus.fbank import store_features
from kdstream.corpus.line_table import LINES
from kdstream.corpus.pools import results_of
from kdstream.data.augment import at_16_khz
from kdstream.data.checks import check_readable
from kdstream.data.cuts import DistinctIds, iterate, read_manifest, write_cuts
from kdstream.data.reading import read_audio
from kdstream.errors import UserError, option
from kdstream.files import check_output_of_cuts, replacing
from kdstream.units import SAMPLE_RATE

COMPRESSION = (0.5, 0.99)  # libsndfile's levels, of which 1 leaves the fewest bits
VOLUMES = (0.05, 1.0)  # from -26 dB
ROOMS = 50
PAUSE = 2.0  # seconds, before and after
FRAME = SAMPLE_RATE // 40


def narrowband(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    """A telephone line: 8 kHz, in 8 bits by the mu-law."""
    return cut.narrowband("mulaw", affix_id=False)


def mp3(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    return cut.compress("mp3", rng.uniform(*COMPRESSION))


def opus(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    return cut.compress("opus", rng.uniform(*COMPRESSION))


def reverb(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    """A place in one of ROOMS rooms; the direct sound comes when it came before."""
    return cut.reverb_rir(make_room(folder / "rooms", rng.randrange(ROOMS)), affix_id=False)


def volume(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    """Speech from afar, or of a shy speaker: as many copies between 0.05 and 0.1 as between 0.5 and 1."""
    low, high = VOLUMES
    return cut.perturb_volume(low * (high / low) ** rng.random(), affix_id=False)


def pauses(cut: DataCut, rng: random.Random, folder: Path) -> DataCut:
    """Quiet before and after the speech, each of 0 to PAUSE seconds, as a recording of its own in `folder`.

    The quiet is white noise.  Its RMS value is drawn between 0 and that of the frame of 25 ms that is louder than a
    tenth of the cut's frames.
    """
    samples = read_audio(cut).numpy()
    frames = np.array_split(samples, max(1, len(samples) // FRAME))
    floor = np.quantile([np.sqrt(np.square(frame).mean()) for frame in frames], 0.1)
    noise = np.random.default_rng(rng.getrandbits(64))
    before, after = (
        noise.normal(scale=floor * rng.random(), size=int(rng.uniform(0, PAUSE) * SAMPLE_RATE)) for _ in range(2)
    )
    path = folder / "pauses" / f"{hashlib.sha256(cut.id.encode()).hexdigest()[:16]}.flac"  # ids may hold any letters
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, suffix=".flac") as temporary:
        soundfile.write(temporary, np.concatenate([before, samples, after]), SAMPLE_RATE)
    recording = Recording.from_file(path)
    later = len(before) / SAMPLE_RATE
    supervisions = [
        fastcopy(
            supervision.with_offset(later), recording_id=recording.id, channel=0,
            alignment=moved(supervision.alignment, later - cut.start),
        )
        for supervision in cut.supervisions
    ]  # fmt: skip
    return fastcopy(
        cut, start=0.0, duration=recording.duration, channel=0, recording=recording, supervisions=supervisions
    )


def moved(alignment: dict[str, list[AlignmentItem]] | None, seconds: float) -> dict[str, list[AlignmentItem]] | None:
    """An alignment of a recording as one of another, in which all comes so much later."""
    return alignment and {kind: [item.with_offset(seconds) for item in items] for kind, items in alignment.items()}


def make_room(folder: Path, number: int) -> Recording:
    """The impulse response of a room, which is the same each time; it is computed once and kept as a file.

    Lhotse draws it as Luo and Yu, FRA-RIR: fast random approximation of the image-source method, 2022.  Reverberation
    is 0.1 to 0.8 s long.  It draws from torch's generator too, and lets reflections that arrive together overwrite each
    other, in an order that several threads do not keep.
    """
    path = folder / f"room-{number:02d}.wav"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(number)
            response = FastRandomRIRGenerator(sr=SAMPLE_RATE, room_seed=number, source_seed=number)()[0]
        with replacing(path, suffix=f".{os.getpid()}.wav") as temporary:  # another process may want the same room
            soundfile.write(temporary, response / abs(response).max(), SAMPLE_RATE, subtype="FLOAT")
    return Recording.from_file(path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch has one thread, and then as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


for change in (narrowband, mp3, opus, reverb, volume, pauses):
    LINES.add(change.__name__, change)


def copy_of(cut: DataCut, name: str, folder: Path) -> DataCut:
    """The cut as one of LINES changes it, without features; its id and its supervisions' end in _NAME.

    folder: where audio is written that the copy needs.
    """
    heard = at_16_khz(cut, from_audio=True).drop_features()
    assert isinstance(heard, DataCut)  # as it was
    changed = LINES.find(name)(heard, _rng(name, cut), folder)
    supervisions = [fastcopy(supervision, id=f"{supervision.id}_{name}") for supervision in changed.supervisions]
    return fastcopy(changed, id=f"{cut.id}_{name}", supervisions=supervisions)


def _rng(what: str, cut: DataCut) -> random.Random:
    return random.Random(zlib.crc32(f"{what}/{cut.id}".encode()))


def augment_cuts(paths: Sequence[Path], names: Sequence[str], share: float, output: Path, pool: Pool) -> list[Cut]:
    """Writes copies of the cuts in manifests, with features, and returns them; features and audio lie beside OUTPUT.

    Args:
      names: of LINES, as `names_of` gives them.  Each changes a copy of its own.
      share: of the cuts that each name gets.
    Raises:
      UserError: a share that is none, audio that cannot be read, two cuts of one id, or an output that
        is no manifest's name or one of `paths`.
    """
    if not 0 < share <= 1:
        raise UserError("must be more than 0 and at most 1", flag=option("share", f"{share:g}"), fix="e.g. --share 0.5")
    check_output_of_cuts(output, paths)
    chosen, ids = [], DistinctIds("cuts to copy")
    for path in paths:
        for cut in iterate(read_manifest(path)):
            check_readable(cut, from_audio=True, path=path)
            ids.add(cut.id)
            if not isinstance(cut, DataCut):
                raise UserError(f"{path}: cut {cut.id} is a mix", fix="give the cuts that it was mixed from")
            chosen += [(cut, name) for name in names if _rng(f"share/{name}", cut).random() < share]
    if not chosen:
        raise UserError("chooses no cut", flag=option("share", f"{share:g}"), fix="give a larger one")
    feats_dir, audio_dir = (output.with_name(f"{output.name.split('.json')[0]}_{what}") for what in ("feats", "audio"))
    copies = list(results_of(pool.imap, partial(_copy_into, audio_dir), chosen, chunksize=16))
    stored = store_features(copies, feats_dir, pool)
    write_cuts(stored, output)
    return stored


def _copy_into(folder: Path, chosen: tuple[DataCut, str]) -> DataCut:
    return copy_of(*chosen, folder)
