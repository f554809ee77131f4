"""What one training step computes: the student with its branches, the weights of the losses, the chunk of the batch.

Whatever is random in a step is drawn from (seed, step), so that a resumed training goes on as if it
had never stopped, and so that processes agree.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError, option
from kdstream.kd.consistency import BothModes, view_consistency
from kdstream.kd.distiller import Distiller, output_frames_of
from kdstream.kd.several import SeveralDistillers
from kdstream.kd.taps import Taps
from kdstream.kd.unlabelled import tokens_with_guesses
from kdstream.models.checkpointing import checkpoint_layers
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import ChunkConfig, chunks_of
from kdstream.models.transducer import Tokens, Transducer, sum_of_known
from kdstream.training.metrics import FRAMES, LABELLED_FRAMES, SECONDS, MetricsTracker, read_sums
from kdstream.units import FRAMES_PER_SECOND


class StudentWithBranches(nn.Module):
    """The student, and in distillation the branches that guide it: what DDP wraps and the optimiser trains.

    finetune: what prunes the lattice begins with trained weights, so what --warm-step schedules counts as over.
    modes: the losses of a student that is run in full context too; None where it is not.
    unlabelled: whether batches of training may hold utterances without tokens; labelled_frames are then logged too.
    """

    def __init__(
        self,
        model: Transducer,
        distiller: Distiller | SeveralDistillers | None,
        config: TrainConfig,
        finetune: bool = False,
        modes: BothModes | None = None,
        unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.distiller = distiller
        self.modes = modes
        self.config = config
        self.finetune, self.unlabelled = finetune, unlabelled
        checkpoint_layers(model, config.checkpoint_activations)
        self.loss_settings = LossSettings(
            config.prune_range,
            config.lm_scale,
            config.am_scale,
            config.delay_penalty,
            config.rnnt_type,
            config.rnnt_backend,
        )

    def forward(
        self, batch: Batch, chunk: ChunkConfig | None, batch_idx: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        Args:
          batch: on the model's device, with tokens.
          chunk: None for full context.
          batch_idx: optimiser steps so far.  None in validation: the weights that the losses will have
            in the end, so that validation losses compare over time, and of those losses the transducer's
            in streaming alone, so that they compare between systems.
        Returns:
          The total loss, summed over the batch, and each loss alone, unweighted and detached; what has no weight is to
          be logged like a loss.
        """
        views = batch.views()
        taps = self.taps(len(views)) if batch_idx is not None else None
        step = math.inf if self.finetune and batch_idx is not None else batch_idx
        settings = self.loss_settings._replace(delay_penalty=delay_penalty(self.config, step))
        (features, feature_lens, tokens), host_lens, heard = in_all_views(views), host_lens_of(views), None
        if self.unlabelled and taps is not None and self.distiller is not None:
            found = tokens_with_guesses(batch, tokens, host_lens[1], self.distiller, taps)
            tokens, host_lens, heard = found[0], (host_lens[0], found[1]), found[2]
        losses = self.model(features, feature_lens, tokens, chunk, settings, taps=taps, host_lens=host_lens)
        weights = transducer_weights(self.config, step)
        if taps is not None and batch_idx is not None:
            if self.modes is not None:
                output_frames = output_frames_of(batch.feature_lens).repeat(len(views))
                losses = self.modes(losses, weights, taps, output_frames)
                weights.update(self.modes.weights(batch_idx))
            if self.distiller is not None:
                losses.update(self.distiller(batch, taps, heard))
                weights.update(self.distiller.weights(batch_idx))
            if len(views) > 1 and taps.ctc is not None:
                losses = {name: loss / len(views) for name, loss in losses.items()}
                losses["cr_ctc_loss"] = view_consistency(taps.ctc)
        if tokens.known is not None:
            losses[LABELLED_FRAMES] = sum_of_known(output_frames_of(batch.feature_lens), tokens.known)
        total = torch.stack([weights[name] * loss for name, loss in losses.items() if name in weights]).sum()
        return total, {"loss": total.detach(), **{name: loss.detach() for name, loss in losses.items()}}

    def taps(self, views: int) -> Taps | None:
        """What looks inside the student's forward in training; None where nothing does."""
        taps = self.distiller.student_taps() if self.distiller is not None else None
        if views > 1:
            taps = taps or Taps(())
            taps.wants_ctc = True
        return taps if self.modes is None else self.modes.ask(taps or Taps(()))


