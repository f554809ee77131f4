"""The training loop of every model: teacher, streaming baseline, distilled student.

A "batch" in counts and intervals is one optimiser step; with
--accum-grad A on W processes it takes A * W batches of the data.  What a step does depends on
(config, seed, number of the step) and the parameters alone, so a training that was killed and
resumed from its last checkpoint gives the same losses as one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from kdstream.checkpoints.average import float64_copy, update_averaged_model
from kdstream.checkpoints.store import load_checkpoint, remove_old_checkpoints, saved_after
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from kdstream.kd.consistency import both_modes
from kdstream.kd.distiller import check_shifts
from kdstream.kd.several import build_distiller
from kdstream.kd.teachers import load_teacher
from kdstream.models.scaling import set_batch_count
from kdstream.models.transducer import build_model
from kdstream.training import dist
from kdstream.training.diagnostics import DIAGNOSTIC_BATCHES, Diagnostics, InfCheck
from kdstream.training.gradients import Gradients
from kdstream.training.logs import log_model_size, tensorboard_writer
from kdstream.training.memory import max_memory_mb, scan_for_oom
from kdstream.training.metrics import SECONDS, MetricsTracker
from kdstream.training.optim import Eden, ScaledAdam
from kdstream.training.precision import Precision
from kdstream.training.profiling import StepProfiler
from kdstream.training.progress import Progress, checkpoint_params
from kdstream.training.saving import Saver
from kdstream.training.start import check_same_branches, check_views
from kdstream.training.step import (
    StudentWithBranches,
    chunk_choices,
    draw_chunk,
    grouped,
    heaviest_chunks,
    next_or_error,
    validation_chunk,
    validation_loss,
)
from kdstream.training.weights import batch_count_at_start, prunes_from_the_start, start_from_weights

RESET_INTERVAL = 200  # batches over which tot_loss forgets
SCHEDULE_INTERVAL = 10  # batches between updates of the model's ScheduledFloats
MAX_BAD_BATCHES = 10  # in a row
BAD_MODEL = "bad-model-0.pt"  # the weights with which a training gave up, as icefall names those of the first process
CLIPPING_SCALE = 2.0


class Trainer:
    """Everything that one training needs, and the steps of it.

    Args:
      config: with its preset and vocabulary filled in.
      data: of this config.
    """

    def __init__(
        self, config: ExperimentConfig, data: AsrDataModule, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        self.config, self.data, self.device, self.rank, self.world_size = config, data, device, rank, world_size
        train = config.train
        self.exp_dir = Path(train.exp_dir)
        self.precision = Precision(train, device)
        torch.manual_seed(train.seed)
        self.model = build_model(config.model).to(device)
        self.choices = chunk_choices(config.model, self.model)
        teacher = load_teacher(config, device)
        if teacher is not None:
            teacher.check_cuts(data.training_cut_ids())
        start_from_weights(self.model, config, data.tokenizer, teacher)
        self.distiller = build_distiller(config.distill, self.model, teacher)
        check_shifts(config.distill, self.distiller, config.data.max_utterance_seconds)
        check_views(config)
        data.two_views = train.cr_ctc_scale > 0
        data.read_stored = self.distiller and self.distiller.read_stored
        log_model_size(self.model, self.distiller, config.model)
        self.model_avg = float64_copy(self.model) if rank == 0 else None
        modes = both_modes(config.distill, self.model)
        how = prunes_from_the_start(config), modes, bool(config.data.unlabelled_cuts)
        self.student = StudentWithBranches(self.model, self.distiller, train, *how)
        self.optimizer = ScaledAdam(
            [(name, p) for name, p in self.student.named_parameters() if p.requires_grad],
            lr=train.base_lr,
            clipping_scale=CLIPPING_SCALE,
        )
        self.scheduler = Eden(self.optimizer, train.lr_batches, train.lr_epochs, train.lr_warmup_batches)
        parts = (self.model, self.model_avg, self.distiller, self.optimizer, self.scheduler, self.precision.scaler)
        self.saver = Saver(*parts, world_size, device)
        self.module: nn.Module = self.student
        if world_size > 1:
            device_ids = None if device.type == "cpu" else [device]
            self.module = DistributedDataParallel(self.student, device_ids=device_ids)
        inf_check = InfCheck(self.student) if train.inf_check else None
        where = (self.exp_dir, device, rank, world_size)
        self.gradients = Gradients(self.module, self.precision, train.seed, *where, inf_check)
        self.progress = Progress()
        self.data_position = 0  # batches of the epoch that all processes together have used
        self.window = (0, 0)  # of the data, with which reading may begin to go on at this position
        self.validation_due = False
        self.bad_batches = 0
        self.profiler = StepProfiler(config.train.profile if rank == 0 else 0, self.student, self.exp_dir)
        self.writer: Any = None
        self.valid_loader = data.valid_dataloader(world_size, rank)  # now, as it looks at every validation cut

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint: the next step is the one that would have followed without a stop."""
        saved = load_checkpoint(path)
        check_same_branches(self.config, saved, path, self.distiller)
        self.saver.restore(saved, path)
        self.progress = Progress.from_checkpoint(saved)
        sampler = saved.get("sampler") or {}
        self.progress.cur_epoch = sampler.get("epoch", self.progress.cur_epoch + 1)
        self.data_position = sampler.get("batch", 0)
        self.window = tuple(sampler.get("window", (0, 0)))
        # a checkpoint is written before its step is validated
        self.validation_due = self.data_position > 0 and self.at_validation_interval
        logging.info(
            f"Resumed from {path}: epoch {self.progress.cur_epoch}, {self.data_position} of its batches used, "
            f"{self.progress.batch_idx_train} steps done"
        )

    def train(self) -> None:
        """Trains to the last epoch or to --max-train-batches."""
        train, progress = self.config.train, self.progress
        if self.finished:
            logging.info(f"Nothing to do: {progress.batch_idx_train} steps done, epoch {progress.cur_epoch} is next")
            return
        if train.print_diagnostics:
            self.print_diagnostics()
            return
        if self.device.type == "cuda":
            self.scan_for_oom()
        if self.rank == 0 and train.tensorboard:
            self.writer = tensorboard_writer(self.exp_dir, progress.batch_idx_train)
        quiet = None if self.rank == 0 else True
        self.bar = tqdm(desc="training", unit="batch", initial=progress.batch_idx_train, disable=quiet)
        try:
            while not self.finished:
                self.train_epoch()
        finally:
            self.bar.close()
            if self.writer is not None:
                self.writer.close()

    @property
    def finished(self) -> bool:
        limit = self.config.train.max_train_batches
        return self.progress.cur_epoch > self.config.train.num_epochs or 0 < limit <= self.progress.batch_idx_train

    @property
    def at_validation_interval(self) -> bool:
        return self.progress.batch_idx_train % self.config.train.valid_interval == 0

    def train_epoch(self) -> None:
        """Trains to the end of the current epoch, or to --max-train-batches."""
        train, progress = self.config.train, self.progress
        epoch = progress.cur_epoch
        per_step = train.accum_grad * self.world_size
        self.scheduler.step_epoch(epoch - 1)
        loader = self.data.train_dataloader(epoch, self.world_size, self.rank, self.data_position, self.window)
        if self.writer is not None:
            self.writer.add_scalar("train/epoch", epoch, progress.batch_idx_train)
        # the last step of an epoch may have taken fewer batches than the others
        first_step = progress.batch_idx_train - math.ceil(self.data_position / per_step)
        self.set_bar_total(first_step, math.ceil(loader.num_batches / train.accum_grad))
        self.module.train()
        tot_loss = MetricsTracker(progress.tot_loss)
        for batches in self.profiler.steps(self.batches_of_steps(loader)):
            self.validate_if_due()
            batch_idx = progress.batch_idx_train - first_step  # in this epoch
            loss = self.train_step(batches)
            self.data_position += len(batches) * self.world_size
            self.window = loader.window_of(self.data_position)
            tot_loss = tot_loss.decayed(1 - 1 / RESET_INTERVAL) + loss
            progress.tot_loss = dict(tot_loss)
            self.after_step(batch_idx, loss, tot_loss, sum(len(batch.cut_ids) for batch in batches))
            if self.finished:
                self.validate_if_due()
                return
        if progress.batch_idx_train == first_step:
            raise UserError("the training cuts do not fill one batch", fix="lower --max-duration")
        self.set_bar_total(first_step, progress.batch_idx_train - first_step)
        self.end_epoch(tot_loss)

    def train_step(self, batches: list[Batch]) -> MetricsTracker:
        """One optimiser step on the sum of the gradients of `batches`, over all processes."""
        train, progress = self.config.train, self.progress
        started = time.perf_counter()
        done = progress.batch_idx_train // SCHEDULE_INTERVAL * SCHEDULE_INTERVAL
        reference_batches = self.config.data.max_duration * self.world_size * train.accum_grad / train.ref_duration
        set_batch_count(self.model, done * reference_batches + batch_count_at_start(self.config))
        progress.batch_idx_train += 1
        chunk = draw_chunk(self.choices, train.seed, progress.batch_idx_train)
        total = MetricsTracker()
        for metrics in self.gradients.add(batches, chunk, progress.batch_idx_train):
            if math.isfinite(metrics["loss"]):
                self.bad_batches, progress.batch_idx_finite = 0, progress.batch_idx_train
                progress.speech_seconds_trained += metrics.pop(SECONDS)
                total = total + metrics
            else:
                self.bad_batches += 1
                self.stop_after_bad_batches()
        self.scheduler.step_batch(progress.batch_idx_train)
        if total:
            self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        progress.compute_seconds += (time.perf_counter() - started) * self.world_size
        return total

    def stop_after_bad_batches(self) -> None:
        """Gives up after MAX_BAD_BATCHES, and names the checkpoints that hold the same weights."""
        if self.bad_batches < MAX_BAD_BATCHES:
            return
        same = ", ".join(path.name for path in saved_after(self.exp_dir, self.progress.batch_idx_finite - 1))
        self.give_up(
            f"{MAX_BAD_BATCHES} batches in a row without a finite loss; the log names their cuts, --inf-check 1 the "
            "module",
            fix=f"lower --base-lr or mend the cuts, {f'move away {same}, ' if same else ''}and go on with --resume 1",
        )

    def give_up(self, problem: str, fix: str) -> NoReturn:
        """Saves the weights with which training cannot go on, in all processes together, and raises UserError."""
        path = self.exp_dir / BAD_MODEL
        self.save(path, self.progress.cur_epoch)
        raise UserError(f"{path}: {problem}", fix=fix)

    def batches_of_steps(self, loader: Iterable[Batch]) -> Iterator[list[Batch]]:
        """The batches of each step.  Where a process cannot read its next batch, training stops there.

        Batches are read a step ahead: the other processes hear of an error with the metrics of the step before.
        """
        steps = grouped(loader, self.config.train.accum_grad)
        batches, error = next_or_error(steps)
        self.stop_on(error)
        while batches is not None:
            following, error = next_or_error(steps)
            self.gradients.is_last = error is not None
            yield batches
            if self.gradients.is_last_of_any:
                self.stop_on(error)
            batches = following

    def stop_on(self, error: Exception | None, is_saved: bool = False) -> None:
        """Raises an error that one process met between two steps in all of them.

        Before that a checkpoint is saved, unless the last step is saved already: --resume 1 goes on at the next one.
        """
        error = dist.first_error(error, self.world_size, self.device)
        if error is None:
            return
        if self.progress.batch_idx_train and not is_saved:
            self.save_step()
        raise error

    def after_step(self, batch_idx: int, loss: MetricsTracker, tot_loss: MetricsTracker, num_utterances: int) -> None:
        """Averages, logs and saves, each at its interval; a validation that is due comes before the next step."""
        train, step = self.config.train, self.progress.batch_idx_train
        if step % train.average_period == 0:
            if self.model_avg is not None:
                update_averaged_model(self.model, self.model_avg, self.progress.batch_idx_averaged, step)
            self.progress.batch_idx_averaged = step
        try:
            scale_is_small = self.precision.adjust_grad_scale(batch_idx)
        except UserError as error:
            self.give_up(error.problem, error.fix)
        if scale_is_small and self.gradients.inf_check is None:
            self.gradients.inf_check = InfCheck(self.student)
        self.bar.update(1)
        self.bar.set_postfix_str(f"epoch {self.progress.cur_epoch}, loss {tot_loss.mean():.4g}", refresh=False)
        if batch_idx % train.log_interval == 0:
            self.log(batch_idx, loss, tot_loss, num_utterances)
        self.validation_due = self.at_validation_interval
        if step % train.save_every_n == 0 or self.finished:
            self.save_step()

    def log(self, batch_idx: int, loss: MetricsTracker, tot_loss: MetricsTracker, num_utterances: int) -> None:
        """icefall's log line and TensorBoard curves."""
        lr, step = self.scheduler.get_last_lr()[0], self.progress.batch_idx_train
        grad_scale = f", grad_scale: {self.precision.grad_scale}" if self.precision.enabled else ""
        logging.info(
            f"Epoch {self.progress.cur_epoch}, batch {batch_idx}, loss[{loss}], tot_loss[{tot_loss}], "
            f"batch size: {num_utterances}, lr: {lr:.2e}{grad_scale}"
        )
        if self.writer is not None:
            self.writer.add_scalar("train/learning_rate", lr, step)
            if self.precision.enabled:
                self.writer.add_scalar("train/grad_scale", self.precision.grad_scale, step)
        loss.write_summary(self.writer, "train/current_", step)
        tot_loss.write_summary(self.writer, "train/tot_", step)

    def validate_if_due(self) -> None:
        if self.validation_due:
            self.validate()

    def validate(self, is_saved: bool = False) -> float:
        """Logs the validation losses at one fixed chunk; returns their total.

        is_saved: whether the last step is.
        """
        progress = self.progress
        batches = tqdm(self.valid_loader, desc="validation", leave=False, disable=self.bar.disable)
        total, error = MetricsTracker(), None
        try:
            with self.precision.autocast():
                # the bare module: DDP would wait for processes that have fewer batches
                total = validation_loss(self.student, batches, validation_chunk(self.choices), self.device)
        except Exception as failure:
            error = failure
        self.stop_on(error, is_saved)
        self.validation_due = False
        total = total.reduced(self.world_size, self.device)
        logging.info(f"Epoch {progress.cur_epoch}, validation: {total}")
        if self.device.type == "cuda":
            logging.info(f"Maximum memory allocated so far is {max_memory_mb(self.device)}MB")
        total.write_summary(self.writer, "train/valid_", progress.batch_idx_train)
        return total.mean()

    def end_epoch(self, tot_loss: MetricsTracker) -> None:
        """Writes epoch-N.pt, validates, and writes it again with the validation loss, last of all after the best ones.

        The first one resumes where validation begins, so that neither an error in it nor a kill loses any training.
        """
        progress, epoch = self.progress, self.progress.cur_epoch
        path = self.exp_dir / f"epoch-{epoch}.pt"
        self.save(path, epoch)
        valid_loss, train_loss = self.validate(is_saved=True), tot_loss.mean()
        if train_loss < progress.best_train_loss:
            progress.best_train_loss, progress.best_train_epoch = train_loss, epoch
        if valid_loss < progress.best_valid_loss:  # of the weights that are saved, unlike one in mid-epoch
            progress.best_valid_loss, progress.best_valid_epoch = valid_loss, epoch
        progress.tot_loss, self.data_position, self.window = {}, 0, (0, 0)
        for best, name in ((progress.best_train_epoch, "train"), (progress.best_valid_epoch, "valid")):
            if best == epoch:
                self.save(self.exp_dir / f"best-{name}-loss.pt", epoch + 1)
        self.save(path, epoch + 1)
        progress.cur_epoch += 1

    def save_step(self) -> None:
        """Writes checkpoint-N.pt and removes the oldest."""
        self.save(self.exp_dir / f"checkpoint-{self.progress.batch_idx_train}.pt", self.progress.cur_epoch)
        if self.rank == 0:
            remove_old_checkpoints(self.exp_dir, self.config.train.keep_last_k)

    def save(self, path: Path, next_epoch: int) -> None:
        """Writes a checkpoint that resumes in `next_epoch`, at the data's position."""
        sampler = {"epoch": next_epoch, "batch": self.data_position, "window": self.window}
        self.saver.save(path, sampler, checkpoint_params(self.config, self.progress))

    def set_bar_total(self, first_step: int, steps_per_epoch: int) -> None:
        """Sets the progress bar's end from the expected length of an epoch."""
        train = self.config.train
        total = first_step + steps_per_epoch * (train.num_epochs - self.progress.cur_epoch + 1)
        self.bar.total = min(total, train.max_train_batches or total)
        self.bar.refresh()

    def print_diagnostics(self) -> None:
        """Trains a few batches under observation and prints what was seen."""
        train = self.config.train
        diagnostics = Diagnostics(self.student)
        loader = self.data.train_dataloader(self.progress.cur_epoch, self.world_size, self.rank)
        self.module.train()
        for batches in islice(grouped(loader, train.accum_grad), DIAGNOSTIC_BATCHES):
            self.train_step(batches)
        if self.rank == 0:
            print(diagnostics.table())

    def scan_for_oom(self) -> None:
        """Tries the batches of the training cuts that need most memory; see memory.py."""
        # the bare module: DDP would wait for processes that try fewer batches, and took its buckets when it was made
        alone = replace(self.gradients, module=self.student)

        def try_batch(batch: Batch) -> None:
            for chunk in heaviest_chunks(self.choices):
                alone.add_batch(batch, chunk, 0)
                self.optimizer.zero_grad(set_to_none=True)

        self.module.train()
        self.optimizer.allocate()  # else the first step would need more than was tried
        loader = self.data.train_dataloader(1, self.world_size, self.rank)
        scan_for_oom(loader, try_batch, self.config.data.max_duration, self.device)
