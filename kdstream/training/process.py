"""One process's whole training: from the settings, over what must fit together before it begins, to the last epoch."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

from kdstream.config.experiment import CONFIG_FILE, ExperimentConfig
from kdstream.data.module import AsrDataModule
from kdstream.errors import option
from kdstream.files import writing
from kdstream.kd.teachers import needs_audio, needs_clean
from kdstream.kd.unlabelled import check_unlabelled
from kdstream.training import dist
from kdstream.training.logs import log_start
from kdstream.training.loop import Trainer
from kdstream.training.partners import in_company
from kdstream.training.start import (
    check_same_model,
    check_same_tokenizer,
    checkpoint_to_resume,
    keep_settings,
    only_training_in,
    with_preset,
    with_teacher_epoch,
    with_vocabulary,
)
from kdstream.training.step import error_of_reading
from kdstream.training.weights import with_same_beginning


def train_experiment(config: ExperimentConfig, rank: int = 0, world_size: int = 1) -> None:
    """Trains one experiment, as process `rank` of `world_size`.

    Raises:
      UserError: whatever the user can mend, in one line.
    """
    exp_dir = Path(config.train.exp_dir)
    with writing(exp_dir), only_training_in(exp_dir) if rank == 0 else nullcontext():
        _train(config, rank, world_size)


def _train(config: ExperimentConfig, rank: int, world_size: int) -> None:
    exp_dir = Path(config.train.exp_dir)
    config = with_preset(config)
    device = dist.device_of(rank)
    with in_company(rank, world_size, config.train.master_port):
        needs = needs_audio(config.distill), needs_clean(config)
        data = AsrDataModule(config.data, config.train.seed, *needs, pin_memory=device.type == "cuda")
        config = with_vocabulary(config, data.tokenizer.vocab_size)
        check_same_tokenizer(config)
        check_same_model(config)
        check_unlabelled(config)
        resume_from = checkpoint_to_resume(config)
        config = with_teacher_epoch(config, resumes=resume_from is not None)
        log_path = dist.setup_logging(exp_dir, rank, world_size)
        # by then every process has looked at the exp-dir, and one may write to it
        dist.check_shared(log_path, option("exp_dir", exp_dir), world_size, device)
        log_start(config.train, device, log_path)
        if resume_from is not None:
            config = with_same_beginning(config)
        dist.first_in_rank_0(data.look_at_training_cuts, rank, world_size, device)
        trainer = Trainer(config, data, device, rank, world_size)
        if resume_from is not None:
            trainer.restore(resume_from)
        elif not config.train.print_diagnostics:
            dist.raise_together(error_of_reading(trainer.valid_loader), world_size, device)
        if config.train.resume and resume_from is None:
            settings = ", with what is not typed as in its config.json" if (exp_dir / CONFIG_FILE).is_file() else ""
            logging.warning(f"--resume 1: {exp_dir} holds no checkpoint, so training starts anew{settings}")
        if rank == 0 and not config.train.print_diagnostics:
            keep_settings(config, data.tokenizer)
        trainer.train()
        logging.info("Done!")