def in_all_views(views: list[Batch]) -> tuple[Tensor, Tensor, Tokens]:
    """Features, lengths and tokens of the utterances of each view, one view after the other."""
    if len(views) == 1:
        return views[0].features, views[0].feature_lens, tokens_of(views[0])
    ids, lens, _ = tokens_of(views[0])
    tokens = Tokens(ids.repeat(len(views), 1), lens.repeat(len(views)))
    return torch.cat([view.features for view in views]), views[0].feature_lens.repeat(len(views)), tokens


def host_lens_of(views: list[Batch]) -> tuple[Tensor, Tensor]:
    """Feature frames and numbers of tokens of the same utterances, on the CPU."""
    host = views[0].host
    return host.feature_lens.repeat(len(views)), tokens_of(host).lens.repeat(len(views))


def tokens_of(batch: Batch) -> Tokens:
    """What a batch that was loaded with a tokenizer says."""
    if batch.tokens is None or batch.token_lens is None:
        raise ValueError("the batch was made without tokens; see make_batch")
    return Tokens(batch.tokens, batch.token_lens)


def delay_penalty(config: TrainConfig, batch_idx: float | None) -> float:
    """--delay-penalty from twice --warm-step on (icefall's schedule), and 0 before and in validation.

    A student that cannot yet hear when a symbol is spoken would only learn to say all of them at once.
    """
    return config.delay_penalty if batch_idx is not None and batch_idx >= 2 * config.warm_step else 0.0


def transducer_weights(config: TrainConfig, batch_idx: float | None) -> dict[str, float]:
    """Weights of simple_loss, pruned_loss, ctc_loss and cr_ctc_loss.

    Pruning bounds come from the simple loss, so early on it leads: its weight falls from 1 to
    --simple-loss-scale and that of the pruned loss rises from 0.1 to 1 over --warm-step (icefall's schedule).  So does
    that of the consistency of two views, from 0 to --cr-ctc-scale.
    """
    done = 1.0 if batch_idx is None or batch_idx >= config.warm_step else batch_idx / config.warm_step
    return {
        "simple_loss": 1.0 - done * (1.0 - config.simple_loss_scale),
        "pruned_loss": 0.1 + 0.9 * done,
        "ctc_loss": config.ctc_loss_scale,
        "cr_ctc_loss": done * config.cr_ctc_scale,
    }


