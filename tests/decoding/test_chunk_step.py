"""A step of the encoder, traced, against the same step in Python."""

from __future__ import annotations

import pytest
import torch

from kdstream.decoding.chunk_step import chunk_step, traced_step
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from support.decoding import talkative_model
from support.models import CHEAP_FRONT_END, SETTINGS

CHUNKS = (ChunkConfig(8, 32), ChunkConfig(16, 64))


@pytest.fixture(scope="module", params=SETTINGS)
def model(request) -> Transducer:
    return talkative_model(causal=True, blank=1.0, encoder=request.param, **CHEAP_FRONT_END)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_a_traced_step_equals_one_in_python_for_any_number_of_streams(model, chunk):
    steps = [chunk_step(model, chunk, traced) for traced in (False, True)]
    generator = torch.Generator().manual_seed(0)
    for streams in (1, 3, 8):
        states = [model.init_state(streams, chunk)] * 2
        states[0].processed[0] = 1000  # a stream of another age
        for _ in range(3):
            features = torch.randn(streams, chunk.input_frames, 80, generator=generator) * 3 - 6
            with torch.no_grad():
                outs, states = zip(
                    *(step(features, state) for step, state in zip(steps, states, strict=True)), strict=False
                )
            for one, other in zip([outs[0], *states[0].tensors()], [outs[1], *states[1].tensors()], strict=True):
                assert (one - other).abs().max() <= 5e-6  # sums are taken in another order


@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_a_traced_step_computes_what_is_always_the_same_once(model, chunk):
    """No operation has constants alone for inputs, none calls Python, and no number is cast at every step."""
    constants = set()
    for node in traced_step(model, chunk).graph.nodes():
        if node.kind() == "prim::Constant":
            constants.update(output.debugName() for output in node.outputs())
            number = node.hasAttribute("value") and node.kindOf("value") == "t" and node.t("value").dim() == 0
            assert not number or node.t("value").dtype != torch.float64, node
        else:
            assert not constants.issuperset(value.debugName() for value in node.inputs()), node
            assert node.kind() != "prim::PythonOp", node


@torch.no_grad()
def test_the_front_end_keeps_its_channels_side_by_side(model):
    """Also where a stream begins, or its state was copied from a batch into another: its convolution is fast so."""
    chunk = CHUNKS[0]
    step, state = chunk_step(model, chunk, traced=False), model.init_state(2, chunk)
    for _ in range(2):
        state.embed = state.embed.clone(memory_format=torch.contiguous_format)
        _, state = step(torch.zeros(2, chunk.input_frames, 80), state)
        assert state.embed.stride(1) == 1
