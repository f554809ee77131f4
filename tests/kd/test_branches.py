"""Auxiliary branches: what z and r may depend on, and the arithmetic of the auxiliary layer."""

from __future__ import annotations

import math

import pytest
import torch

from kdstream.errors import UserError
from kdstream.kd.branches import MAX_DISTANCE, AuxiliaryBranch, AuxiliaryLayer, DirectBranch, FuturePredictor
from kdstream.kd.taps import Tap

STUDENT_DIM, TEACHER_DIM, HEADS = 6, 8, 2
LENS = torch.tensor([9, 5])


def build_branch(heads: int = HEADS, apc_dim: int = 5) -> AuxiliaryBranch:
    torch.manual_seed(0)
    layer = AuxiliaryLayer(TEACHER_DIM, heads, feedforward_dim=12) if heads else None
    predictor = FuturePredictor(TEACHER_DIM, apc_dim) if apc_dim else None
    return AuxiliaryBranch(STUDENT_DIM, TEACHER_DIM, layer, predictor).double()


def tap_of(s: torch.Tensor, lens: torch.Tensor = LENS) -> Tap:
    return Tap(features=s, query=2 * s, key=3 * s, value=4 * s, lens=lens, stride=2)


def tensors_of(out) -> dict:
    return {name: getattr(out, name) for name in ("z", "query", "key", "value", "r")}


def streaming_features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 9, STUDENT_DIM, generator=generator, dtype=torch.float64).requires_grad_()


def gradient_by_frame(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(T,): the largest |d y.sum() / d x_t| in utterance 0."""
    return torch.autograd.grad(y.sum(), x, retain_graph=True)[0][0].abs().amax(dim=-1)


def test_auxiliary_layer_equals_attention_written_with_loops():
    torch.manual_seed(0)
    frames = MAX_DISTANCE + 4  # so that some pairs lie beyond the last distance with a bias of its own
    layer = AuxiliaryLayer(4, 2, 6).double()
    p = torch.randn(1, frames, 4, dtype=torch.float64)
    z, query, key, value = layer(p, torch.tensor([frames]))
    attended = torch.zeros(frames, 4, dtype=torch.float64)
    for head in range(2):
        channels = slice(2 * head, 2 * head + 2)
        for i in range(frames):
            scores = torch.stack(
                [
                    (query[0, i, channels] * key[0, j, channels]).sum() / math.sqrt(2)
                    + layer.distance_bias[head, max(-MAX_DISTANCE, min(MAX_DISTANCE, j - i)) + MAX_DISTANCE]
                    for j in range(frames)
                ]
            )
            attended[i, channels] = scores.softmax(dim=0) @ value[0, :, channels]
    x = p[0] + layer.out_proj(attended)
    torch.testing.assert_close(z[0], x + layer.feedforward(x), rtol=1e-10, atol=1e-10)


def test_z_hears_the_whole_utterance_and_r_hears_no_later_frame():
    s = streaming_features()
    out = build_branch()(tap_of(s))
    for t in range(9):
        assert gradient_by_frame(out.z[0, t], s).min() > 0
        heard = gradient_by_frame(out.r[0, t], s)
        assert heard[: t + 1].min() > 0
        assert t == 8 or heard[t + 1 :].max() == 0


def test_padding_changes_no_valid_frame_and_gets_no_gradient():
    branch, s = build_branch(), streaming_features()
    padded = tensors_of(branch(tap_of(s)))
    alone = tensors_of(branch(tap_of(s[1:, : LENS[1]], LENS[1:])))
    valid = slice(None, int(LENS[1]))
    for name, tensor in padded.items():
        torch.testing.assert_close(tensor[1, valid], alone[name][0], rtol=0, atol=1e-12, msg=name)
    total = sum(x[1, valid].square().sum() for x in padded.values())
    gradient = torch.autograd.grad(total, s)[0]
    assert gradient[1, LENS[1] :].abs().max() == 0 and gradient[1, valid].abs().min() > 0


@pytest.mark.parametrize("heads, apc_dim", [(0, 5), (HEADS, 0)])
def test_parts_left_out_have_neither_output_nor_parameters(heads, apc_dim):
    branch = build_branch(heads, apc_dim)
    out = branch(tap_of(streaming_features()))
    assert (out.z is None) == (heads == 0) and (out.r is None) == (apc_dim == 0)
    names = {name.split(".")[0] for name, _ in branch.named_parameters()}
    assert names == {"projection"} | ({"layer"} if heads else set()) | ({"predictor"} if apc_dim else set())


def test_every_parameter_gets_a_gradient():
    branch = build_branch()
    sum(x.square().sum() for x in tensors_of(branch(tap_of(streaming_features()))).values()).backward()
    assert all(p.grad.abs().max() > 0 for p in branch.parameters())


def test_bfloat16_autocast_stays_near_float32():
    branch, s = build_branch().float(), streaming_features().detach().float()
    exact = tensors_of(branch(tap_of(s)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tensors_of(branch(tap_of(s)))
    for name, tensor in exact.items():
        assert (rough[name].float() - tensor).norm() <= 0.03 * tensor.norm(), name
    assert rough["z"].dtype == torch.float32  # the residual path is not rounded


def test_the_lstm_runs_in_float32_under_autocast():
    branch, seen = build_branch().float(), []
    branch.predictor.lstm.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output[0]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        branch(tap_of(streaming_features().detach().float()))
    assert [x.dtype for x in seen] == [torch.float32, torch.float32]


def test_without_a_branch_the_students_own_tensors_are_compared():
    s = streaming_features()
    out = DirectBranch(STUDENT_DIM, STUDENT_DIM, None)(tap_of(s))
    assert out.r is None
    for name, tensor in (("z", s), ("query", 2 * s), ("key", 3 * s), ("value", 4 * s)):
        assert torch.equal(getattr(out, name), tensor), name
    assert list(DirectBranch(STUDENT_DIM, STUDENT_DIM, None).parameters()) == []
    assert DirectBranch(STUDENT_DIM, TEACHER_DIM, None).double()(tap_of(s)).z.shape == (2, 9, TEACHER_DIM)


def test_heads_that_do_not_divide_the_width_are_a_clear_error():
    with pytest.raises(UserError, match="--kd-branch-heads 3: does not divide the teacher's layer width 8"):
        build_branch(heads=3)
