"""Small speech encoders of torchaudio's that several tests share."""

from __future__ import annotations

import pytest
import torch

ENCODER = {
    "extractor_mode": "group_norm", "extractor_conv_layer_config": [[16, 10, 5], [16, 8, 4], [16, 4, 4], [16, 4, 4]],
    "extractor_conv_bias": False, "encoder_embed_dim": 24, "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2, "encoder_num_layers": 3, "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 32, "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": None,
}  # fmt: skip


WAVLM = {**ENCODER, "encoder_num_buckets": 32, "encoder_max_distance": 80}


KINDS = {"wav2vec2_model": ENCODER, "wavlm_model": WAVLM}


def speech_encoder(kind: str, settings: dict | None = None):
    torchaudio = pytest.importorskip("torchaudio", reason="the teacher is torchaudio's own code")
    torch.manual_seed(0)
    return getattr(torchaudio.models, kind)(**(settings or KINDS[kind])).eval()
