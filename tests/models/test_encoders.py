"""What every encoder owes whoever feeds it: one output in all modes, no leak from the future, caches and taps."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.kd.taps import Taps
from kdstream.models import on_cpu
from kdstream.models.encoders import ENCODERS
from kdstream.models.presets import resolve
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks, stack_states
from kdstream.models.transducer import build_model
from support.models import SETTINGS, difference, random_batch, run_chunks, tiny_test_model

CHUNKS = [ChunkConfig(8, 32), ChunkConfig(16, 64), ChunkConfig(32, 32)]
ALL_CHUNKS = [ChunkConfig(*sizes) for sizes in product((8, 16), (32, 64), (0, 8, 16))] + [ChunkConfig(32, 32)]
AHEAD = ChunkConfig(8, 32, 16)


@pytest.fixture(params=SETTINGS)
def encoder(request) -> str:
    return request.param


def test_every_encoder_is_tested_and_has_presets():
    assert SETTINGS.keys() == ENCODERS.keys()
    assert all("tiny" in kind.presets for kind in ENCODERS.values())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("chunk", ALL_CHUNKS, ids=str)
@pytest.mark.parametrize("products", [0, 2**30], ids=["torch's convolutions", "sums of products"])
def test_chunk_by_chunk_equals_simulated_on_every_frame_the_tail_included(encoder, chunk, products, monkeypatch):
    monkeypatch.setattr(on_cpu, "FEW_PRODUCTS", products)
    model = tiny_test_model(causal=True, encoder=encoder)
    for frames in (9, 57, 131, 200):
        features, frames_lens = torch.randn(1, frames, 80) * 3 - 6, torch.tensor([frames])
        simulated, out_lens, _ = model.encode(*pad_to_whole_chunks(features, frames_lens, chunk.chunk), chunk)
        chunkwise, _ = run_chunks(model, pad_to_whole_chunks(features, frames_lens, chunk.chunk, chunk.right)[0], chunk)
        assert int(out_lens) == -(-((frames - 7) // 2) // chunk.chunk) * chunk.chunk // 2
        assert difference(simulated[:, : int(out_lens)], chunkwise) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, 32), AHEAD], ids=str)
def test_an_utterance_gives_the_same_frames_alone_and_in_a_batch(encoder, chunk):
    model = tiny_test_model(causal=chunk is not None, encoder=encoder)
    lens = torch.tensor([130, 77, 101])
    features = torch.randn(3, 130, 80) * 3 - 6
    multiple = chunk.chunk if chunk else model.max_downsampling
    together, together_lens, _ = model.encode(*pad_to_whole_chunks(features, lens, multiple), chunk)
    for row in range(3):
        alone, alone_lens, _ = model.encode(
            *pad_to_whole_chunks(features[row : row + 1], lens[row : row + 1], multiple), chunk
        )
        assert int(alone_lens) == int(together_lens[row])
        assert difference(alone[0, : int(alone_lens)], together[row, : int(alone_lens)]) < 1e-5


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("chunk", ALL_CHUNKS, ids=str)
def test_streams_of_different_ages_share_a_batch(encoder, chunk):
    model = tiny_test_model(causal=True, encoder=encoder)
    features = torch.randn(2, 200, 80) * 3 - 6
    separate = [run_chunks(model, features[row : row + 1], chunk)[0] for row in range(2)]
    lens = torch.tensor([chunk.input_frames])
    _, _, older = model.encode(features[:1, : chunk.input_frames], lens, chunk, model.init_state(1, chunk))
    state = stack_states([older, model.init_state(1, chunk)])
    first = features[:, : chunk.input_frames]
    second = features[:, chunk.shift : chunk.shift + chunk.input_frames]
    window = torch.stack([second[0], first[1]])
    out, _, state = model.encode(window, lens.expand(2), chunk, state)
    frames = chunk.chunk // 2
    assert difference(out[0], separate[0][0, frames : 2 * frames]) < 1e-5
    assert difference(out[1], separate[1][0, :frames]) < 1e-5
    assert state.processed.tolist() == [2 * chunk.chunk, chunk.chunk]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [ChunkConfig(8, 32), AHEAD], ids=str)
def test_a_step_hands_back_caches_of_the_shapes_that_it_got(encoder, chunk):
    model = tiny_test_model(causal=True, encoder=encoder)
    fresh = model.init_state(2, chunk)
    _, state = run_chunks(model, torch.randn(2, 80, 80), chunk)
    assert [x.shape for x in state.tensors()] == [x.shape for x in fresh.tensors()]
    assert all(cache.abs().max() > 0 for cache in state.layers)


@torch.no_grad()
def test_caches_hold_frames_of_chunks_alone(encoder):
    """In the front end and the first layer a cached frame is the same with right context and without."""
    model = tiny_test_model(causal=True, encoder=encoder)
    features = torch.randn(1, 9 * 16 + 13 + 32, 80) * 3 - 6
    states = []
    for right in (0, 16):
        chunk = ChunkConfig(8, 32, right)
        state = run_chunks(model, features[:, : 8 * 16 + chunk.input_frames], chunk)[1]
        states.append(state)
    assert states[0].processed.tolist() == states[1].processed.tolist() == [72]
    assert difference(states[0].embed, states[1].embed) < 1e-5
    assert difference(states[0].layers[0], states[1].layers[0]) < 1e-5
    assert difference(states[0].layers[-1], states[1].layers[-1]) > 1e-3


@torch.no_grad()
def test_full_context_is_one_endless_chunk(encoder):
    model = tiny_test_model(causal=True, encoder=encoder)
    features, lens, _ = random_batch()
    full, endless = (model.encode(features, lens, chunk)[0] for chunk in (None, ChunkConfig(8000, -1)))
    assert torch.equal(full, endless)
    assert difference(full, model.encode(features, lens, CHUNKS[0])[0]) > 1e-3


@pytest.mark.parametrize("chunk", ALL_CHUNKS, ids=str)
def test_no_gradient_reaches_a_frame_beyond_the_chunk_and_its_lookahead(encoder, chunk):
    model = tiny_test_model(causal=True, encoder=encoder)
    features = (torch.randn(1, 300, 80) * 3 - 6).requires_grad_()
    out, _, _ = model.encode(features, torch.tensor([300]), chunk)
    for number in range(3):
        last = out[:, number * chunk.chunk // 2 :][:, : chunk.chunk // 2]
        (gradient,) = torch.autograd.grad(last.square().sum(), features, retain_graph=True)
        reached = gradient.abs().sum(dim=(0, 2)) > 0
        end = number * chunk.shift + chunk.input_frames
        assert reached[number * chunk.shift : end].all()
        assert not reached[end:].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder, settings, steps_back",
    [
        # each layer attends three times in a row and convolves twice
        ("zipformer", dict(num_encoder_layers=(1, 1, 1), cnn_module_kernel=(3, 3, 3)), 5),
        ("conformer", dict(cnn_module_kernel=(3,)), 2),
    ],
)
def test_attention_does_not_reach_beyond_the_left_context(encoder, settings, steps_back):
    chunk = ChunkConfig(8, 8)
    model = tiny_test_model(causal=True, encoder=encoder, **settings)
    features = (torch.randn(1, 600, 80) * 3 - 6).requires_grad_()
    out, lens, _ = model.encode(features, torch.tensor([600]), chunk)
    (gradient,) = torch.autograd.grad(out[:, int(lens) - 1].square().sum(), features)
    reached = (gradient.abs().sum(dim=(0, 2)) > 0).nonzero()
    # in each of three layers every attention and convolution moves the earliest frame by one chunk at most; the
    # front end adds its own overlap
    assert 600 - int(reached[0]) <= chunk.shift * (1 + 3 * steps_back) + (chunk.input_frames - chunk.shift)
    assert 600 - int(reached[0]) > chunk.shift + chunk.input_frames


@torch.no_grad()
def test_full_context_sees_the_future(encoder):
    model = tiny_test_model(causal=False, encoder=encoder)
    features = torch.randn(1, 300, 80) * 3 - 6
    changed = features.clone()
    changed[:, 280:] += 1
    out = [model.encode(x, torch.tensor([300]))[0][:, :4] for x in (features, changed)]
    assert difference(*out) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, 8), AHEAD], ids=str)
def test_padding_that_sees_no_frame_at_all_leaves_every_gradient_finite(encoder, chunk):
    model = tiny_test_model(causal=chunk is not None, encoder=encoder).train()
    features, lens, tokens = random_batch((200, 40))
    sum(model(features, lens, tokens, chunk, LossSettings()).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, 32), AHEAD], ids=str)
def test_taps_give_every_layer_at_its_own_rate(encoder, chunk):
    model = tiny_test_model(causal=chunk is not None, encoder=encoder)
    features, lens, _ = random_batch((121, 90))
    taps = Taps()
    model.encode(features, lens, chunk, taps=taps)
    assert len(taps.names()) == sum(model.config.num_encoder_layers)
    for name in taps.names():
        tap, stack = taps[name], int(name.split(".")[0])
        assert tap.lens.tolist() == [-(-((n - 7) // 2) // tap.stride) for n in (121, 90)]
        width = model.config.num_heads[stack] * model.config.query_head_dim[stack]
        frames = int(tap.lens.max())
        assert tap.features.shape == (2, frames, model.config.encoder_dim[stack])
        assert tap.query.shape == tap.key.shape == (2, frames, width) and tap.value.shape[:2] == (2, frames)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda encoder: ChunkConfig(16, 24), "left context 24: not a multiple of chunk 16"),
        (lambda encoder: ChunkConfig(0, 0), "chunk 0: must be positive"),
        (lambda encoder: tiny_test_model(True, encoder=encoder).init_state(1, ChunkConfig(3, 6)), "chunk 3: not a mul"),
        (lambda encoder: tiny_test_model(True, encoder=encoder).init_state(1, ChunkConfig(8, -1)), "unlimited left"),
        (
            lambda encoder: tiny_test_model(True, encoder=encoder).init_state(1, ChunkConfig(8, 32, 3)),
            "right context 3: not a multiple of",
        ),
        (lambda encoder: ChunkConfig(8, 32, -8), "right context -8: below 0"),
        (lambda encoder: ChunkConfig(8, -1, 8), "right context 8 needs a limited left context"),
        (lambda encoder: tiny_test_model(False, encoder=encoder).init_state(1, ChunkConfig(8, 32)), "--causal 0"),
        (
            lambda encoder: tiny_test_model(False, encoder=encoder).encode(torch.zeros(1, 8, 80), torch.tensor([8])),
            "at least 9",
        ),
        (lambda encoder: resolve(ModelConfig(encoder=encoder, preset="huge")), "--preset huge: unknown for --encoder"),
        (lambda encoder: resolve(ModelConfig(encoder=encoder, encoder_dim=(64, 64))), "--encoder-dim: 2 values for"),
        (lambda encoder: resolve(ModelConfig(encoder=encoder, cnn_module_kernel=(14,))), "must be odd"),
        (lambda encoder: resolve(ModelConfig(encoder=encoder, frontend_channels=(8, 32))), "has three convolutions"),
        (
            lambda encoder: resolve(ModelConfig(encoder=encoder, decoder_dim=510)),
            "--decoder-dim 510: must be a multiple",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(encoder, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(encoder)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@torch.no_grad()
def test_a_chunk_holds_whole_frames_of_every_stack():
    model = tiny_test_model(causal=True, downsampling_factor=(1, 2, 3))
    with pytest.raises(UserError, match="chunk 8: not a multiple of 6"):
        model.init_state(1, ChunkConfig(8, 8))
    chunk = ChunkConfig(6, 12)
    features, lens = pad_to_whole_chunks(torch.randn(1, 100, 80) * 3 - 6, torch.tensor([100]), chunk.chunk)
    simulated, out_lens, _ = model.encode(features, lens, chunk)
    chunkwise, _ = run_chunks(model, features, chunk)
    assert difference(simulated[:, : int(out_lens)], chunkwise[:, : int(out_lens)]) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_tiny_has_between_one_and_three_million_parameters(encoder, causal):
    model = build_model(resolve(ModelConfig(encoder=encoder, preset="tiny", causal=causal, vocab_size=500)))
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_a_resolved_config_resolves_to_itself(encoder):
    resolved = resolve(ModelConfig(encoder=encoder))
    assert resolve(resolved) == resolved
