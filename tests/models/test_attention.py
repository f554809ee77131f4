"""Attention within a band against attention under a mask: the same frames and gradients, for less work."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdstream.models import conformer, zipformer
from kdstream.models.attention import (
    AttentionWeights,
    Band,
    FrameContext,
    View,
    view_of,
)
from kdstream.models.positions import relative_positions
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from support.models import SETTINGS, difference, tiny_test_model

CHUNKS = [ChunkConfig(8, 8), ChunkConfig(8, 64), ChunkConfig(16, 32), ChunkConfig(32, 32), ChunkConfig(48, 48)]
FRAMES = [160, 301, 333]  # encoder frames: whole blocks in no stack, or in some, and an odd number


@pytest.fixture(params=SETTINGS)
def encoder(request) -> str:
    return request.param


@pytest.fixture
def under_masks(monkeypatch):
    """Makes encoders look at all keys, of which a mask blocks most."""

    def plain(queries: int, keys: int, chunk: ChunkConfig | None) -> View:
        return View(None if keys > queries else chunk)

    def install() -> None:
        for module in (zipformer, conformer):
            monkeypatch.setattr(module, "view_of", plain)

    return install


def run(model: Transducer, frames: int, chunk: ChunkConfig, shortest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Valid output frames, and the gradients by input and parameters, of three utterances of random frames."""
    random.seed(0)
    torch.manual_seed(0)
    x = torch.randn(3, frames, model.encoder.input_dim(model.config), requires_grad=True)
    out, lens, _ = model.encoder(x, torch.linspace(frames, shortest * frames, 3).long(), chunk)
    valid = torch.cat([row[:length] for row, length in zip(out, lens.tolist(), strict=True)])
    (valid * torch.randn_like(valid)).sum().backward()
    gradients = [p.grad.flatten() for p in (x, *model.encoder.parameters()) if p.grad is not None]
    model.zero_grad()
    return valid.detach(), torch.cat(gradients)


@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
@pytest.mark.parametrize("frames", FRAMES)
def test_a_band_gives_the_frames_and_gradients_of_a_mask(encoder, chunk, frames, under_masks):
    model = tiny_test_model(causal=True, encoder=encoder)
    assert isinstance(view_of(frames, frames, chunk), Band)
    out, gradients = run(model, frames, chunk, shortest=0.3)
    under_masks()
    expected, expected_gradients = run(model, frames, chunk, shortest=0.3)
    assert difference(out, expected) < 1e-5
    assert float((gradients - expected_gradients).norm() / expected_gradients.norm()) < 1e-5


def test_a_training_step_draws_the_same_numbers_under_a_mask(encoder, under_masks):
    """Dropout of positions, skipped layers and all else that is random; no frame lies beyond all that it may see."""
    model, chunk = tiny_test_model(causal=True, encoder=encoder).train(), ChunkConfig(8, 64)
    out, gradients = run(model, 300, chunk, shortest=0.8)
    after = torch.rand(1)
    under_masks()
    expected, expected_gradients = run(model, 300, chunk, shortest=0.8)
    assert torch.equal(torch.rand(1), after)
    assert difference(out, expected) < 1e-5
    assert float((gradients - expected_gradients).norm() / expected_gradients.norm()) < 1e-5


def test_gradients_in_bfloat16_point_where_those_in_float32_point(encoder):
    model, chunk = tiny_test_model(causal=True, encoder=encoder), ChunkConfig(8, 64)
    out, gradients = run(model, 300, chunk, shortest=0.8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough_out, rough_gradients = run(model, 300, chunk, shortest=0.8)
    assert F.cosine_similarity(rough_out.float().flatten(), out.flatten(), dim=0) > 0.999
    assert F.cosine_similarity(rough_gradients, gradients, dim=0) > 0.999


@pytest.mark.parametrize(
    "frames, chunk", [(300, ChunkConfig(8, 64)), (75, ChunkConfig(2, 16)), (101, ChunkConfig(48, 48))]
)
def test_blocks_hold_whole_chunks_and_less_than_one_chunk_each_to_fill_up_the_last(frames, chunk):
    view = view_of(frames, frames, chunk)
    assert isinstance(view, Band)
    assert view.block % chunk.chunk == 0
    blocks = -(-frames // view.block)
    assert blocks * view.block - frames < blocks * chunk.chunk


@pytest.mark.parametrize(
    "queries, keys, chunk",
    [
        (300, 300, None),
        (300, 300, ChunkConfig(8, -1)),
        (90, 90, ChunkConfig(8, 64)),
        (8, 72, ChunkConfig(8, 64)),
    ],
    ids=["full context", "unlimited left context", "hardly longer than a block sees", "step"],
)
def test_where_a_band_would_save_nothing_all_keys_are_looked_at(queries, keys, chunk):
    assert type(view_of(queries, keys, chunk)) is View


class CountElements(TorchDispatchMode):
    """Counts the elements of all tensors that are computed."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.total += out.numel()
        return out


@torch.no_grad()
def test_work_grows_in_proportion_to_the_utterance(encoder):
    model, totals = tiny_test_model(causal=True, encoder=encoder), []
    for frames in (8000, 16000):  # their elementwise work is in blocks
        x = torch.zeros(1, frames, model.encoder.input_dim(model.config))
        with CountElements() as count:
            model.encoder(x, torch.tensor([frames]), ChunkConfig(8, 64))
        totals.append(count.total)
    assert totals[1] < 2.01 * totals[0]


def test_the_penalty_on_large_scores_does_not_reach_blocked_ones(monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.09)  # below what penalises, and what leaves out positions
    attention, x = AttentionWeights(16, 8, heads=2, query_head_dim=4, pos_head_dim=2).train(), torch.randn(1, 20, 16)
    hidden = torch.arange(20).unsqueeze(0) >= 15
    view = View(None)
    context = FrameContext(view, view.blocked(hidden), hidden, relative_positions(20, 20, 8, x.device), None)
    weights, _, (_, key) = attention(100 * x, context, None)
    (gradient,) = torch.autograd.grad(weights.sum(), key)  # without a penalty it would be 0: weights sum up to 1
    assert gradient[:, :15].abs().max() > 1e-4
    assert torch.equal(gradient[:, 15:], torch.zeros_like(gradient[:, 15:]))
