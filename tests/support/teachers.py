"""Small speech encoders, of torchaudio's and of transformers', that several tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.batch import Batch
from kdstream.kd.distiller import Distiller
from kdstream.kd.teacher import Teacher
from support.distillation import CHUNK, SMALL, write_tokens
from support.models import batch_of, random_batch, tiny_test_config, tiny_test_model

ENCODER = {
    "extractor_mode": "group_norm", "extractor_conv_layer_config": [[16, 10, 5], [16, 8, 4], [16, 4, 4], [16, 4, 4]],
    "extractor_conv_bias": False, "encoder_embed_dim": 24, "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 2, "encoder_num_layers": 3, "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 32, "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": None,
}  # fmt: skip


WAVLM = {**ENCODER, "encoder_num_buckets": 32, "encoder_max_distance": 80}


KINDS = {"wav2vec2_model": ENCODER, "wavlm_model": WAVLM}
SIZES = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32)
CONVOLUTIONS = dict(conv_dim=[16] * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
WHISPER = dict(
    d_model=24, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=32, decoder_layers=1,
    decoder_attention_heads=4, decoder_ffn_dim=32, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=1,
)  # fmt: skip
# by family of transformers: the model's class, its settings, its feature extractor's class and settings
FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "wav2vec2": ("Wav2Vec2", {**SIZES, **CONVOLUTIONS}, "Wav2Vec2FeatureExtractor", {"do_normalize": False}),
    "hubert": ("Hubert", {**SIZES, **CONVOLUTIONS}, "Wav2Vec2FeatureExtractor", {"do_normalize": False}),
    "wavlm": (
        "WavLM",
        {**SIZES, **CONVOLUTIONS, "num_buckets": 32, "max_bucket_distance": 80},
        "Wav2Vec2FeatureExtractor",
        {"do_normalize": True},
    ),
    "w2v-bert": ("Wav2Vec2Bert", {**SIZES, "conv_depthwise_kernel_size": 7}, "SeamlessM4TFeatureExtractor", {}),
    "whisper": ("Whisper", WHISPER, "WhisperFeatureExtractor", {}),
}


def speech_encoder(kind: str, settings: dict | None = None):
    torchaudio = pytest.importorskip("torchaudio", reason="the teacher is torchaudio's own code")
    torch.manual_seed(0)
    return getattr(torchaudio.models, kind)(**(settings or KINDS[kind])).eval()


def save_family(family: str, directory: Path, **changes: Any) -> Path:
    """A small model of transformers with random weights, as its save_pretrained writes it."""
    transformers = pytest.importorskip("transformers", reason="the teacher is transformers' own code")
    name, settings, extractor, its_settings = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**{**settings, **changes}))
    model.save_pretrained(directory)
    getattr(transformers, extractor)(**its_settings).save_pretrained(directory)
    return directory


def student_config(tmp_path: Path, **distill: Any) -> ExperimentConfig:
    data = write_tokens(tmp_path / "lang", ["<blk>", "<unk>", *map(str, range(28))])
    return ExperimentConfig(model=tiny_test_config(True), data=data, distill=DistillConfig(**distill))


def spoken(lens=(120, 90), cut_ids=()) -> Batch:
    """Features and noise of the same length."""
    features, feature_lens, _ = random_batch(lens)
    batch = batch_of(features, feature_lens, cut_ids)
    batch.audio_lens = feature_lens * 160
    batch.audio = 0.1 * torch.randn(len(lens), int(batch.audio_lens.max()), generator=torch.Generator().manual_seed(1))
    return batch


def losses_while_learning(teacher: Teacher, batch: Batch, steps: int) -> list[dict[str, float]]:
    """The losses between layers of a small student, step by step."""
    student = tiny_test_model(causal=True)
    torch.manual_seed(2)
    config = replace(SMALL, kd_layers=("1.1:0.1", "2.0:0.2"))
    distiller = Distiller(config, student, teacher).eval()
    optimizer = torch.optim.Adam([*student.encoder.parameters(), *distiller.parameters()], lr=0.01)
    history = []
    for _ in range(steps):
        taps = distiller.student_taps()
        student.encode(batch.features, batch.feature_lens, CHUNK, taps=taps)
        losses = distiller(batch, taps)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return history
