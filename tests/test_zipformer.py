"""The Zipformer against icefall's outputs, against itself chunk by chunk, and against leaks from the future."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from helpers import tiny_test_model
from kdstream.config import ModelConfig, UserError
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks, stack_states
from kdstream.models.transducer import build_model

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
CHUNKS = [ChunkConfig(8, 32), ChunkConfig(16, 64), ChunkConfig(32, 32)]


class Golden:
    """A golden model with its inputs and outputs."""

    def __init__(self, name: str) -> None:
        with safe_open(GOLDEN / f"zipformer_{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
        shape = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata["config"]).items()}
        del shape["output_downsampling_factor"]
        causal = name == "causal"
        config = ModelConfig(preset="small", causal=causal, decoder_dim=64, joiner_dim=64, vocab_size=30, **shape)
        self.chunk = ChunkConfig(int(metadata["chunk_size"]), int(metadata["left_context_frames"])) if causal else None
        self.model = build_model(resolve(config)).eval()
        prefix = "model."
        state = {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}
        self.model.load_state_dict(state, strict=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@pytest.fixture(scope="module", params=["causal", "noncausal"])
def golden(request) -> Golden:
    return Golden(request.param)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@torch.no_grad()
def test_encoder_predictor_and_joiner_equal_icefall(golden):
    out, lens, _ = golden.model.encode(golden["features"], golden["feature_lens"], golden.chunk)
    assert lens.tolist() == golden["encoder_out_lens"].tolist()
    for row, length in enumerate(lens):
        assert difference(out[row, :length], golden["encoder_out"][row, :length]) < TOLERANCE
    decoder_out = golden.model.decoder(golden["decoder_tokens"], need_pad=False)
    assert difference(decoder_out, golden["decoder_out"]) < TOLERANCE
    logits = golden.model.joiner(golden["encoder_out"][0, :3], decoder_out[:, 0])
    assert difference(logits, golden["joiner_logits"]) < TOLERANCE


@torch.no_grad()
def test_chunk_by_chunk_output_and_final_caches_equal_icefall():
    golden = Golden("causal")
    outputs, state = run_chunks(golden.model, golden["features"][:1], golden.chunk)
    assert difference(outputs, golden["chunkwise_encoder_out"]) < TOLERANCE
    ours = state.tensors()
    for i, tensor in enumerate(ours):
        assert difference(to_icefall(tensor, i, len(ours)), golden[f"final_states.{i:02}"]) < TOLERANCE


def to_icefall(tensor: torch.Tensor, index: int, count: int) -> torch.Tensor:
    """One of our batch-first caches in icefall's layout."""
    if index >= count - 2:  # front end, processed frames
        return tensor
    kind = index % 6
    if kind == 1:
        return tensor.unsqueeze(0)
    return tensor.transpose(1, 2) if kind >= 4 else tensor.transpose(0, 1)


def run_chunks(model, features, chunk):
    """Output (N, T', D) of all complete steps, and the last state."""
    state = model.init_state(features.size(0), chunk)
    lens = torch.full((features.size(0),), chunk.input_frames)
    outputs = []
    for start in range(0, features.size(1) - chunk.input_frames + 1, chunk.shift):
        out, _, state = model.encode(features[:, start : start + chunk.input_frames], lens, chunk, state)
        outputs.append(out)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("preset", ["small", "medium", "large"])
def test_every_parameter_name_and_shape_is_icefalls(preset, causal):
    keys = json.loads(gzip.decompress((GOLDEN / "zipformer_keys.json.gz").read_bytes()))
    expected = keys[f"{preset}-{'causal' if causal else 'noncausal'}"]
    model = build_model(resolve(ModelConfig(preset=preset, causal=causal, vocab_size=500)))
    encoder = {n: list(p.shape) for n, p in model.state_dict().items() if n.startswith("encoder")}
    assert encoder == expected["shapes"]
    count = sum(p.numel() for n, p in model.named_parameters() if n.startswith("encoder"))
    assert count == expected["parameters"]


