"""Reads cuts, and names the file or cut that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut
from torch import Tensor

from kdstream.audio.samples import check_samples
from kdstream.data.batch import Utterance
from kdstream.data.checks import (
    COMPUTE_AGAIN,
    COMPUTE_FEATURES,
    FRAME_TOLERANCE,
    TAKE_A_CHANNEL,
    check_frames,
    frames_of,
    is_heard,
)
from kdstream.data.cuts import text_of
from kdstream.data.features import FBANK_CONFIG, compute_fbank
from kdstream.data.resampling import check_rate, resample
from kdstream.data.shar import with_data
from kdstream.data.sources import last_line, with_checked_sources
from kdstream.errors import UserError
from kdstream.models.streaming import SHORTEST

# Median difference of two log energies.  Lossy compression makes 0.01 and dither 0.1, other lowest or highest
# frequencies make more than 0.25.
SAME_FILTER_BANK = 0.15


def read_audio(cut: Cut) -> Tensor:
    """The cut's samples (S,) at 16 kHz.

    Raises UserError, naming file and cut, where a file is missing, cut short, shorter than its manifest says, damaged
    or not mono, and where samples are not finite numbers on a scale of [-1, 1].
    """
    if not cut.has_recording:
        raise UserError(f"cut {cut.id}: no recording", fix="give a manifest of cuts with recordings")
    cut, sources = with_checked_sources(with_data(cut))
    name = f"{sources[0].name}: cut {cut.id}" if len(sources) == 1 else f"cut {cut.id}"
    fix = f"restore the audio of cut {cut.id}, or take the cut out"
    try:
        samples = cut.load_audio()
    except ImportError as error:
        raise UserError(f"{name}: {last_line(error)}", fix="install this package, which Lhotse needs here") from error
    except Exception as error:  # readers of other people's files raise any kind
        for source in sources:
            source.raise_if_unreadable(cut.id)
        if sources and all(source.path for source in sources):
            fix = f"its audio can be read: take cut {cut.id} out, or what is done with it, such as a change of tempo"
        raise UserError(f"{name}: {last_line(error)}", fix=fix) from error
    for source in sources:
        source.raise_if_short(cut.id)
    assert samples is not None  # None is what a cut without recording has
    check_samples(samples, name, fix)
    if samples.shape[0] != 1:
        raise UserError(f"{name}: {samples.shape[0]} channels", fix=TAKE_A_CHANNEL)
    check_rate(cut.sampling_rate, name, "resample its audio, e.g. to 16000 Hz")
    return resample(torch.from_numpy(samples[0]), cut.sampling_rate)


def read_utterance(cut: Cut, from_audio: bool, extractor: str = "lhotse") -> Utterance:
    """Reads a cut's stored features, or computes them from its audio (always so if none are stored).

    Raises UserError, naming the cut, for whatever cannot be trained on or decoded.
    """
    if is_heard(cut, from_audio):
        features = compute_fbank(read_audio(cut), extractor)
    else:
        features = _read_features(cut)
    if not torch.isfinite(features).all():
        raise UserError(f"cut {cut.id}: features hold NaN or infinity", fix="mend its audio or take the cut out")
    check_frames(f"cut {cut.id}", len(features), "take the cut out")
    return Utterance(cut.id, text_of(cut), features)


def check_noise(noisy: Cut, cut: Cut, from_audio: bool) -> None:
    """Raises UserError, naming it, where what was mixed into `cut` to make `noisy` cannot be read."""
    if isinstance(noisy, MixedCut):
        own = {track.cut.id for track in cut.tracks} if isinstance(cut, MixedCut) else {cut.id}
        for track in noisy.tracks:
            if isinstance(track.cut, DataCut) and track.cut.id not in own:
                read_audio(track.cut) if is_heard(track.cut, from_audio) else _read_features(track.cut)


def _read_features(cut: Cut) -> Tensor:
    path, cut = "a mix", with_data(cut)
    if isinstance(cut, DataCut):
        path = cut.features.storage_path if cut.features else "no features"
    try:
        features = cut.load_features()
        assert features is not None and features.shape[1] == FBANK_CONFIG.num_filters
    except Exception as error:
        fix = "delete its manifest and run prepare.sh again, or use --on-the-fly-feats 1"
        raise UserError(f"{path}: cannot read the features of cut {cut.id}", fix=fix) from error
    if abs(len(features) - frames_of(cut)) > FRAME_TOLERANCE:
        problem = f"{path}: {len(features)} feature frames are stored of the {frames_of(cut)} that cut {cut.id} has"
        raise UserError(problem, fix=COMPUTE_AGAIN)
    return torch.from_numpy(features)


def check_filter_bank(cuts: Iterable[Cut], path: Path) -> None:
    """Compares the stored features of the first cut that has audio too with those that we compute of it.

    A manifest does not say which frequencies a filter bank has, or how loud the audio was.  Raises UserError where
    these differ.  Nothing is compared where audio or features cannot be read: whoever needs them says so.
    """
    for cut in cuts:
        if not isinstance(cut, DataCut) or not cut.has_recording or cut.features is None or frames_of(cut) < SHORTEST:
            continue
        try:
            features: Any = getattr(with_data(cut), "features", None)
            stored = torch.from_numpy(features.load(start=cut.start, duration=cut.duration))
            computed = compute_fbank(read_audio(cut))
            frames = min(len(stored), len(computed))
            difference = float((stored[:frames] - computed[:frames]).abs().median())
        except Exception:
            return
        if difference > SAME_FILTER_BANK or abs(len(stored) - len(computed)) > 1:
            raise UserError(
                f"{path}: cut {cut.id}: stored features are of another filter bank: {len(stored)} frames for "
                f"{len(computed)}, and log energies that differ by {difference:.2f}",
                fix=COMPUTE_FEATURES,
            )
        return
