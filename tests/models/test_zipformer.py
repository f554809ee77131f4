"""The Zipformer against icefall's outputs, names and shapes; what it shares with other encoders: test_encoders.py."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from kdstream.config.sections import ModelConfig
from kdstream.models.presets import resolve
from kdstream.models.transducer import build_model
from support.golden import GOLDEN, Golden
from support.models import difference, run_chunks

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["causal", "noncausal"])
def golden(request) -> Golden:
    return Golden(request.param)


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


@pytest.mark.slow
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
