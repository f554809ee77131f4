"""A step of the encoder, traced and in onnxruntime, against the same step in Python."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from kdstream.decoding import chunk_step as chunk_steps
from kdstream.decoding.chunk_step import PatientStep, Step, choose_engine, chunk_step, traced_step
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig, EncoderState
from kdstream.models.transducer import Transducer
from support.decoding import talkative_model
from support.models import CHEAP_FRONT_END, SETTINGS

CHUNKS = (ChunkConfig(8, 32), ChunkConfig(16, 64), ChunkConfig(8, 32, 8))


@pytest.fixture(scope="module", params=SETTINGS)
def model(request) -> Transducer:
    return talkative_model(causal=True, blank=1.0, encoder=request.param, **CHEAP_FRONT_END)


@torch.no_grad()
def assert_equal_steps(model: Transducer, chunk: ChunkConfig, steps: tuple[Step, Step], streams: int) -> None:
    """Three chunks of streams, one of which is old."""
    generator = torch.Generator().manual_seed(0)
    states: list[EncoderState] = [model.init_state(streams, chunk) for _ in steps]
    for state in states:
        state.processed[0] = 1000
    for _ in range(3):
        features = torch.randn(streams, chunk.input_frames, 80, generator=generator) * 3 - 6
        outs: list[Tensor] = []
        for i, step in enumerate(steps):
            out, states[i] = step(features, states[i])
            outs.append(out)
        ours, theirs = ([out, *state.tensors()] for out, state in zip(outs, states, strict=True))
        for one, other in zip(ours, theirs, strict=True):
            largest = max(1.0, float(other.abs().max()))
            assert (one - other).abs().max() <= 5e-6 * largest  # sums are taken in another order


@pytest.mark.parametrize("engine", ["", "torch", "onnxruntime"])
def test_a_chunk_that_does_not_fit_is_refused_before_the_first_step(model, engine):
    for chunk, problem in (
        (ChunkConfig(3, 6), "chunk 3: not a multiple of"),
        (ChunkConfig(8, 32, 3), "right context 3: not a multiple of"),
        (ChunkConfig(8, -1), "unlimited left context needs an endless cache"),
    ):
        with pytest.raises(UserError, match=problem):
            chunk_step(model, chunk, engine)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_a_traced_step_equals_one_in_python_for_any_number_of_streams(model, chunk):
    steps = chunk_step(model, chunk), chunk_step(model, chunk, "torch")
    for streams in (1, 3, 8):
        assert_equal_steps(model, chunk, steps, streams)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", CHUNKS, ids=str)
def test_a_step_in_onnxruntime_equals_one_in_python(model, chunk):
    """Of one stream after another."""
    steps = chunk_step(model, chunk), chunk_step(model, chunk, "onnxruntime")
    for _ in range(2):
        assert_equal_steps(model, chunk, steps, streams=1)


@pytest.mark.slow
@torch.no_grad()
def test_streams_in_turn_do_not_disturb_each_other_in_onnxruntime(model):
    chunk = CHUNKS[0]
    python, step = chunk_step(model, chunk), chunk_step(model, chunk, "onnxruntime")
    generator = torch.Generator().manual_seed(0)
    expected = [model.init_state(1, chunk) for _ in range(2)]
    states = list(expected)
    for n in (0, 1, 0, 0, 1, 1, 0):
        features = torch.randn(1, chunk.input_frames, 80, generator=generator) * 3 - 6
        out, states[n] = step(features, states[n])
        wanted, expected[n] = python(features, expected[n])
        assert (out - wanted).abs().max() <= 1e-5


def test_an_engine_is_chosen_by_the_number_of_streams_and_by_what_is_installed(model, monkeypatch):
    assert choose_engine("auto", model, streams=1) == "onnxruntime"
    assert choose_engine("auto", model, streams=2) == "torch"
    assert choose_engine("torch", model, streams=1) == "torch"
    with pytest.raises(UserError, match="--engine onnxruntime: .*--num-decode-streams 1"):
        choose_engine("onnxruntime", model, streams=2)
    monkeypatch.setattr(chunk_steps, "find_spec", lambda package: None)
    assert choose_engine("auto", model, streams=1) == "torch"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_an_engine_that_is_not_installed_is_named(model, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--engine onnxruntime: needs {package}.*kdstream\[export\]"):
        chunk_step(model, CHUNKS[0], "onnxruntime")


def test_a_patient_step_builds_its_engine_once_when_that_has_paid(model):
    built: list[int] = []

    def step(name: int) -> Step:
        return lambda features, state: (torch.tensor(name), state)

    patient = PatientStep(step(0), lambda: built.append(1) or step(1), patience=5)
    state = model.init_state(2, CHUNKS[0])
    names = [int(patient(torch.zeros(2, 1, 1), state)[0]) for _ in range(5)]  # 2 chunks each
    assert names == [0, 0, 0, 1, 1]
    patient.hurry()
    assert built == [1]


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
    step, state = chunk_step(model, chunk), model.init_state(2, chunk)
    for _ in range(2):
        state.embed = state.embed.clone(memory_format=torch.contiguous_format)
        _, state = step(torch.zeros(2, chunk.input_frames, 80), state)
        assert state.embed.stride(1) == 1
