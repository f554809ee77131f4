"""Data, loop, checkpoints and search together: a small streaming model learns 32 utterances by heart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdstream.checkpoints.average import CheckpointChoice, load_averaged
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.module import AsrDataModule
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import decode_whole
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import build_model
from kdstream.training.process import train_experiment
from support.models import tiny_test_config
from support.training import experiment, make_corpus

FRONT_END = dict(frontend_channels=(4, 8, 32), frontend_hidden_dim=32)
ZIPFORMER = dict(
    num_encoder_layers=(1, 1),
    downsampling_factor=(1, 2),
    encoder_dim=(64, 64),
    encoder_unmasked_dim=(64, 64),
    feedforward_dim=(96,),
    cnn_module_kernel=(15,),
)
CONFORMER = dict(num_encoder_layers=(2,), encoder_dim=(64,), feedforward_dim=(96,), cnn_module_kernel=(15,))


@pytest.mark.slow
@pytest.mark.parametrize("encoder, settings, epochs", [("zipformer", ZIPFORMER, 48), ("conformer", CONFORMER, 30)])
def test_32_utterances_are_learnt_to_a_word_error_rate_of_0(
    tmp_path: Path, encoder: str, settings: dict[str, Any], epochs: int
):
    data = replace(make_corpus(tmp_path, num_utterances=32), max_duration=10.0)
    config = experiment(
        tmp_path / "exp",
        data,
        num_epochs=epochs,
        average_period=1,
        log_interval=100,
        warm_step=50,
        lr_warmup_batches=20.0,
        lr_batches=300.0,
        lr_epochs=100.0,
        ref_duration=0.1,  # the model's own schedules, made for weeks of training, pass in the first batches
    )
    model_config = tiny_test_config(
        causal=True, encoder=encoder, chunk_size=(8,), left_context_frames=(16,), **FRONT_END, **settings
    )
    train_experiment(replace(config, model=model_config))

    trained = ExperimentConfig.load(tmp_path / "exp")
    model = build_model(trained.model).eval()
    model.load_state_dict(load_averaged(CheckpointChoice(tmp_path / "exp", avg=4)).weights)
    module = AsrDataModule(trained.data, seed=0)
    (loader,) = module.test_dataloaders().values()
    references, hypotheses = [], []
    for batch in loader:
        chunk = ChunkConfig(trained.model.chunk_size[0], trained.model.left_context_frames[0])
        results = decode_whole(model, batch.features, batch.feature_lens, chunk, GreedySearch())
        references += batch.texts
        hypotheses += [module.tokenizer.decode(result.tokens) for result in results]
    assert len(references) == 32
    assert hypotheses == references
