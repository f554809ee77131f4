"""The whole chain can learn: 32 utterances by heart, without one wrong word."""

from __future__ import annotations

import torch
from training_helpers import experiment, make_corpus

from kdstream.config import DecodeConfig, ExperimentConfig
from kdstream.data import AsrDataModule
from kdstream.decoding.scoring import score
from kdstream.decoding.search import Search
from kdstream.decoding.stream import decode_whole
