"""What training does to an utterance: transforms of its cut before features are computed, and of the utterance after.

Every transform stands once in TRANSFORMS.  What it does to a cut depends on (seed, epoch, cut id) alone, so workers,
processes and a resumed training see the same.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut, MixedCut, MixTrack
from lhotse.dataset import CutMix, SpecAugment
from lhotse.dataset.signal_transforms import time_warp
from torch import Tensor

from kdstream.config.flags import with_settings
from kdstream.config.registry import Registry
from kdstream.config.sections import DataConfig
from kdstream.data.batch import Utterance
from kdstream.data.checks import check_data, is_heard
from kdstream.data.cuts import iterate, read_manifest
from kdstream.errors import UserError
from kdstream.units import SAMPLE_RATE

MUSAN_CUTS = "musan_cuts.jsonl.gz"
AUGMENTED = 0.9  # of utterances have SpecAugment
HIDES_NONE = 1.5  # frames: lhotse's masks hide fewer than so many, rounded down


class Epoch(NamedTuple):
    """What randomness is drawn from: the seed of the training and the number of the epoch."""

    seed: int
    epoch: int

    def seed_of(self, transform: str, cut_id: str) -> int:
        """Another number for every transform, epoch and cut."""
        return zlib.crc32(f"{transform}/{self.seed}/{self.epoch}/{cut_id}".encode())


class TransformSpec(NamedTuple):
    """One transform.

    flag: the setting of DataConfig that switches it on; one from outside brings its own.
    stage: "cut" for a function of a Lhotse cut, "utterance" for one of an `Utterance`.
    make: (config, epoch) to the function.
    """

    flag: str
    stage: Literal["cut", "utterance"]
    make: Callable[[DataConfig, Epoch], Callable[[Any], Any]]


TRANSFORMS: Registry[TransformSpec] = Registry("transform", lambda: DataConfig)


class Augmentation:
    """The transforms that `config` switches on, in the order of TRANSFORMS."""

    def __init__(self, config: DataConfig, epoch: Epoch) -> None:
        wanted = [TRANSFORMS[name] for name in active_transforms(config)]
        self._of_cuts = [spec.make(config, epoch) for spec in wanted if spec.stage == "cut"]
        self._of_utterances = [spec.make(config, epoch) for spec in wanted if spec.stage == "utterance"]

    def change_cut(self, cut: Cut, from_audio: bool) -> Cut:
        """The cut as its features are computed, or mixed of stored ones where `from_audio` does not ask for audio.

        It is the same object where no transform changes it.  Transforms work on 16 kHz: Lhotse mixes cuts of one rate
        alone.
        """
        changed = before = at_16_khz(cut, from_audio) if self._of_cuts else cut
        for transform in self._of_cuts:
            changed = transform(changed)
        return cut if changed is before else changed

    def change_utterance(self, utterance: Utterance) -> Utterance:
        """The utterance as training gets it, before padding."""
        for transform in self._of_utterances:
            utterance = transform(utterance)
        return utterance


def at_16_khz(cut: Cut, from_audio: bool) -> Cut:
    """The cut, resampled as it is read, if features are computed from its audio and that has another rate."""
    return cut.resample(SAMPLE_RATE) if is_heard(cut, from_audio) and cut.sampling_rate != SAMPLE_RATE else cut


def active_transforms(config: DataConfig) -> list[str]:
    """Names of the transforms that `config` switches on."""
    return [name for name, spec in TRANSFORMS.items() if getattr(config, spec.flag)]


def without_transforms(config: DataConfig) -> DataConfig:
    """The settings with every transform switched off."""
    return with_settings(config, **{spec.flag: type(getattr(config, spec.flag))() for spec in TRANSFORMS.values()})


def musan_noise(config: DataConfig, epoch: Epoch) -> Callable[[Cut], Cut]:
    """MUSAN noise at 10 to 20 dB, over the whole length of every second cut, as icefall sets it."""
    path, from_audio = Path(config.manifest_dir) / MUSAN_CUTS, config.on_the_fly_feats
    noise = read_noise(path, from_audio)
    of_audio, of_features = all(cut.has_recording for cut in noise), all(cut.has_features for cut in noise)

    def mix(cut: Cut) -> Cut:
        heard = is_heard(cut, from_audio)
        if not (of_audio if heard else of_features):
            kind = "recordings" if heard else "stored features"
            fix = "make them with prepare.sh --musan true, or see --on-the-fly-feats"
            raise UserError(f"{path}: holds cuts without {kind}, to be mixed with those of cut {cut.id}", fix=fix)
        rng = random.Random(epoch.seed_of("noise", cut.id))
        few = CutSet.from_cuts(at_16_khz(chosen, heard) for chosen in rng.sample(noise, min(4, len(noise))))
        mixed = CutMix(few, snr=(10, 20), p=0.5, pad_to_longest=True, preserve_id=True, seed=rng)
        noisy = next(iter(mixed(CutSet.from_cuts([cut]))))
        return noisy if heard else with_snr_of_power(noisy, cut)

    return mix if noise else lambda cut: cut


def with_snr_of_power(noisy: Cut, cut: Cut) -> Cut:
    """`cut` with noise, of stored features, in which the noise is as loud as its SNR says.

    Lhotse takes the sum over frames for the energy of features, and the mean for that of audio.  So in features a noise
    would be the louder, the shorter it is beside the first track.
    """
    if not isinstance(noisy, MixedCut):
        return noisy
    own = len(cut.tracks) if isinstance(cut, MixedCut) else 1
    seconds = noisy.tracks[0].cut.duration

    def as_asked(track: MixTrack) -> MixTrack:
        assert track.snr is not None  # CutMix has set it
        return replace(track, snr=track.snr + 10 * math.log10(seconds / track.cut.duration))

    return replace(noisy, tracks=[*noisy.tracks[:own], *map(as_asked, noisy.tracks[own:])])


def read_noise(path: Path, from_audio: bool) -> Sequence[Cut]:
    """MUSAN's cuts.  Raises UserError where prepare.sh has not made them, or made them of other features."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest", fix="run prepare.sh --musan true, or give --enable-musan 0")
    noise = []
    for cut in iterate(read_manifest(path)):
        check_data(cut, from_audio, path)
        noise.append(cut)
    return noise


