"""Mode consistency: a streaming student that is run in full context too, on every batch, and learns from both.

    full_context_loss       the transducer loss of full context, weighed inside as that of streaming
    mode_consistency_loss   (KL(F || S) + KL(S || F)) / 2 of the two modes' posteriors F and S, cell by cell

The cells are those of the streaming mode's pruned lattice.  In each divergence its first side is held fixed: streaming
learns from full context, and full context from streaming.  Streaming emits later, so as with a teacher its frame t is
compared with the other's frame t - shift.  No teacher is needed.  The idea is that of arXiv 2604.19079 (over full
lattices there).

`view_consistency` compares two views of a batch in the same way (CR-CTC, arXiv 2410.05101).

Shapes: N batch, T output frames, R symbols kept at a frame, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdstream.config.distillation import DistillConfig
from kdstream.errors import UserError, option
from kdstream.kd.divergence import mutual_divergence
from kdstream.kd.taps import Lattice, Taps, padding_mask
from kdstream.kd.token_losses import cell_weights
from kdstream.kd.token_shift import mean_shift, shifted_logits
from kdstream.models.in_blocks import at_least_float32
from kdstream.models.rnnt_loss import next_symbols
from kdstream.models.transducer import Transducer


class BothModes:
    """The losses of a student that is run in both modes.

    The loss of full context is reported even where its weight is 0.
    """

    def __init__(self, config: DistillConfig, student: Transducer) -> None:
        self.config, self.student = config, student
        self.is_compared = config.mode_consistency_scale > 0

    def ask(self, taps: Taps) -> Taps:
        """The same taps, which now ask for what the losses read."""
        taps.wants_full_context = True
        taps.wants_lattice = taps.wants_lattice or self.is_compared
        return taps

    def weights(self, batch_idx: float) -> dict[str, float]:
        """Of the losses; that of the comparison rises over --kd-warmup-batches."""
        weights = {"full_context_loss": self.config.full_context_scale}
        if self.is_compared:
            weights["mode_consistency_loss"] = self.config.risen(batch_idx) * self.config.mode_consistency_scale
        return weights

    def __call__(
        self, losses: dict[str, Tensor], weights: Mapping[str, float], taps: Taps, output_frames: Tensor
    ) -> dict[str, Tensor]:
        """The losses by name, each summed over the batch; in place of what `losses` has of full context.

        Args:
          losses, weights: the transducer's, see `Transducer.forward`; `weights` of those that streaming has too.
          taps: with the lattice of streaming and the encoder's output in full context.
          output_frames: (N,) of the utterances.
        """
        in_full_context = [
            losses.pop(f"full_{name}") * weights[name] for name in list(weights) if f"full_{name}" in losses
        ]
        losses["full_context_loss"] = torch.stack(in_full_context).sum()
        if self.is_compared:
            losses.update(self.compare(taps, output_frames))
        return losses

    def compare(self, taps: Taps, output_frames: Tensor) -> dict[str, Tensor]:
        """mode_consistency_loss and, with --kd-token-shift auto, mode_shift."""
        config, lattice, blank = self.config, taps.lattice, self.student.config.blank_id
        if lattice is None or taps.full_context is None:
            raise ValueError("mode consistency compares the lattice with full context; the taps have to ask for both")
        collapsed = config.mode_consistency_type == "collapsed"
        full, shift = shifted_logits(
            lambda encoder_out, symbols: self.student.lattice_logits(encoder_out, lattice.decoder_out, symbols),
            taps.full_context, lattice, config.kd_token_shift, blank, collapsed,
        )  # fmt: skip
        weights = cell_weights(lattice, shift)
        symbols = next_symbols(lattice.tokens, lattice.ranges, blank) if collapsed else None
        even = config.mode_consistency_weights == "even"
        loss = consistency_loss(full, lattice.logits, weights, symbols, blank, even)
        return {"mode_consistency_loss": loss, **mean_shift("mode_shift", shift, output_frames)}


def consistency_loss(
    full: Tensor, streaming: Tensor, weights: Tensor, symbols: Tensor | None, blank: int, even: bool
) -> Tensor:
    """(KL(F || S) + KL(S || F)) / 2, a scalar, summed over the batch's output frames.

    Args:
      full, streaming: (N, T, R, V) logits at the same cells.
      weights: (N, T, R) of the cells, 1 in sum at each frame that counts.
      symbols: (N, T, R) next symbols: of three classes; None: over the vocabulary.
      even: whether the weights hold; else cells weigh in proportion to the fixed side's probability of a symbol, and as
        much in all of an utterance.
    """
    of_full, of_streaming = (weights if even else by_symbols(fixed, weights, blank) for fixed in (full, streaming))
    return mutual_divergence(full, streaming, of_full, of_streaming, symbols, blank)


def view_consistency(ctc: Lattice) -> Tensor:
    """(KL(A || B) + KL(B || A)) / 2 of the CTC posteriors A and B of two views, a scalar, summed over output frames.

    In each divergence its first side is held fixed.

    Args:
      ctc: of the N utterances in their first view, and then in their second one; see `Taps`.
    """
    first, second = ctc.logits.squeeze(2).chunk(2)
    frames, _ = (~padding_mask(ctc.encoder_lens, first.size(1))).float().chunk(2)  # (N, T)
    return mutual_divergence(first, second, frames, frames)


@torch.no_grad()
def by_symbols(logits: Tensor, weights: Tensor, blank: int) -> Tensor:
    """(N, T, R): weights in proportion to 1 - P(blank), of the same sum over each utterance."""
    logits = at_least_float32(logits)
    symbols = weights * -torch.expm1(logits[..., blank] - logits.logsumexp(dim=-1))  # (N, T, R)
    total, wanted = (x.sum(dim=(1, 2), keepdim=True) for x in (symbols, weights))
    return symbols * (wanted / total.clamp(min=torch.finfo(symbols.dtype).tiny))


def both_modes(config: DistillConfig, student: Transducer) -> BothModes | None:
    """The losses of a student that is to be run in both modes; None without the flags that ask for it.

    Raises:
      UserError: the student has one mode alone, or is trained in full context anyway.
    """
    if not config.runs_both_modes:
        return None
    setting = "full_context_scale" if config.full_context_scale else "mode_consistency_scale"
    if not student.config.causal:
        raise UserError("a --causal 0 student has one mode", flag=option(setting), fix="give --causal 1")
    if -1 in student.config.chunk_size:
        raise UserError(
            "every batch is run in full context already",
            flag=f"{option('chunk_size')} -1",
            fix=f"leave out -1, or {option(setting)}",
        )
    return BothModes(config, student)
