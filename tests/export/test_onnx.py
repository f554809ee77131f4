"""Exported files against the model they came from, and against what sherpa-onnx asks of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession
from torch import Tensor

from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.export.onnx import FRONTEND_CHANNELS, OnnxFiles, export_ctc, export_onnx, quantize
from kdstream.models.encoders import ENCODERS
from kdstream.models.onnx_step import ConformerStep, EncoderStep
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig, EncoderState
from kdstream.models.transducer import Transducer, build_model
from support.decoding import talkative_model
from support.models import tiny_test_model

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    encoder: str
    chunk: ChunkConfig
    settings: dict[str, Any]


THREE_STACKS: dict[str, Any] = dict(num_encoder_layers=(1, 1, 1))
CASES = (
    Case("zipformer", ChunkConfig(8, 32), THREE_STACKS),
    Case("zipformer", ChunkConfig(4, 4), THREE_STACKS),  # the slowest stack sees one frame at a time
    Case("zipformer", ChunkConfig(8, 32, 8), THREE_STACKS),
    Case("conformer", ChunkConfig(8, 32), {}),
    Case("conformer", ChunkConfig(8, 32, 16), {}),
    Case("conformer", ChunkConfig(16, 32), {}),
    Case("conformer", ChunkConfig(32, 96), {}),
    Case("conformer", ChunkConfig(2, 6), dict(query_head_dim=(10,))),  # keys and values wider than the model
)
STEPS = 20
TOLERANCE = 1e-4


def case_id(case: Case) -> str:
    return f"{case.encoder}-{case.chunk.chunk}-{case.chunk.left}-{case.chunk.right}"


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def model(case) -> Transducer:
    return talkative_model(causal=True, encoder=case.encoder, **case.settings)


@pytest.fixture(scope="module")
def chunk(case) -> ChunkConfig:
    return case.chunk


@pytest.fixture(scope="module")
def encoder(case, model) -> EncoderStep:
    return ENCODERS[case.encoder].step(model, case.chunk)


@pytest.fixture(scope="module")
def files(model, chunk, tmp_path_factory) -> OnnxFiles:
    return export_onnx(model, chunk, tmp_path_factory.mktemp("onnx"), "random")


@pytest.fixture(scope="module")
def small(files) -> OnnxFiles:
    return quantize(files)


@pytest.fixture(scope="module")
def session(files) -> InferenceSession:
    return load(files.encoder)


def load(path: Path) -> InferenceSession:
    return InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session: InferenceSession, *inputs: Tensor) -> list[np.ndarray]:
    """Outputs for inputs that are given by position, as sherpa-onnx gives them."""
    return session.run(
        None, {item.name: value.numpy() for item, value in zip(session.get_inputs(), inputs, strict=True)}
    )


def metadata(path: Path) -> dict[str, str]:
    return {item.key: item.value for item in onnx.load(str(path)).metadata_props}


def windows(num_streams: int, chunk: ChunkConfig, steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = chunk.shift * (steps - 1) + chunk.input_frames
    features = torch.randn(num_streams, frames, 80, generator=generator) * 3 - 6
    return [features[:, n * chunk.shift : n * chunk.shift + chunk.input_frames] for n in range(steps)]


@torch.no_grad()
def torch_step(model: Transducer, chunk: ChunkConfig, x: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
    out, _, state = model.encode(x, torch.full((x.size(0),), chunk.input_frames), chunk, state)
    return model.joiner.encoder_proj(out), state


def difference(a: Tensor, b: np.ndarray) -> float:
    assert tuple(a.shape) == b.shape
    return float((a - torch.from_numpy(b)).abs().max())


def next_caches(taken: list[Tensor], returned: list[np.ndarray], chunk: ChunkConfig) -> list[Tensor]:
    """What sherpa-onnx gives the next step: what it got, and where that is not all, feature frames that it counts."""
    return [*map(torch.from_numpy, returned), *(taken[len(returned) :] and [taken[-1] + chunk.shift])]


def test_every_output_and_cache_equals_torch_chunk_by_chunk(model, chunk, encoder, session):
    state = model.init_state(2, chunk)
    caches = encoder.fresh_caches(2)
    assert all(not cache.any() for cache in caches)  # as sherpa-onnx makes them
    for x in windows(2, chunk, STEPS):
        expected, state = torch_step(model, chunk, x, state)
        ours, *new = run(session, x, *caches)
        assert difference(expected, ours) <= TOLERANCE
        assert all(difference(a, b) <= TOLERANCE for a, b in zip(encoder.to_onnx(state), new, strict=True))
        caches = next_caches(caches, new, chunk)
    assert state.processed.tolist() == [STEPS * chunk.chunk] * 2


def test_streams_of_different_ages_share_a_batch(model, chunk, encoder, session):
    old, new = windows(1, chunk, 6, seed=1), windows(1, chunk, 3, seed=2)
    old_state, new_state = model.init_state(1, chunk), model.init_state(1, chunk)
    old_caches = encoder.fresh_caches(1)
    for x in old[:3]:
        _, old_state = torch_step(model, chunk, x, old_state)
        old_caches = next_caches(old_caches, run(session, x, *old_caches)[1:], chunk)
    pairs = zip(old_caches, encoder.fresh_caches(1), encoder.caches().values(), strict=True)
    caches = [torch.cat([one, other], dim=dim) for one, other, dim in pairs]
    for a, b in zip(old[3:], new, strict=True):
        expected_old, old_state = torch_step(model, chunk, a, old_state)
        expected_new, new_state = torch_step(model, chunk, b, new_state)
        ours, *returned = run(session, torch.cat([a, b]), *caches)
        assert difference(torch.cat([expected_old, expected_new]), ours) <= TOLERANCE
        caches = next_caches(caches, returned, chunk)


@torch.no_grad()
def test_predictor_and_joiner_equal_torch(model, files):
    contexts = torch.tensor([[-1, 0], [0, 0], [0, 5], [7, 3], [29, 29]])
    for some in (contexts, contexts[:1]):
        expected = model.joiner.decoder_proj(model.decoder(some, need_pad=False))[:, 0]
        (predicted,) = run(load(files.decoder), some)
        assert difference(expected, predicted) <= TOLERANCE
        encoded = torch.randn_like(expected)
        (logits,) = run(load(files.joiner), encoded, torch.from_numpy(predicted))
        assert difference(model.joiner(encoded, expected, project_input=False), logits) <= TOLERANCE


def test_files_are_named_as_in_icefall(files, chunk):
    ahead = {0: "", 8: "-right-8", 16: "-right-16"}[chunk.right]
    suffix = f"random-chunk-{chunk.chunk}-left-{chunk.left}{ahead}.onnx"
    assert [path.name for path in files] == [f"encoder-{suffix}", f"decoder-{suffix}", f"joiner-{suffix}"]


def metadata_of(case: Case) -> dict[str, str]:
    """What sherpa-onnx reads of this architecture."""
    left = case.chunk.left
    if case.encoder == "conformer":
        return {
            "model_type": "conformer",
            # 3, and what the front end's 128 * 3 * 19 numbers and the count take
            "num_encoder_layers": {32: "9", 96: "6", 6: "13"}[left],
            "left_context": str(left // 2),
            "encoder_dim": "48",
            "cnn_module_kernel": "15",
            "pad_length": str(2 * case.chunk.right + 13),
        }
    return {
        "model_type": "zipformer2",
        "encoder_dims": "32,48,32",
        "query_head_dims": "8,8,8",
        "value_head_dims": "6,6,6",
        "num_heads": "4,4,4",
        "num_encoder_layers": "1,1,1",
        "cnn_module_kernels": "31,15,15",
        "left_context_len": {32: "32,16,8", 4: "4,2,1"}[left],
    }


def caches_of(case: Case) -> list[tuple[str, list[Any]]]:
    """Names and shapes of what sherpa-onnx puts in after the features."""
    if case.encoder == "conformer":
        told = metadata_of(case)
        layers, left, dim = (int(told[name]) for name in ("num_encoder_layers", "left_context", "encoder_dim"))
        return [("attn", [layers, left, "N", dim]), ("conv", [layers, 14, "N", dim]), ("processed_lens", ["N"])]
    shapes = []
    for i, (dim, factor, kernel) in enumerate([(32, 1, 31), (48, 2, 15), (32, 4, 15)]):
        left = case.chunk.left // factor
        shapes += [
            (f"cached_key_{i}", [left, "N", 4 * 8]),
            (f"cached_nonlin_attn_{i}", [1, "N", left, 3 * dim // 4]),
            (f"cached_val1_{i}", [left, "N", 4 * 6]),
            (f"cached_val2_{i}", [left, "N", 4 * 6]),
            (f"cached_conv1_{i}", ["N", dim, kernel // 2]),
            (f"cached_conv2_{i}", ["N", dim, kernel // 2]),
        ]
    return [*shapes, ("embed_states", ["N", 128, 3, 19]), ("processed_lens", ["N"])]


def test_metadata_tell_sherpa_onnx_everything(files, case):
    assert metadata(files.encoder) == {
        "version": "1",
        "model_author": "kdstream",
        "T": str(2 * (case.chunk.chunk + case.chunk.right) + 13),
        "decode_chunk_len": str(2 * case.chunk.chunk),
        **metadata_of(case),
    }
    assert metadata(files.decoder) == {"context_size": "2", "vocab_size": "30"}
    assert metadata(files.joiner) == {"joiner_dim": "64"}


def test_inputs_and_outputs_have_the_order_and_shapes_that_sherpa_onnx_counts_on(session, case):
    caches = caches_of(case)
    expected = [("x", ["N", 2 * (case.chunk.chunk + case.chunk.right) + 13, 80]), *caches]
    assert [(item.name, item.shape) for item in session.get_inputs()] == expected
    kept = caches[:2] if case.encoder == "conformer" else caches
    outputs = [item.name for item in session.get_outputs()]
    assert outputs == ["encoder_out", *(f"new_{name}" for name, _ in kept)]


def test_a_ctc_head_gives_its_log_probabilities_with_unknown_as_blank(tmp_path):
    model, chunk = talkative_model(causal=True, use_ctc=True, **THREE_STACKS), ChunkConfig(8, 32)
    model.unk_id = 2
    path = export_ctc(model, chunk, tmp_path, "random")
    assert path is not None and path.name == "ctc-random-chunk-8-left-32.onnx"
    encoder = export_onnx(model, chunk, tmp_path, "random").encoder
    assert metadata(path) == metadata(encoder)  # what sherpa-onnx asks of one it asks of the other
    session, step = load(path), ENCODERS["zipformer"].step(model, chunk)
    assert session.get_outputs()[0].name == "log_probs"
    caches, state = step.fresh_caches(1), model.init_state(1, chunk)
    for x in windows(1, chunk, 4):
        log_probs, *returned = run(session, x, *caches)
        out, _, state = model.encode(x, torch.tensor([chunk.input_frames]), chunk, state)
        expected = model.ctc_output(out).softmax(dim=2)
        expected[..., 0] += expected[..., 2]
        expected[..., 2] = 0.0
        assert difference(expected.detach(), np.exp(log_probs)) < 1e-5
        caches = next_caches(caches, returned, chunk)


@pytest.mark.parametrize("settings", [dict(), dict(encoder="conformer", use_ctc=True)], ids=["no head", "conformer"])
def test_where_sherpa_onnx_would_run_no_ctc_head_none_is_written(tmp_path, settings):
    assert export_ctc(talkative_model(causal=True, **settings), ChunkConfig(8, 32), tmp_path, "random") is None
    assert not list(tmp_path.iterdir())


def test_swoosh_is_written_in_operators_that_onnxruntime_runs_fast(files):
    operators = {node.op_type for node in onnx.load(files.encoder).graph.node}
    assert "Softplus" not in operators  # it takes four times as long as what it stands for
    assert {"Exp", "Log", "Max"} <= operators


def test_int8_files_are_smaller_and_say_nearly_the_same(chunk, encoder, files, small):
    assert [path.name for path in small] == [path.name.replace(".onnx", ".int8.onnx") for path in files]
    assert all(metadata(a).items() <= metadata(b).items() for a, b in zip(files, small, strict=True))
    assert all(b.stat().st_size < a.stat().st_size for a, b in zip(files, small, strict=True))
    (x,) = windows(1, chunk, 1)
    caches = encoder.fresh_caches(1)
    exact, rounded = (run(load(path), x, *caches)[0] for path in (files.encoder, small.encoder))
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 0 < error < 0.3  # random weights round badly; nothing in common would be 1.4


def test_int8_weights_have_7_bits_so_that_sums_of_two_products_stay_within_16(small):
    for path in small:
        weights = [numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer if w.name.endswith("_quantized")]
        assert weights
        assert all(np.abs(w.astype(int)).max() <= 64 for w in weights)


@pytest.mark.parametrize("left", [8, 32, 64, 128])
def test_of_the_presets_the_front_end_takes_as_few_layers_of_a_conformer_as_can_be(left):
    small = dict(num_encoder_layers=(1,), feedforward_dim=(8,), frontend_hidden_dim=8)  # which takes no time to make
    for preset in ENCODERS["conformer"].presets:
        config = resolve(ModelConfig(encoder="conformer", preset=preset, causal=True, vocab_size=30, **small))
        told = ConformerStep(build_model(config), ChunkConfig(8, left)).metadata()
        (dim,), (kernel,) = config.encoder_dim, config.cnn_module_kernel
        of_a_layer = (left // 2 + kernel - 1) * dim
        added = told["num_encoder_layers"] - 1
        assert (added - 1) * of_a_layer < FRONTEND_CHANNELS * 3 * 19 + 1 <= added * of_a_layer


@pytest.mark.parametrize(
    "causal, changed, chunk, message",
    [
        (False, {}, ChunkConfig(8, 32), "--causal 0"),
        (True, {}, ChunkConfig(8, -1), "unlimited left context"),
        (True, {}, ChunkConfig(6, 12), "chunk 6: not a multiple of 4"),
        (True, {"frontend_channels": (4, 8, 32)}, ChunkConfig(8, 32), "--frontend-channels 4,8,32: .*128"),
        (False, {"encoder": "conformer"}, ChunkConfig(8, 32), "--causal 0"),
        (True, {"encoder": "conformer"}, ChunkConfig(8, -1), "unlimited left context"),
        (True, {"encoder": "conformer"}, ChunkConfig(3, 6), "chunk 3: not a multiple of 2"),
    ],
)
def test_what_sherpa_onnx_cannot_run_is_refused_and_not_written(tmp_path, causal, changed, chunk, message):
    with pytest.raises(UserError, match=message):
        export_onnx(tiny_test_model(causal, **changed), chunk, tmp_path, "random")
    assert not list(tmp_path.glob("*.onnx"))
