"""Mixed precision: what a device cannot do is refused."""

from __future__ import annotations

import pytest
import torch

from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.training.precision import Precision

GPU = torch.device("cuda", 0)


def test_bfloat16_that_a_gpu_imitates_is_refused(monkeypatch):
    def imitated(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", imitated)
    with pytest.raises(UserError, match="--use-bf16 1: .*imitate it.*; use --use-fp16 1"):
        Precision(TrainConfig(use_bf16=True), GPU)


def test_a_small_scale_is_looked_at_every_25_batches_and_doubled():
    precision = Precision(TrainConfig(), torch.device("cpu"))
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=0.005)
    precision.backward(torch.ones((), requires_grad=True))  # makes the scale
    assert not any(precision.adjust_grad_scale(batch) for batch in range(1, 25))
    assert precision.grad_scale == pytest.approx(0.005)
    assert precision.adjust_grad_scale(25) and precision.grad_scale == pytest.approx(0.01)
    precision.scaler.update(1e-6)
    with pytest.raises(UserError, match="fell to 1e-06"):
        precision.adjust_grad_scale(50)
