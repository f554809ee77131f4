"""torchaudio's wav2vec 2.0, HuBERT and WavLM encoders as teachers; see speech_encoder.py.

Shapes: T' frames of theirs, S samples at 16 kHz, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.checkpoints.store import check_finite
from kdstream.errors import UserError
from kdstream.kd.speech_encoder import FrameGrid, SpeechEncoderTeacher, TappedLayer
from kdstream.kd.teacher import freeze
from kdstream.units import SAMPLE_RATE


def load_speech_encoder(model: str, weights: Mapping[str, Tensor], path: str) -> Any:
    """Builds an encoder, a Wav2Vec2Model, by torchaudio's own code.

    Args:
      model: a function of torchaudio.models, and its arguments as JSON: 'wavlm_base' or
        'wav2vec2_model {"extractor_mode": "group_norm", ...}'.
      weights: its state dict; path is where it is from, for errors.
    Raises:
      UserError: torchaudio is missing or has no such function, or weights that do not fit.
    """
    try:
        from torchaudio import models
    except (ImportError, OSError) as error:
        raise UserError(
            f"torchaudio cannot be imported ({error})", flag="--teacher-type torchaudio", fix="pip install torchaudio"
        ) from error
    name, _, arguments = model.strip().partition(" ")
    if not name.startswith(("wav2vec2_", "hubert_", "wavlm_")) or not hasattr(models, name):
        raise UserError(
            "no speech encoder of torchaudio.models", flag=f"--teacher-model {model!r}", fix="give e.g. hubert_base"
        )
    try:
        encoder = getattr(models, name)(**json.loads(arguments or "{}"))
        encoder.load_state_dict(weights, strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            " ".join(str(error).split())[:300],
            flag=f"--teacher-model {model!r}",
            fix=f"give the arguments with which {path} was made",
        ) from error
    check_finite(weights, path)
    return encoder


class TorchaudioTeacher(SpeechEncoderTeacher):
    """One of torchaudio's Wav2Vec2Models.

    Args:
      model: what built it, see `load_speech_encoder`; two encoders of equal weights may differ in it.
    """

    def __init__(self, encoder: Any, device: torch.device, model: str = "") -> None:
        convolutions = [layer.conv for layer in encoder.feature_extractor.conv_layers]
        samples = FrameGrid(1000 / SAMPLE_RATE, 500 / SAMPLE_RATE)
        grid = reduce(FrameGrid.through, convolutions, samples)
        self.normalises = isinstance(encoder.feature_extractor.conv_layers[0].layer_norm, nn.LayerNorm)
        layers = [tapped(layer) for layer in encoder.encoder.transformer.layers]
        super().__init__(freeze(encoder).to(device), layers, grid, {"teacher_model": model})

    def run(self, utterances: Sequence[Tensor]) -> None:
        audio = utterances[0].to(self.device, non_blocking=True)
        if self.normalises:
            audio = F.layer_norm(audio, audio.shape)
        self.model.extract_features(audio.unsqueeze(0))


def tapped(layer: Any) -> TappedLayer:
    attention = layer.attention
    if hasattr(attention, "q_proj"):
        return TappedLayer(layer, attention, (attention.q_proj, attention.k_proj, attention.v_proj))

    def project(x: Tensor) -> Sequence[Tensor]:  # WavLM's: one matrix for all three, and no module that computes them
        inner = attention.attention
        return F.linear(x, inner.in_proj_weight, inner.in_proj_bias).chunk(3, dim=-1)

    return TappedLayer(layer, attention, None, project)
