"""What relative positions add to the scores: each query's product with the encoding of each key's offset."""

import pytest
import torch

from kdstream.models.positions import QUERIES_TOGETHER, add_position_scores, by_key, relative_positions


def inputs(batch, heads, queries, keys, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (batch, heads, queries, keys), (batch, heads, queries, 3), (heads, 3, queries + keys - 1)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_definition(scores, queries, encoded):
    count, keys = scores.shape[2:]
    offsets = torch.arange(keys) - torch.arange(count).unsqueeze(1) + count - 1  # (T, K), the first is 1 - T
    return scores + torch.einsum("nhtd,hdtk->nhtk", queries, encoded[:, :, offsets])


@pytest.mark.parametrize("queries", [1, 7, 2 * QUERIES_TOGETHER, 2 * QUERIES_TOGETHER + 1, 5 * QUERIES_TOGETHER - 1])
@pytest.mark.parametrize("left", [0, 40])
def test_scores_and_gradients_are_those_of_the_definition(queries, left):
    tensors = inputs(3, 2, queries, left + queries)
    expected = by_definition(*tensors)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, tensors, grad)
    out = add_position_scores(tensors[0] * 1, *tensors[1:])
    for value, right in zip((out, *torch.autograd.grad(out, tensors, grad)), (expected, *wanted), strict=True):
        assert torch.allclose(value, right, rtol=0, atol=1e-12)


def test_many_queries_are_added_in_blocks_and_in_place():
    scores, queries, encoded = inputs(2, 2, 2 * QUERIES_TOGETHER, 2 * QUERIES_TOGETHER)
    scores = scores * 1
    out = add_position_scores(scores, queries, encoded)
    assert type(out.grad_fn).__name__ == "_AddInBlocksBackward" and out.data_ptr() == scores.data_ptr()


def test_bfloat16_differs_by_its_rounding():
    tensors = inputs(2, 2, 100, 100, torch.bfloat16)
    plain = tensors[0] + by_key(tensors[1] @ tensors[2], 100)
    out = add_position_scores(tensors[0] * 1, *tensors[1:])
    assert out.dtype == torch.bfloat16 and torch.equal(out, plain)


def test_encodings_of_a_step_are_those_of_the_whole_utterance():
    """The middle of a longer table is the shorter one, so a layer may cut what it needs out of one table."""
    whole, step = (relative_positions(size, size, 8, torch.device("cpu")) for size in (50, 20))
    assert torch.equal(whole[30:69], step)
