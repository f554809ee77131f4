"""A training step that computes its layers twice is the same step, with less memory."""

import random

import pytest
import torch

from kdstream.models.checkpointing import checkpoint_layers
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.scaling import set_batch_count
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Tokens
from support.models import tiny_test_model


def step(model, dtype):
    """The loss, the gradients, and the next numbers that Python draws, before and after the backward pass."""
    random.seed(3)
    torch.manual_seed(3)
    features = torch.randn(2, 150, 80, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([3, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = model(features, torch.tensor([150, 140]), tokens, ChunkConfig(8, 32), LossSettings())
    loss = torch.stack(list(losses.values())).sum()
    drawn = random.random()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), grads, (drawn, random.random())


def bytes_kept(encoder, x):
    """By the encoder for its backward pass; of each memory once."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        encoder(x, torch.full((len(x),), x.size(1)), ChunkConfig(8, 32))
    parameters = {p.data_ptr() for p in encoder.parameters()}
    return sum(size for pointer, (size, _) in kept.items() if pointer not in parameters)


@pytest.fixture(params=["zipformer", "conformer"])
def model(request):
    torch.manual_seed(0)
    model = tiny_test_model(causal=True, encoder=request.param).train()
    set_batch_count(model, 2000.0)  # layers are skipped, frames dropped, gradients shaped
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_step_is_the_same(model, dtype):
    expected = step(model, dtype)
    checkpoint_layers(model, True)
    loss, grads, drawn = step(model, dtype)
    assert torch.equal(loss, expected[0]) and drawn == expected[2]
    assert grads.keys() == expected[1].keys()
    assert all(torch.equal(grads[name], grad) for name, grad in expected[1].items())


def test_it_keeps_less_than_a_quarter(model):
    x = torch.randn(2, 100, model.encoder.input_dim(model.config), requires_grad=True)
    plain = bytes_kept(model.encoder, x)
    checkpoint_layers(model, True)
    assert bytes_kept(model.encoder, x) < 0.25 * plain


def test_gradients_in_bfloat16_point_where_those_in_float32_do(model):
    exact, rounded = (step(model, dtype)[1] for dtype in (torch.float32, torch.bfloat16))
    vectors = [torch.cat([grads[name].flatten() for name in exact]) for grads in (exact, rounded)]
    assert torch.cosine_similarity(*vectors, dim=0) >= 0.999