def spec_augment(config: DataConfig, epoch: Epoch) -> Callable[[Utterance], Utterance]:
    """SpecAugment with icefall's masks, and time warping by --spec-aug-time-warp-factor.

    Clean features are warped alike, so that a teacher hears them on the student's time axis, and are not masked.  Two
    views are of one warp too, and each has masks of its own; they hide --time-mask-ratio times as many frames.
    """
    factor, ratio = config.spec_aug_time_warp_factor, config.time_mask_ratio

    def warped(features: Tensor, seed: int) -> Tensor:
        if factor < 1:
            return features
        with _seeded(seed):  # draws in the order of SpecAugment: whether it does anything, the warp, the masks
            return time_warp(features, factor) if random.random() <= AUGMENTED else features

    def mask(utterance: Utterance) -> Utterance:
        cut_id, features, clean, second = utterance.cut_id, utterance.features, utterance.clean, utterance.second
        seed = epoch.seed_of("spec", cut_id)
        if second is None:
            features = _augmented(features, seed, factor)
        else:
            features = warped(features, seed)
            features, second = (_augmented(features, epoch.seed_of(f"view{n}", cut_id), 0, ratio) for n in (1, 2))
        clean = clean if clean is None else warped(clean, seed)
        return utterance._replace(features=features, clean=clean, second=second)

    return mask


def _augmented(features: Tensor, seed: int, time_warp_factor: int, time_mask_ratio: float = 1.0) -> Tensor:
    """Features (T, 80) with SpecAugment.  Where there is no frame to hide, lhotse is told of a mask that hides none."""
    augment = SpecAugment(
        time_warp_factor=time_warp_factor,
        num_feature_masks=2,
        features_mask_size=27,
        num_frame_masks=max(1, int(10 * time_mask_ratio)),
        frames_mask_size=100,
        max_frames_mask_fraction=max(0.15 * time_mask_ratio, HIDES_NONE / len(features)),
        p=AUGMENTED,
    )
    with _seeded(seed):
        return augment(features.unsqueeze(0)).squeeze(0)


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


TRANSFORMS.add("musan", TransformSpec("enable_musan", "cut", musan_noise))
TRANSFORMS.add("spec-augment", TransformSpec("enable_spec_aug", "utterance", spec_augment))
