"""Experiments to report on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet, NumpyFilesWriter

from kdstream.checkpoints.store import save_checkpoint
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.evaluation.latency import Delays, delays_file, summarise, write_delays
from kdstream.evaluation.records import add_record
from kdstream.kd.several import build_distiller
from kdstream.kd.teachers import load_teacher
from kdstream.models.transducer import build_model
from support.records import make_record
from support.training import experiment, make_corpus, make_cut

HOSTILE_TEXT = "<script>alert('1')</script> &amp; <!-- $A_$ A"


def write_experiment(exp_root: Path) -> None:
    """Random weights of a teacher and a distilled student, and a test set whose second cut is long enough to show."""
    data = make_corpus(exp_root, num_utterances=2)
    writer = NumpyFilesWriter(exp_root / "test_feats")
    features = np.random.RandomState(0).randn(380, 80).astype(np.float32) - 6
    cuts = [make_cut("short", features[:200], "A B", writer), make_cut("long", features, HOSTILE_TEXT, writer)]
    CutSet.from_cuts(cuts).to_file(exp_root / "test.jsonl.gz")
    data = replace(data, test_cuts=(str(exp_root / "test.jsonl.gz"),))
    vocab_size = Tokenizer(data.bpe_model).vocab_size
    distill = DistillConfig(teacher_exp_dir=str(exp_root / "teacher"), kd_branch_feedforward_dim=32, kd_apc_dim=16)
    for name in ("teacher", "distilled"):
        causal = name == "distilled"
        config = experiment(exp_root / name, data, causal)
        config = replace(config, model=replace(config.model, vocab_size=vocab_size))
        config = replace(config, distill=distill if causal else DistillConfig())
        torch.manual_seed(causal)
        model = build_model(config.model)
        branches = build_distiller(config.distill, model, load_teacher(config, torch.device("cpu")))
        params = {"batch_idx_train": 10, "average_period": 1}
        save_checkpoint(exp_root / name / "epoch-1.pt", model, model, branches, params=params)
        if causal:  # as a student that read a cache, which holds the training cuts alone
            config = replace(config, distill=replace(distill, teacher_cache=str(exp_root / "of_training_cuts")))
        config.save(exp_root / name)


def write_curves(exp_dir: Path, losses: list[str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(exp_dir / "tensorboard")) as writer:
        for batch in range(10, 100, 10):
            for loss in losses:
                writer.add_scalar(f"train/tot_{loss}", 1.0 / batch, batch)
            writer.add_scalar("train/valid_pruned_loss", 2.0 / batch, batch)


def write_measured(root: Path) -> None:
    """Systems that differ in --delay-penalty or in the data's batches, with delays of their words."""
    for system, penalty, seconds, later in (("early", 0.01, 200.0, -40.0), ("plain", 0.0, 200.0, 0.0), ("o", 0, 9, 20)):
        config = ExperimentConfig(
            data=DataConfig(max_duration=seconds), train=TrainConfig(exp_dir=system, delay_penalty=penalty)
        )
        words = [[100 + later, 200 + later], [300.0, None]]
        delays = [Delays(f"u{n}", row, row, row[-1]) for n, row in enumerate(words)]
        record = make_record(
            system=system, mode="chunkwise", recogs="recogs.txt", wer=9.0 - later / 20, latency=summarise(delays)
        )
        add_record(root / system / "results.json", record)
        config.save(root / system)
        (root / system / "recogs.txt").write_text("u0:\tref=['A', 'B']\nu0:\thyp=['A', 'B']\n")
        write_delays(delays_file(root / system / "recogs.txt"), delays)
