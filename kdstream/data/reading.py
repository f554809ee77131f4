"""Reads cuts and audio files, and names the file or cut that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lhotse.audio.utils import AudioLoadingError, DurationMismatchError
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from kdstream.data.batch import Utterance
from kdstream.data.cuts import text_of
from kdstream.data.features import compute_fbank
from kdstream.data.resampling import resample
from kdstream.errors import UserError
from kdstream.models.streaming import SHORTEST

READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, AssertionError, AudioLoadingError, DurationMismatchError)


def read_audio(cut: Cut) -> Tensor:
    """The cut's samples (S,) at 16 kHz.  Raises UserError where the file is missing, cut short or not mono."""
    path = "a mix"
    if isinstance(cut, DataCut) and cut.recording:
        source = cut.recording.sources[0].source
        path = source if isinstance(source, str) else "audio in memory"

    def load() -> np.ndarray:
        samples = cut.load_audio()
        assert samples is not None  # None is what a cut without a recording has
        return samples

    samples = load_samples(load, path, f"restore the audio of cut {cut.id} or take the cut out")
    if samples.shape[0] != 1:
        raise UserError(f"{path}: {samples.shape[0]} channels", fix=f"make cut {cut.id} mono, e.g. with cut.to_mono()")
    return resample(torch.from_numpy(samples[0]), cut.sampling_rate)


def load_samples(load: Callable[[], np.ndarray], path: str | Path, fix: str) -> np.ndarray:
    """Samples (channels, S) as `load` gives them.  Raises UserError, with `path` and `fix`, where they are no good."""
    try:
        samples = load()
    except READ_ERRORS as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cut short or damaged"
        raise UserError(f"{path}: {reason}", fix=fix) from error
    if not np.isfinite(samples).all():
        raise UserError(f"{path}: samples are NaN or infinite", fix=fix)
    return samples


def read_utterance(cut: Cut, from_audio: bool, extractor: str = "lhotse") -> Utterance:
    """Reads a cut's stored features, or computes them from its audio (always so if none are stored).

    Raises UserError, naming the cut, for whatever cannot be trained on or decoded.
    """
    if len(cut.supervisions) > 1:
        raise UserError(
            f"cut {cut.id}: {len(cut.supervisions)} supervisions", fix="use cuts.trim_to_supervisions() first"
        )
    if cut.has_recording and (from_audio or not cut.has_features):
        features = compute_fbank(read_audio(cut), extractor)
    else:
        features = _read_features(cut)
    if not torch.isfinite(features).all():
        raise UserError(f"cut {cut.id}: features hold NaN or infinity", fix="mend its audio or take the cut out")
    if len(features) < SHORTEST:
        raise UserError(f"cut {cut.id}: only {len(features)} frames (10 ms each)", fix="take the cut out")
    return Utterance(cut.id, text_of(cut), features)


def _read_features(cut: Cut) -> Tensor:
    path = "a mix"
    if isinstance(cut, DataCut):
        path = cut.features.storage_path if cut.features else "no features"
    try:
        features = cut.load_features()
        assert features is not None
        return torch.from_numpy(features)
    except READ_ERRORS as error:
        fix = "delete its manifest and run prepare.sh again, or use --on-the-fly-feats 1"
        raise UserError(f"{path}: cannot read the features of cut {cut.id}", fix=fix) from error
