"""The distillation losses against slow, obvious references in float64, and their treatment of padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdstream.kd import losses
from kdstream.kd.losses import DISTANCES, apc_loss, feature_loss, frame_weights, relation_loss

LENS = torch.tensor([7, 4, 5])
OUTPUT_FRAMES = torch.tensor([14, 9, 10])
FRAMES, WIDTH, SHIFT, HEADS = 7, 8, 2, 2


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def reference_distance(h: Tensor, z: Tensor, distance: str) -> float:
    """Two vectors."""
    h, z = h.tolist(), z.tolist()
    cos = sum(a * b for a, b in zip(h, z, strict=True)) / math.sqrt(sum(a * a for a in h) * sum(b * b for b in z))
    return {
        "l1_cosine": sum(abs(a - b) for a, b in zip(h, z, strict=True)) / len(h) - math.log(1 / (1 + math.exp(-cos))),
        "l2": sum((a - b) ** 2 for a, b in zip(h, z, strict=True)) / len(h),
        "cosine": 1 - cos,
    }[distance]


def reference_feature(h: Tensor, z: Tensor, distance: str, shift: int = 0) -> float:
    """Per utterance: the mean over the valid frames, times the output frames."""
    total = 0.0
    for n, length in enumerate(LENS.tolist()):
        frames = range(length - shift)
        mean = sum(reference_distance(h[n, t + shift], z[n, t], distance) for t in frames) / len(frames)
        total += mean * OUTPUT_FRAMES[n].item()
    return total


def reference_relation(y: Tensor, x: Tensor, heads: int) -> float:
    """KL(softmax(y y^T / sqrt(d)) || softmax(x x^T / sqrt(d))), row by row."""
    total = 0.0
    for n, length in enumerate(LENS.tolist()):
        rows = []
        for head_y, head_x in zip(y[n, :length].chunk(heads, dim=-1), x[n, :length].chunk(heads, dim=-1), strict=True):
            p = (head_y @ head_y.T / math.sqrt(head_y.size(-1))).softmax(dim=-1)
            q = (head_x @ head_x.T / math.sqrt(head_x.size(-1))).softmax(dim=-1)
            rows += [(p[t] * (p[t] / q[t]).log()).sum().item() for t in range(length)]
        total += sum(rows) / len(rows) * OUTPUT_FRAMES[n].item()
    return total


def weights() -> Tensor:
    return frame_weights(LENS, FRAMES, OUTPUT_FRAMES).double()


def qkv(seed: int, widths=(8, 8, 12)) -> list:
    return [normal(len(LENS), FRAMES, width, seed=seed + i).requires_grad_() for i, width in enumerate(widths)]


def relation(teacher: list, auxiliary: list) -> Tensor:
    return relation_loss(teacher, auxiliary, weights(), HEADS)


@pytest.mark.parametrize("distance", DISTANCES)
def test_feature_loss_equals_its_definition(distance):
    h, z = normal(3, FRAMES, WIDTH, seed=0), normal(3, FRAMES, WIDTH, seed=1)
    expected = reference_feature(h, z, distance)
    assert feature_loss(h, z, weights(), distance).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_apc_loss_equals_the_distance_to_the_frame_n_ahead(distance):
    h, r = normal(3, FRAMES, WIDTH, seed=0), normal(3, FRAMES, WIDTH, seed=1)
    expected = reference_feature(h, r, distance, SHIFT)
    assert apc_loss(h, r, LENS, OUTPUT_FRAMES, SHIFT, distance).item() == pytest.approx(expected, rel=1e-6)


def test_relation_loss_equals_its_definition_for_other_head_counts_and_widths():
    teacher, auxiliary = qkv(0), qkv(10, widths=(16, 16, 16))
    expected = sum(reference_relation(y, x, HEADS) for y, x in zip(teacher, auxiliary, strict=True))
    assert relation(teacher, auxiliary).item() == pytest.approx(expected, rel=1e-7)


def test_relation_loss_is_the_same_in_blocks_of_any_size(monkeypatch):
    results = []
    for elements in (1, 2 * HEADS * FRAMES**2, 2**20):
        monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", elements)
        auxiliary = qkv(10)
        loss = relation(qkv(0), auxiliary)
        loss.backward()
        results.append([loss.detach()] + [x.grad for x in auxiliary])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


def test_relation_loss_of_equal_relations_is_zero_and_at_its_minimum():
    teacher = qkv(0)
    auxiliary = [x.detach().clone().requires_grad_() for x in teacher]
    loss = relation(teacher, auxiliary)
    loss.backward()
    assert abs(loss.item()) <= 1e-12
    assert all(x.grad.abs().max() <= 1e-12 for x in auxiliary)


@pytest.mark.parametrize("distance", DISTANCES)
def test_feature_and_apc_gradients_equal_finite_differences(distance):
    h, z = normal(3, FRAMES, WIDTH, seed=0), normal(3, FRAMES, WIDTH, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: feature_loss(h, z, weights(), distance), (z,))
    assert torch.autograd.gradcheck(lambda z: apc_loss(h, z, LENS, OUTPUT_FRAMES, SHIFT, distance), (z,))


@pytest.mark.slow
def test_relation_gradients_equal_finite_differences():
    teacher = [x.detach() for x in qkv(0)]
    assert torch.autograd.gradcheck(lambda *auxiliary: relation(teacher, list(auxiliary)), qkv(10))


def losses_and_inputs():
    """Each loss as a function of (teacher tensors, student tensors), with both."""
    h, z = [normal(3, FRAMES, WIDTH, seed=0)], [normal(3, FRAMES, WIDTH, seed=1).requires_grad_()]
    return {
        "feature": (lambda a, b: feature_loss(a[0], b[0], weights(), "l1_cosine"), h, z),
        "apc": (lambda a, b: apc_loss(a[0], b[0], LENS, OUTPUT_FRAMES, SHIFT, "l1_cosine"), h, z),
        "relation": (relation, [x.detach() for x in qkv(0)], qkv(10)),
    }


@pytest.mark.parametrize("name", ["feature", "apc", "relation"])
def test_padding_changes_nothing_and_gets_no_gradient(name):
    loss, teacher, student = losses_and_inputs()[name]
    value = loss(teacher, student)
    padding = torch.arange(FRAMES) >= LENS.unsqueeze(1)
    noisy = [[x.detach() + 1e3 * padding.unsqueeze(2) for x in side] for side in (teacher, student)]
    for x in noisy[1]:
        x.requires_grad_()
    noisy_value = loss(*noisy)
    noisy_value.backward()
    assert noisy_value.item() == value.item()
    for x in noisy[1]:
        assert x.grad[padding].abs().max() == 0
        assert x.grad[~padding].abs().max() > 0


def test_a_batch_costs_the_sum_of_its_utterances():
    for name, (loss, teacher, student) in losses_and_inputs().items():
        alone = 0.0
        for n, length in enumerate(LENS.tolist()):
            one = [[x[n : n + 1, :length] for x in side] for side in (teacher, student)]
            lens, frames = LENS[n : n + 1], OUTPUT_FRAMES[n : n + 1]
            if name == "relation":
                alone += relation_loss(*one, frame_weights(lens, length, frames).double(), HEADS).item()
            elif name == "feature":
                alone += feature_loss(one[0][0], one[1][0], frame_weights(lens, length, frames), "l1_cosine").item()
            else:
                alone += apc_loss(one[0][0], one[1][0], lens, frames, SHIFT, "l1_cosine").item()
        assert loss(teacher, student).item() == pytest.approx(alone, rel=1e-7), name


def test_a_tap_weighs_the_same_at_twice_the_frame_rate():
    h, z = normal(3, FRAMES, WIDTH, seed=0), normal(3, FRAMES, WIDTH, seed=1)
    twice = [x.repeat_interleave(2, dim=1) for x in (h, z)]
    fast = frame_weights(2 * LENS, 2 * FRAMES, OUTPUT_FRAMES).double()
    assert feature_loss(*twice, fast, "l1_cosine").item() == pytest.approx(
        feature_loss(h, z, weights(), "l1_cosine").item(), rel=1e-7
    )


def test_apc_loss_of_utterances_no_longer_than_the_shift_is_zero():
    h, r = normal(2, 4, WIDTH, seed=0), normal(2, 4, WIDTH, seed=1).requires_grad_()
    loss = apc_loss(h, r, torch.tensor([4, 2]), torch.tensor([8, 4]), 4, "l1_cosine")
    loss.backward()
    assert loss.item() == 0 and r.grad.abs().max() == 0


def test_half_precision_inputs_under_autocast_are_compared_in_float32():
    h, z = (normal(3, FRAMES, WIDTH, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [
            feature_loss(h, z, weights(), "l1_cosine"),
            apc_loss(h, z, LENS, OUTPUT_FRAMES, SHIFT, "l1_cosine"),
            relation_loss([h], [z], weights(), HEADS),
        ]
    exact = [
        feature_loss(h.double(), z.double(), weights(), "l1_cosine"),
        apc_loss(h.double(), z.double(), LENS, OUTPUT_FRAMES, SHIFT, "l1_cosine"),
        relation_loss([h.double()], [z.double()], weights(), HEADS),
    ]
    for a, b in zip(found, exact, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
