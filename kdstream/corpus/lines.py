"""What telephone lines, codecs and rooms do to speech: copies of cuts that are heard as through these.

A copy lasts as long as its cut, and its words are said at the same times.  What is drawn for it depends on the id of
its cut alone, so that every preparation makes the same copies.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import soundfile
import torch
from lhotse import Recording
from lhotse.augmentation.utils import FastRandomRIRGenerator
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy

from kdstream.config.registry import Registry
from kdstream.corpus.fbank import store_features
from kdstream.data.augment import at_16_khz
from kdstream.data.checks import check_readable
from kdstream.data.cuts import DistinctIds, iterate, read_manifest, write_cuts
from kdstream.errors import UserError, option
from kdstream.files import check_output_of_cuts, replacing
from kdstream.units import SAMPLE_RATE

COMPRESSION = (0.5, 0.99)  # libsndfile's levels, of which 1 leaves the fewest bits
VOLUMES = (0.05, 1.0)  # from -26 dB
ROOMS = 50

Change = Callable[[DataCut, random.Random, Path], DataCut]  # (cut of 16 kHz, what it draws from, folder of rooms)
LINES: Registry[Change] = Registry("augment")


def narrowband(cut: DataCut, rng: random.Random, rooms: Path) -> DataCut:
    """A telephone line: 8 kHz, in 8 bits by the mu-law."""
    return cut.narrowband("mulaw", affix_id=False)


def mp3(cut: DataCut, rng: random.Random, rooms: Path) -> DataCut:
    return cut.compress("mp3", rng.uniform(*COMPRESSION))


def opus(cut: DataCut, rng: random.Random, rooms: Path) -> DataCut:
    return cut.compress("opus", rng.uniform(*COMPRESSION))


def reverb(cut: DataCut, rng: random.Random, rooms: Path) -> DataCut:
    """A place in one of ROOMS rooms; the direct sound comes when it came before."""
    return cut.reverb_rir(make_room(rooms, rng.randrange(ROOMS)), affix_id=False)


def volume(cut: DataCut, rng: random.Random, rooms: Path) -> DataCut:
    """Speech from afar, or of a shy speaker: as many copies between 0.05 and 0.1 as between 0.5 and 1."""
    low, high = VOLUMES
    return cut.perturb_volume(low * (high / low) ** rng.random(), affix_id=False)


def make_room(folder: Path, number: int) -> Recording:
    """The impulse response of a room, which is the same each time; it is computed once and kept as a file.

    Lhotse draws it as Luo and Yu, FRA-RIR: fast random approximation of the image-source method, 2022.  Reverberation
    is 0.1 to 0.8 s long.
    """
    path = folder / f"room-{number:02d}.wav"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)  # it draws from torch's generator too
            response = FastRandomRIRGenerator(sr=SAMPLE_RATE, room_seed=number, source_seed=number)()[0]
        with replacing(path, suffix=".wav") as temporary:
            soundfile.write(temporary, response / abs(response).max(), SAMPLE_RATE, subtype="FLOAT")
    return Recording.from_file(path)


for change in (narrowband, mp3, opus, reverb, volume):
    LINES.add(change.__name__, change)


def copy_of(cut: DataCut, name: str, rooms: Path) -> DataCut:
    """The cut as one of LINES changes it, without features; its id and its supervisions' end in _NAME."""
    heard = at_16_khz(cut, from_audio=True).drop_features()
    assert isinstance(heard, DataCut)  # as it was
    changed = LINES.find(name)(heard, _rng(name, cut), rooms)
    supervisions = [fastcopy(supervision, id=f"{supervision.id}_{name}") for supervision in changed.supervisions]
    return fastcopy(changed, id=f"{cut.id}_{name}", supervisions=supervisions)


def _rng(what: str, cut: DataCut) -> random.Random:
    return random.Random(zlib.crc32(f"{what}/{cut.id}".encode()))


def augment_cuts(paths: Sequence[Path], names: Sequence[str], share: float, output: Path, pool: Pool) -> list[Cut]:
    """Writes copies of the cuts in manifests, with features, and returns them; the features lie beside OUTPUT.

    Args:
      names: of LINES.  Each changes a copy of its own; a name that comes twice counts once.
      share: of the cuts that each name gets.
    Raises:
      UserError: an unknown name, a share that is none, audio that cannot be read, two cuts of one id, or an output that
        is no manifest's name or one of `paths`.
    """
    if not 0 < share <= 1:
        raise UserError("must be more than 0 and at most 1", flag=option("share", f"{share:g}"), fix="e.g. --share 0.5")
    check_output_of_cuts(output, paths)
    names = list(dict.fromkeys(names))
    for name in names:
        LINES.find(name)
    copies, ids = [], DistinctIds("cuts to copy")
    for path in paths:
        for cut in iterate(read_manifest(path)):
            check_readable(cut, from_audio=True, path=path)
            ids.add(cut.id)
            if not isinstance(cut, DataCut):
                raise UserError(f"{path}: cut {cut.id} is a mix", fix="give the cuts that it was mixed from")
            chosen = [name for name in names if _rng(f"share/{name}", cut).random() < share]
            copies += [copy_of(cut, name, output.parent / "rooms") for name in chosen]
    if not copies:
        raise UserError("chooses no cut", flag=option("share", f"{share:g}"), fix="give a larger one")
    feats_dir = output.with_name(f"{output.name.split('.json')[0]}_feats")
    stored = store_features(copies, feats_dir, pool)
    write_cuts(stored, output)
    return stored
