"""Reads cuts, and names the file or cut that cannot be used."""

from __future__ import annotations

import torch
from lhotse.audio.utils import AudioLoadingError, DurationMismatchError
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from torch import Tensor

from kdstream.audio.samples import check_samples
from kdstream.data.batch import Utterance
from kdstream.data.cuts import text_of
from kdstream.data.features import compute_fbank
from kdstream.data.resampling import check_rate, resample
from kdstream.data.sources import last_line, with_checked_sources
from kdstream.errors import UserError
from kdstream.models.streaming import SHORTEST

READ_ERRORS = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, ImportError, AssertionError, AudioLoadingError,
    DurationMismatchError,
)  # fmt: skip


def read_audio(cut: Cut) -> Tensor:
    """The cut's samples (S,) at 16 kHz.

    Raises UserError, naming file and cut, where a file is missing, cut short, shorter than its manifest says, damaged
    or not mono, and where samples are not finite numbers on a scale of [-1, 1].
    """
    if not cut.has_recording:
        raise UserError(f"cut {cut.id}: no recording", fix="give a manifest of cuts with recordings")
    cut, sources = with_checked_sources(cut)
    name = f"{sources[0].name}: cut {cut.id}" if len(sources) == 1 else f"cut {cut.id}"
    fix = f"restore the audio of cut {cut.id}, or take the cut out"
    try:
        samples = cut.load_audio()
    except READ_ERRORS as error:
        for source in sources:
            source.raise_if_unreadable(cut.id)
        raise UserError(f"{name}: {last_line(error)}", fix=fix) from error
    for source in sources:
        source.raise_if_short(cut.id)
    assert samples is not None  # None is what a cut without recording has
    check_samples(samples, name, fix)
    if samples.shape[0] != 1:
        raise UserError(f"{name}: {samples.shape[0]} channels", fix="make it mono, e.g. with cut.to_mono()")
    check_rate(cut.sampling_rate, name, "resample its audio, e.g. to 16000 Hz")
    return resample(torch.from_numpy(samples[0]), cut.sampling_rate)


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
