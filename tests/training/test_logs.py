"""The first lines of a training's log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.models import rnnt_loss
from kdstream.training.logs import log_start


def test_the_log_says_which_loss_was_chosen(caplog) -> None:
    caplog.set_level(logging.INFO)
    log_start(TrainConfig(), torch.device("cpu"), Path("exp/log/a"))
    assert caplog.messages[1:] == ["Device: cpu; log: exp/log/a", "RNN-T loss: torch (--rnnt-backend auto)"]


def test_a_loss_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(rnnt_loss, "k2_imports", lambda: False)
    with pytest.raises(UserError, match="--rnnt-backend k2: k2 cannot be imported"):
        log_start(TrainConfig(rnnt_backend="k2"), torch.device("cpu"), Path("exp/log/a"))
