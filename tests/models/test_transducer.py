"""The transducer around the encoder: predictor, joiner and losses."""

from __future__ import annotations

import pytest
import torch

from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Tokens
from support.models import SETTINGS, random_batch, tiny_test_model


@torch.no_grad()
@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_predictor_gives_the_same_for_a_sequence_and_for_its_last_symbols(context_size):
    model = tiny_test_model(causal=False, context_size=context_size)
    tokens = torch.randint(0, 30, (2, 7))
    whole = model.decoder(tokens)
    last = model.decoder(tokens[:, -context_size:], need_pad=False)
    assert torch.allclose(whole[:, -1:], last, atol=1e-6, rtol=0)  # a matrix product against a convolution


@torch.no_grad()
def test_before_the_first_symbol_the_predictor_sees_nothing():
    model = tiny_test_model(causal=False)
    first = model.decoder(torch.tensor([[5]]))
    assert torch.allclose(first, model.decoder(torch.tensor([[-1, 5]]), need_pad=False), atol=1e-6)


@pytest.mark.parametrize("encoder", SETTINGS)
@pytest.mark.parametrize("chunk", [None, ChunkConfig(8, 32)], ids=str)
def test_losses_are_sums_over_utterances_and_reach_every_parameter(chunk, encoder):
    model = tiny_test_model(causal=chunk is not None, encoder=encoder, use_ctc=True)
    features, lens, tokens = random_batch(lens=(120, 120))
    settings = LossSettings(prune_range=30)
    together = model(features, lens, tokens, chunk, settings)
    rows = [slice(i, i + 1) for i in range(2)]
    alone = [model(features[n], lens[n], Tokens(tokens.ids[n], tokens.lens[n]), chunk, settings) for n in rows]
    assert set(together) == {"simple_loss", "pruned_loss", "ctc_loss"}
    for name, loss in together.items():
        assert loss.item() == pytest.approx(sum(a[name].item() for a in alone), rel=1e-4)
    sum(together.values()).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {name.rsplit(".", 1)[1] for name in idle} <= {"bypass_scale"}  # the one that only checkpoints know


@pytest.mark.parametrize("encoder", SETTINGS)
def test_nothing_random_is_left_in_eval_mode(encoder):
    model = tiny_test_model(causal=True, encoder=encoder)
    features, lens, tokens = random_batch()
    outputs = [model.encode(features, lens, ChunkConfig(8, 32))[0] for _ in range(2)]
    assert torch.equal(*outputs)
