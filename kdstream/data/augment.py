"""What training does to an utterance: noise before its features are computed, masks after."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import CutMix, SpecAugment

from kdstream.config.sections import DataConfig
from kdstream.data.batch import Utterance
from kdstream.data.cuts import read_manifest
from kdstream.errors import UserError

MUSAN_CUTS = "musan_cuts.jsonl.gz"


def read_noise(manifest_dir: Path) -> list[Cut]:
    """MUSAN's cuts.  Raises UserError where prepare.sh has not made them."""
    path = manifest_dir / MUSAN_CUTS
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run prepare.sh --musan true, or give --enable-musan 0")
    return list(read_manifest(path))


def _seed_of(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the generators that SpecAugment draws from, and puts them back: the model's dropout must not notice."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class Augmentation:
    """Noise and SpecAugment, as icefall sets them, drawn anew for each (seed, epoch, cut id)."""

    def __init__(self, config: DataConfig, seed: int, epoch: int, noise: Sequence[Cut] = ()) -> None:
        self.seed, self.epoch, self.noise = seed, epoch, noise
        self.spec_augment: SpecAugment | None = None
        if config.enable_spec_aug:
            self.spec_augment = SpecAugment(
                time_warp_factor=config.spec_aug_time_warp_factor,
                num_feature_masks=2,
                features_mask_size=27,
                num_frame_masks=10,
                frames_mask_size=100,
                max_frames_mask_fraction=0.15,
            )

    def mix_noise(self, cut: Cut) -> Cut:
        """Adds noise at 10 to 20 dB to every second cut, over its whole length."""
        if not self.noise:
            return cut
        rng = random.Random(_seed_of("noise", self.seed, self.epoch, cut.id))
        few = CutSet.from_cuts(rng.sample(self.noise, min(4, len(self.noise))))
        mix = CutMix(few, snr=(10, 20), p=0.5, pad_to_longest=True, preserve_id=True, seed=rng)
        return next(iter(mix(CutSet.from_cuts([cut]))))

    def mask(self, utterance: Utterance) -> Utterance:
        """SpecAugment on one utterance, before padding."""
        if self.spec_augment is None:
            return utterance
        with _seeded(_seed_of("spec", self.seed, self.epoch, utterance.cut_id)):
            features = self.spec_augment(utterance.features.unsqueeze(0)).squeeze(0)
        return utterance._replace(features=features)
