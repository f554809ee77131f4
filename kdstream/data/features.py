"""The only filter bank of the project: training, decoding, export checks and live transcription share it."""

from __future__ import annotations

import functools

import numpy as np
import torch
from lhotse import Fbank, FbankConfig, KaldifeatFbank, KaldifeatFbankConfig
from lhotse.features.kaldifeat import KaldifeatFrameOptions, KaldifeatMelOptions
from torch import Tensor

from kdstream.errors import UserError
from kdstream.units import SAMPLE_RATE

FBANK_CONFIG = FbankConfig(num_filters=80, dither=0.0, snip_edges=False, low_freq=20.0, high_freq=-400.0)
FBANK = Fbank(FBANK_CONFIG)


def compute_fbank(samples: np.ndarray | Tensor, extractor: str = "lhotse") -> Tensor:
    """Log mel energies of 16 kHz audio.

    Args:
      samples: (S,) in [-1, 1].
      extractor: a --feature-extractor; the two differ by less than 1e-3.
    Returns:
      (T, 80) float32, T = S / 160 rounded to the nearest.
    Raises:
      UserError: kaldifeat is asked for and not installed.
    """
    fbank = kaldifeat_fbank() if extractor == "kaldifeat" else FBANK
    return torch.as_tensor(fbank.extract(torch.as_tensor(samples, dtype=torch.float32), SAMPLE_RATE))


@functools.cache
def kaldifeat_fbank() -> KaldifeatFbank:
    """FBANK's settings, computed by kaldifeat."""
    try:
        import kaldifeat  # noqa: F401  # pyright: ignore[reportMissingImports]  # Lhotse imports it when it computes
    except (ImportError, OSError) as error:
        raise UserError(
            f"it does not import ({error})",
            flag="--feature-extractor kaldifeat",
            fix="build it with local/setup_env.sh --kaldifeat, or leave the flag out",
        ) from error
    ours = FBANK_CONFIG
    frames = KaldifeatFrameOptions(dither=ours.dither, snip_edges=ours.snip_edges)
    bins = KaldifeatMelOptions(num_bins=ours.num_filters, low_freq=ours.low_freq, high_freq=ours.high_freq)
    return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=bins))
