"""The Conformer's own parts: rotation, fused attention, the two convolutions, presets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.models.attention import split_heads
from kdstream.models.conformer import CausalDepthwiseConv1d, Conformer, attend, rotate, rotations
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import build_model
from kdstream.models.zipformer_modules import CentredDepthwiseConv1d
from support.models import difference, random_batch, tiny_test_model

CHUNK = ChunkConfig(8, 16)


def test_scores_depend_on_the_offset_of_two_frames_alone_however_late_they_are():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 16, generator=generator).expand(-1, 3000, -1) for _ in range(2))
    query, key = (split_heads(rotate(x, 2, *rotations(3000, 8, x)), 2) for x in (query, key))
    scores = query @ key.transpose(2, 3)
    for offset in (-7, 0, 7):
        by_time = scores.diagonal(offset, dim1=2, dim2=3)
        assert (by_time - by_time[..., :1]).abs().max() < 1e-5
    assert (scores[:, :, 0, 0] - scores[:, :, 0, 7]).abs().min() > 1e-2


def test_fused_attention_equals_the_one_written_out(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, frames, 6, generator=generator) for frames in (5, 9, 9))
    mask = torch.zeros(2, 1, 5, 9).masked_fill(torch.rand(2, 1, 5, 9, generator=generator) < 0.4, -1000.0)
    fused = attend(query, key, value, mask)
    monkeypatch.delattr(F, "scaled_dot_product_attention", raising=False)
    assert difference(attend(query, key, value, mask), fused) < 1e-6


@pytest.mark.parametrize("chunk", [None, CHUNK], ids=str)
def test_attention_runs_fused_while_training_too(chunk):
    attention = pytest.importorskip("torch.nn.attention", reason="this torch cannot tell its kernels apart")
    model = tiny_test_model(causal=chunk is not None, encoder="conformer").train()
    features, lens, _ = random_batch()
    with attention.sdpa_kernel(attention.SDPBackend.FLASH_ATTENTION):  # raises where it cannot be used
        model.encode(features, lens, chunk)[0].sum().backward()
    assert model.encoder.layers[0].self_attn.in_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind, ahead", [(CausalDepthwiseConv1d, 0), (CentredDepthwiseConv1d, 3)])
def test_the_streaming_convolution_sees_the_past_alone(kind, ahead):
    x = torch.randn(1, 30, 4).requires_grad_()
    y, _ = kind(4, 7)(x, None, None)
    (gradient,) = torch.autograd.grad(y[0, 15].sum(), x)
    reached = gradient[0].abs().sum(dim=1).nonzero().flatten()
    assert (int(reached[0]), int(reached[-1])) == (15 + ahead - 6, 15 + ahead)


@torch.no_grad()
def test_a_streaming_convolution_that_starts_from_a_centred_one_agrees_on_what_does_not_change():
    centred, causal = CentredDepthwiseConv1d(4, 7), CausalDepthwiseConv1d(4, 7)
    name = "encoder.layers.0.conv_module.depthwise_conv"
    other = torch.randn(3)
    weights = {f"{name}.weight": centred.weight, f"{name}.bias": centred.bias, "other": other}
    converted = Conformer.streaming_parameters(weights)
    causal.load_state_dict({"weight": converted[f"{name}.weight"], "bias": converted[f"{name}.bias"]})
    still = torch.randn(4).expand(1, 30, 4)
    assert difference(causal(still, None, None)[0][:, 6:24], centred(still, None, None)[0][:, 6:24]) < 1e-6
    assert torch.equal(causal.weight[:, :, 3:6], centred.weight[:, :, :3])  # the past keeps its place
    assert converted["other"] is other


@pytest.mark.slow
def test_caches_are_as_wide_as_the_model_in_every_preset():
    """What one layer keeps of a frame fits where sherpa-onnx keeps a Conformer's."""
    for preset, parameters in (("tiny", 2.6e6), ("small", 24e6), ("medium", 80e6)):
        config = resolve(ModelConfig(encoder="conformer", preset=preset, causal=True, vocab_size=500))
        model = build_model(config)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.03)
        (dim,), (kernel,), (layers,) = config.encoder_dim, config.cnn_module_kernel, config.num_encoder_layers
        shapes = model.encoder.cache_shapes(ChunkConfig(8, 32))
        assert shapes == [(16, dim), (kernel - 1, dim)] * layers


def test_chunks_need_not_be_multiples_of_more_than_40_ms():
    state = tiny_test_model(causal=True, encoder="conformer").init_state(1, ChunkConfig(2, 6))
    assert [tuple(cache.shape) for cache in state.layers[:2]] == [(1, 3, 48), (1, 14, 48)]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(downsampling_factor=(2,)), "--downsampling-factor: a conformer has no such setting; leave it out"),
        (dict(pos_dim=48), "--pos-dim: a conformer has no such setting"),
        (dict(num_encoder_layers=(2, 2)), "--num-encoder-layers: a conformer is one stack"),
        (dict(encoder_dim=(63,)), "--encoder-dim: must be even"),
        (dict(query_head_dim=(5,)), "--query-head-dim: must be even"),
        (dict(preset="large"), "--preset large: unknown for --encoder conformer; use one of tiny, small, medium"),
    ],
)
def test_settings_that_a_conformer_does_not_have_are_clear_errors(settings, message):
    with pytest.raises(UserError, match=message):
        resolve(ModelConfig(encoder="conformer", **settings))


def test_angles_do_not_depend_on_the_table_that_they_are_taken_from():
    like = torch.zeros(1)
    with torch.inference_mode():
        first = rotations(40, 8, like)
    assert all(torch.equal(table[:40], x) for table, x in zip(rotations(3000, 8, like), first, strict=True))
    weight = torch.ones(4, requires_grad=True)
    (weight * first[0]).sum().backward()  # a table that decoding has made serves training
    assert rotations(40, 8, like)[0].data_ptr() == first[0].data_ptr()