@torch.no_grad()
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
@pytest.mark.parametrize("frames", [9, 57, 131, 200])
def test_chunk_by_chunk_equals_simulated_on_every_frame_the_tail_included(chunk, frames):
    model = tiny_test_model(causal=True)
    features = torch.randn(1, frames, 80) * 3 - 6
    padded, lens = pad_to_whole_chunks(features, torch.tensor([frames]), chunk.chunk)
    simulated, out_lens, _ = model.encode(padded, lens, chunk)
    chunkwise, _ = run_chunks(model, padded, chunk)
    assert int(out_lens) == -(-((frames - 7) // 2) // chunk.chunk) * chunk.chunk // 2
    assert difference(simulated[:, : int(out_lens)], chunkwise) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, 32)], ids=str)
def test_an_utterance_gives_the_same_frames_alone_and_in_a_batch(chunk):
    model = tiny_test_model(causal=chunk is not None)
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


@torch.no_grad()
def test_streams_of_different_ages_share_a_batch():
    model, chunk = tiny_test_model(causal=True), ChunkConfig(8, 32)
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
    assert state.processed.tolist() == [16, 8]


@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_no_gradient_reaches_a_frame_beyond_the_chunk_and_its_lookahead(chunk):
    model = tiny_test_model(causal=True)
    features = (torch.randn(1, 300, 80) * 3 - 6).requires_grad_()
    out, _, _ = model.encode(features, torch.tensor([300]), chunk)
    first_chunk = out[:, : chunk.chunk // 2]
    (gradient,) = torch.autograd.grad(first_chunk.square().sum(), features)
    reached = gradient.abs().sum(dim=(0, 2)) > 0
    assert reached[: chunk.input_frames].all()
    assert not reached[chunk.input_frames :].any()


def test_attention_does_not_reach_beyond_the_left_context():
    chunk = ChunkConfig(8, 8)
    model = tiny_test_model(causal=True, num_encoder_layers=(1, 1, 1), cnn_module_kernel=(3, 3, 3))
    features = (torch.randn(1, 600, 80) * 3 - 6).requires_grad_()
    out, lens, _ = model.encode(features, torch.tensor([600]), chunk)
    (gradient,) = torch.autograd.grad(out[:, int(lens) - 1].square().sum(), features)
    reached = (gradient.abs().sum(dim=(0, 2)) > 0).nonzero()
    # each of three layers attends three times in a row and convolves twice, and every one of these moves the
    # earliest frame by one chunk at most; the front end adds its own overlap
    assert 600 - int(reached[0]) <= chunk.shift * (1 + 3 * (3 + 2)) + (chunk.input_frames - chunk.shift)


@torch.no_grad()
def test_full_context_sees_the_future():
    model = tiny_test_model(causal=False)
    features = torch.randn(1, 300, 80) * 3 - 6
    changed = features.clone()
    changed[:, 280:] += 1
    out = [model.encode(x, torch.tensor([300]))[0][:, :4] for x in (features, changed)]
    assert difference(*out) > 1e-4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ChunkConfig(16, 24), "left context 24: not a multiple of chunk 16"),
        (lambda: ChunkConfig(0, 0), "chunk 0: must be positive"),
        (lambda: tiny_test_model(True).init_state(1, ChunkConfig(2, 4)), "chunk 2: not a multiple of 4"),
        (lambda: tiny_test_model(True).init_state(1, ChunkConfig(8, -1)), "unlimited left context"),
        (lambda: tiny_test_model(False).init_state(1, ChunkConfig(8, 32)), "--causal 0"),
        (lambda: tiny_test_model(False).encode(torch.zeros(1, 8, 80), torch.tensor([8])), "at least 9"),
        (lambda: resolve(ModelConfig(preset="huge")), "--preset huge: unknown"),
        (lambda: resolve(ModelConfig(encoder_dim=(64, 64))), "--encoder-dim: 2 values for 4 stacks"),
        (lambda: resolve(ModelConfig(cnn_module_kernel=(14,))), "--cnn-module-kernel: kernels must be odd"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")) as error:
        call()
    assert "\n" not in str(error.value)


def test_tiny_has_between_one_and_three_million_parameters():
    for causal in (False, True):
        model = build_model(resolve(ModelConfig(preset="tiny", causal=causal, vocab_size=500)))
        assert 1e6 < sum(p.numel() for p in model.parameters()) < 3e6
