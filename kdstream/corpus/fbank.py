"""Features of recordings, and the cuts that training and decoding read.

A file that cannot be read in full stops its part with one line that names it; no cuts are written then.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

from lhotse import CutSet, LilcomChunkyWriter, Recording, RecordingSet, SupervisionSet, load_manifest
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdstream.config.sections import LIBRISPEECH
from kdstream.corpus.manifests import manifests_of
from kdstream.corpus.pools import results_of
from kdstream.data.augment import MUSAN_CUTS
from kdstream.data.checks import check_readable, check_text
from kdstream.data.cuts import cuts_name, iterate, write_cuts
from kdstream.data.features import FBANK
from kdstream.data.reading import read_audio
from kdstream.data.sources import check_files
from kdstream.errors import UserError
from kdstream.units import SAMPLE_RATE

CUTS_PER_FILE = 200
SPEEDS = (0.9, 1.1)  # beside 1.0, as in icefall


def store_features(cuts: Sequence[Cut], feats_dir: Path, pool: Pool) -> list[Cut]:
    """Computes features of `cuts` in the processes of `pool` and stores them under `feats_dir`.

    Returns:
      The cuts with features, in the same order.
    Raises:
      UserError: the audio of a cut cannot be read in full; `feats_dir` is removed then.
    """
    shutil.rmtree(feats_dir, ignore_errors=True)
    feats_dir.mkdir(parents=True)
    shards = [(first, cuts[first : first + CUTS_PER_FILE]) for first in range(0, len(cuts), CUTS_PER_FILE)]
    stored: list[Cut] = []
    try:
        with tqdm(total=len(cuts), desc=feats_dir.name, unit=" cuts", disable=None) as progress:
            for shard in results_of(pool.imap, partial(_store_shard, feats_dir), shards):
                stored.extend(shard)
                progress.update(len(shard))
    except BaseException:
        shutil.rmtree(feats_dir, ignore_errors=True)
        raise
    return stored


def _store_shard(feats_dir: Path, shard: tuple[int, Sequence[Cut]]) -> list[Cut]:
    first, cuts = shard
    with LilcomChunkyWriter(feats_dir / f"feats-{first}") as writer:
        return [_store_features_of(cut, writer) for cut in cuts]


def _store_features_of(cut: Cut, writer: LilcomChunkyWriter) -> Cut:
    assert isinstance(cut, DataCut)  # `read_part` and `read_musan` make no mixes
    features = FBANK.extract_from_samples_and_store(
        samples=read_audio(cut).unsqueeze(0).numpy(),
        storage=writer,
        sampling_rate=SAMPLE_RATE,
        offset=cut.start,
        channel=cut.channel,
    )
    features = fastcopy(features, recording_id=cut.recording_id)
    return fastcopy(cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE), features=features)


def read_part(manifest_dir: Path, part: str, corpus: str = LIBRISPEECH) -> CutSet:
    """The cuts of a part, one for each of its supervisions, by whose ids they go.

    A cut ends where its supervision does: of a long recording with many supervisions only what is said in them is kept.
    """
    paths = manifests_of(manifest_dir, part, corpus)
    recordings, supervisions = RecordingSet.from_file(paths[0]), SupervisionSet.from_file(paths[1])
    cuts = []
    for cut in iterate(CutSet.from_manifests(recordings=recordings, supervisions=supervisions)):
        if len(cut.supervisions) <= 1:
            check_text(cut, paths[1])
        for trimmed in iterate(cut.trim_to_supervisions(keep_overlapping=False)):
            check_readable(trimmed, from_audio=True, path=paths[0])
            cuts.append(trimmed)
    return CutSet.from_cuts(cuts)


def _check_recording(recording: Recording) -> None:
    check_files(recording, f"take recording {recording.id} out of the manifests")


def read_musan(manifest_dir: Path) -> CutSet:
    """MUSAN in pieces of 10 s; pieces of 5 s and less are left out."""
    paths = sorted(manifest_dir.glob("musan_recordings_*.jsonl.gz"))
    if not paths:
        raise UserError(f"{manifest_dir}/musan_recordings_*.jsonl.gz: no such manifest", fix="run prepare.sh stage 2")
    recordings = [recording for path in paths for recording in load_manifest(path)]
    cuts = CutSet.from_manifests(recordings=RecordingSet.from_recordings(recordings))
    pieces = [cut for cut in iterate(cuts.cut_into_windows(10.0)) if cut.duration > 5]
    if not pieces:
        raise UserError(f"{paths[0]}: nothing in it is longer than 5 s", fix="join the files of MUSAN to longer ones")
    return CutSet.from_cuts(pieces)


def compute_musan(manifest_dir: Path, output_dir: Path, pool: Pool) -> None:
    """Features and cuts of MUSAN."""
    cuts = store_features(list(iterate(read_musan(manifest_dir))), output_dir / "musan_feats", pool)
    write_cuts(cuts, output_dir / MUSAN_CUTS)


def compute_part(
    manifest_dir: Path,
    output_dir: Path,
    part: str,
    pool: Pool,
    train: bool = False,
    perturb_speed: bool = False,
    corpus: str = LIBRISPEECH,
) -> Path:
    """Features and cuts of one part; returns the manifest of the cuts.

    Only training parts are shuffled, and perturbed in speed where that is wanted.  Raises UserError for a file that
    holds more than would be heard, before any features are computed.
    """
    cuts = list(iterate(read_part(manifest_dir, part, corpus)))
    recordings = {cut.recording.id: cut.recording for cut in cuts if isinstance(cut, DataCut) and cut.recording}
    checked = results_of(pool.imap, _check_recording, recordings.values(), chunksize=16)
    for _ in tqdm(checked, desc=f"audio of {part}", total=len(recordings), unit=" files", disable=None):
        pass
    if train and perturb_speed:
        cuts += [cut.perturb_speed(speed) for speed in SPEEDS for cut in cuts]
    if train:  # the sampler reads manifests through a window: neighbours should not be of one chapter
        random.Random(0).shuffle(cuts)
    cuts = store_features(cuts, output_dir / f"{corpus}_feats_{part}", pool)
    manifest = output_dir / cuts_name(part, corpus)
    write_cuts(cuts, manifest)
    return manifest
