"""Computes and stores features, and writes the cuts that training and decoding read.

    python local/compute_fbank.py --manifest-dir data/manifests --output-dir data/fbank \
        --train-parts train-clean-5 --perturb-speed true --parts dev-clean-2 --jobs 2

reads librispeech_{recordings,supervisions}_<part>.jsonl.gz and writes librispeech_cuts_<part>.jsonl.gz
and librispeech_feats_<part>/.  Training parts come out in a random, repeatable order.  With --musan
true it reads the MUSAN manifests instead and writes musan_cuts.jsonl.gz: noise in pieces of 10 s.

A file that cannot be read in full stops the part with one line that names it; no cuts are written then.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import shutil
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import torch
from lhotse import CutSet, LilcomChunkyWriter, RecordingSet, SupervisionSet, load_manifest
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdstream.config.flags import parser_of, str2bool
from kdstream.data.augment import MUSAN_CUTS
from kdstream.data.features import FBANK
from kdstream.data.reading import read_audio
from kdstream.errors import UserError
from kdstream.units import SAMPLE_RATE

CUTS_PER_FILE = 200
SPEEDS = (0.9, 1.1)  # beside 1.0, as in icefall


def store_features(cuts: Sequence[Cut], feats_dir: Path, pool: Pool) -> list[Cut]:
    """Computes features of `cuts` in the processes of `pool` and stores them under `feats_dir`.

    Returns the cuts with features, in the same order.  Raises UserError, leaving no `feats_dir`,
    at the first cut whose audio cannot be read in full.
    """
    shutil.rmtree(feats_dir, ignore_errors=True)
    feats_dir.mkdir(parents=True)
    shards = [(k, cuts[k : k + CUTS_PER_FILE]) for k in range(0, len(cuts), CUTS_PER_FILE)]
    done: list[Cut] = []
    try:
        with tqdm(total=len(cuts), desc=feats_dir.name, unit=" cuts", disable=None) as progress:
            for result in pool.imap(partial(_store_shard, feats_dir), shards):
                if isinstance(result, UserError):
                    raise result
                done.extend(result)
                progress.update(len(result))
    except BaseException:
        shutil.rmtree(feats_dir, ignore_errors=True)
        raise
    return done


def _store_shard(feats_dir: Path, shard: tuple[int, Sequence[Cut]]) -> list[Cut] | UserError:
    first, cuts = shard
    try:
        with LilcomChunkyWriter(feats_dir / f"feats-{first}") as writer:
            return [_store_one(cut, writer) for cut in cuts]
    except UserError as error:  # as a value: an exception from a pool arrives with the worker's traceback
        return error


def _store_one(cut: Cut, writer: LilcomChunkyWriter) -> Cut:
    features = FBANK.extract_from_samples_and_store(
        samples=read_audio(cut).unsqueeze(0).numpy(),
        storage=writer,
        sampling_rate=SAMPLE_RATE,
        offset=cut.start,
        channel=cut.channel,
    )
    if cut.sampling_rate != SAMPLE_RATE:
        cut = cut.resample(SAMPLE_RATE)
    return fastcopy(cut, features=fastcopy(features, recording_id=cut.recording_id))


def read_part(manifest_dir: Path, part: str) -> CutSet:
    """The cuts of a part, named by their recordings."""
    paths = [manifest_dir / f"librispeech_{kind}_{part}.jsonl.gz" for kind in ("recordings", "supervisions")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such manifest; run prepare.sh stage 1 for part {part}")
    recordings, supervisions = RecordingSet.from_file(paths[0]), SupervisionSet.from_file(paths[1])
    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    return CutSet.from_cuts(cut.with_id(cut.recording_id) for cut in cuts)


def read_musan(manifest_dir: Path) -> CutSet:
    """MUSAN in pieces of 10 s (and none under 5 s)."""
    paths = sorted(manifest_dir.glob("musan_recordings_*.jsonl.gz"))
    if not paths:
        raise UserError(f"{manifest_dir}/musan_recordings_*.jsonl.gz: no such manifest; run prepare.sh stage 2")
    recordings = [recording for path in paths for recording in load_manifest(path)]
    cuts = CutSet.from_manifests(recordings=RecordingSet.from_recordings(recordings))
    return CutSet.from_cuts(cut for cut in cuts.cut_into_windows(10.0) if cut.duration > 5)


def write_cuts(cuts: Sequence[Cut], path: Path) -> None:
    """Writes a manifest so that it is there in full or not at all."""
    unfinished = path.with_name("unfinished_" + path.name)
    CutSet.from_cuts(cuts).to_file(unfinished)
    unfinished.replace(path)
    logging.info(f"{path}: {len(cuts)} cuts, {sum(cut.duration for cut in cuts) / 3600:.2f} h")


def compute_musan(manifest_dir: Path, output_dir: Path, pool: Pool) -> None:
    """Features and cuts of MUSAN."""
    done = store_features(list(read_musan(manifest_dir)), output_dir / "musan_feats", pool)
    write_cuts(done, output_dir / MUSAN_CUTS)


def compute_part(
    manifest_dir: Path, output_dir: Path, part: str, pool: Pool, train: bool = False, perturb_speed: bool = False
) -> None:
    """Features and cuts of one part; `perturb_speed` is for training parts only."""
    cuts = list(read_part(manifest_dir, part))
    if train and perturb_speed:
        cuts += [cut.perturb_speed(speed) for speed in SPEEDS for cut in cuts]
    if train:  # the sampler reads manifests through a window: neighbours should not be of one chapter
        random.Random(0).shuffle(cuts)
    done = store_features(cuts, output_dir / f"librispeech_feats_{part}", pool)
    write_cuts(done, output_dir / f"librispeech_cuts_{part}.jsonl.gz")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/manifests"))
    parser.add_argument("--output-dir", type=Path, default=Path("data/fbank"))
    parser.add_argument("--train-parts", default="", help="Parts to train on, separated by commas.")
    parser.add_argument("--parts", default="", help="Other parts, separated by commas.")
    parser.add_argument("--musan", type=str2bool, default=False, help="MUSAN instead of parts.")
    parser.add_argument("--perturb-speed", type=str2bool, default=False, help="Train at speeds 0.9 and 1.1 as well.")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(filename)s:%(lineno)d] %(message)s", level=logging.INFO)
    output_dir = args.output_dir.resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # in the processes too, which are forked: importing torch anew takes seconds
    with multiprocessing.get_context("fork").Pool(args.jobs) as pool:
        if args.musan:
            compute_musan(args.manifest_dir, output_dir, pool)
        for part in filter(None, args.train_parts.split(",")):
            compute_part(args.manifest_dir, output_dir, part, pool, train=True, perturb_speed=args.perturb_speed)
        for part in filter(None, args.parts.split(",")):
            compute_part(args.manifest_dir, output_dir, part, pool)