def compute_loss(
    module: nn.Module, batch: Batch, chunk: ChunkConfig | None, batch_idx: int | None, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch (a sum, to call backward on), and what `read_sums` makes its metrics of.

    Args:
      module: StudentWithBranches or its DDP.
    """
    batch = batch.to(device)
    loss, losses = module(batch, chunk, batch_idx)
    lens = batch.feature_lens
    return loss, {**losses, FRAMES: output_frames_of(lens).sum(), SECONDS: lens.sum().double() / FRAMES_PER_SECOND}


@torch.no_grad()
def validation_loss(
    student: StudentWithBranches, batches: Iterable[Batch], chunk: ChunkConfig | None, device: torch.device
) -> MetricsTracker:
    """The student's losses in eval mode, over the batches where they are finite; zeros where there are none."""
    names = ("loss", "simple_loss", "pruned_loss", *(("ctc_loss",) if student.model.config.use_ctc else ()), FRAMES)
    total = MetricsTracker(dict.fromkeys(names, 0.0))
    student.eval()
    cuts, sums = [], []
    for batch in batches:
        cuts.append(batch.cut_ids)
        sums.append(compute_loss(student, batch, chunk, None, device)[1])
    student.train()
    for cut_ids, metrics in zip(cuts, read_sums(sums), strict=True):
        if math.isfinite(metrics["loss"]):
            metrics.pop(SECONDS)
            total = total + metrics
        else:
            logging.warning(f"The validation loss is not finite, the batch is left out; cuts: {' '.join(cut_ids)}")
    return total


def error_of_reading(batches: Iterable[Batch]) -> Exception | None:
    """What reading all batches raises.

    Read before the first step, a validation set shows a damaged cut then, and not when an epoch has ended.
    """
    try:
        for _ in batches:
            pass
    except Exception as error:
        return error
    return None


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last one perhaps shorter."""
    iterator = iter(batches)
    while True:
        group = list(islice(iterator, size))
        if not group:
            return
        yield group


def next_or_error(steps: Iterator[list[Batch]]) -> tuple[list[Batch] | None, Exception | None]:
    """The batches of the next step, None at the end, and what reading them raised."""
    try:
        return next(steps, None), None
    except Exception as error:
        return None, error


def chunk_choices(config: ModelConfig, model: Transducer) -> list[list[ChunkConfig | None]]:
    """For each --chunk-size, the chunks with each --left-context-frames and --right-context-frames that fit.

    None is full context.

    Raises:
      UserError: a chunk that the encoder cannot run, or one that no left or right context fits.
    """
    if not config.causal:
        return [[None]]
    choices: list[list[ChunkConfig | None]] = []
    for size in config.chunk_size:
        if size == -1:
            choices.append([None])
            continue
        if size < 1:
            problem = "must be 1 encoder frame or more, or -1 for full context"
            raise UserError(problem, flag=option("chunk_size", size))
        chunks = chunks_of(config, size)
        for chunk in chunks:
            model.encoder.check_chunk(chunk)
        choices.append(list(chunks))
    if not choices or not all(choices):
        flags = ", ".join(map(option, ("chunk_size", "left_context_frames", "right_context_frames")))
        raise UserError("must not be empty with --causal 1", flag=flags, fix="use 8, 32 and 0")
    return choices


def validation_chunk(choices: list[list[ChunkConfig | None]]) -> ChunkConfig | None:
    """The chunk in which validation, and what else needs one alone, hears utterances: the first one to train with."""
    return choices[0][0]


def heaviest_chunks(choices: list[list[ChunkConfig | None]]) -> list[ChunkConfig | None]:
    """The chunks of which one needs most memory.

    They are that whose frames see most others, and that which computes most frames again, as its right context.
    """

    def seen(chunk: ChunkConfig | None) -> float:
        if chunk is None:
            return math.inf
        return chunk.left + chunk.step if chunk.is_limited else sys.maxsize

    def computed(chunk: ChunkConfig | None) -> tuple[float, float]:
        return (0 if chunk is None else chunk.right / chunk.chunk), seen(chunk)

    drawn = list(chain.from_iterable(choices))
    return list(dict.fromkeys([max(drawn, key=seen), max(drawn, key=computed)]))


def draw_chunk(choices: list[list[ChunkConfig | None]], seed: int, batch_idx: int) -> ChunkConfig | None:
    """The chunk of one step: the same in all processes, and after a resume."""
    rng = random.Random(f"chunk/{seed}/{batch_idx}")
    return rng.choice(rng.choice(choices))


def seed_step(seed: int, batch_idx: int, index: int) -> None:
    """Seeds dropout and everything else random in the model.

    `index` counts the batches of one step over processes and accumulated gradients together, so that
    two processes draw what one process would that accumulates two batches.
    """
    number = zlib.crc32(f"step/{seed}/{batch_idx}/{index}".encode())
    random.seed(number)
    torch.manual_seed(number)
