"""Unlabelled utterances in a batch: those without tokens.

The losses between layers need none.  Where a loss is on the lattice and a teacher writes tokens, the lattice of an
unlabelled utterance is that of what the teacher hears in it by greedy search.  The transducer losses are for labelled
ones alone; see `Tokens.known`.

Shapes: N batch, U tokens.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdstream.config.experiment import ExperimentConfig
from kdstream.data.batch import Batch, padded
from kdstream.errors import UserError, option
from kdstream.kd.distiller import Distiller
from kdstream.kd.loss_table import wanted_losses
from kdstream.kd.several import SeveralDistillers, of_each
from kdstream.kd.taps import Taps
from kdstream.models.streaming import output_lens
from kdstream.models.transducer import Tokens


def tokens_with_guesses(
    batch: Batch, tokens: Tokens, host_lens: Tensor, distiller: Distiller | SeveralDistillers, taps: Taps
) -> tuple[Tokens, Tensor, Any]:
    """The tokens of a batch that may hold unlabelled utterances, their numbers on the host, and what teachers heard.

    Args:
      tokens, host_lens: those of labelled utterances; the others have none.
      taps: of the student; they say whether there is a loss on the lattice.
    Returns:
      tokens that say which are known; what the teachers heard is None where nobody had to listen yet.
    """
    known = host_lens > 0
    tokens = Tokens(tokens.ids if tokens.ids.size(1) else F.pad(tokens.ids, (0, 1)), tokens.lens, known)
    teller = distiller.writer_of_tokens
    if not taps.wants_lattice or teller is None or bool(known.all()):
        return tokens, host_lens, None
    heard = distiller.listen(batch)
    rows = (~known).nonzero().squeeze(1)
    encoder_out = distiller.heard_by(teller, heard).encoder_out
    assert encoder_out is not None
    frames = output_lens(batch.host.feature_lens)[rows]
    said = teller.hypotheses(encoder_out[rows.to(encoder_out.device)], frames)
    guesses, guess_lens = padded(said)
    width = max(tokens.ids.size(1), guesses.size(1))
    device = tokens.ids.device
    ids = F.pad(tokens.ids, (0, width - tokens.ids.size(1)))
    ids = ids.index_copy(0, rows.to(device), F.pad(guesses, (0, width - guesses.size(1))).to(device))
    host_lens = host_lens.index_copy(0, rows, guess_lens)
    return Tokens(ids, host_lens.to(device, non_blocking=True), known), host_lens, heard


def check_unlabelled(config: ExperimentConfig) -> None:
    """Raises UserError where --unlabelled-cuts meet losses that nobody can compute on them."""
    cuts, distill = config.data.unlabelled_cuts, config.distill
    if not cuts:
        return
    flag = option("unlabelled_cuts", ",".join(cuts))
    if not distill.has_teacher or not any(wanted_losses(one).all() for one in of_each(distill)):
        raise UserError(
            "nothing is learned from them without a teacher's losses",
            flag=flag,
            fix="name a teacher, and raise a --kd-*-scale",
        )
    if distill.mode_consistency_scale and not any(wanted_losses(one).of_lattice for one in of_each(distill)):
        raise UserError(
            f"{option('mode_consistency_scale')} compares posteriors after tokens, which nobody knows of them",
            flag=flag,
            fix="leave it out, or give --kd-token-scale and a teacher that writes tokens",
        )
    if config.train.cr_ctc_scale:
        raise UserError(
            f"{option('cr_ctc_scale')} compares two views of labelled speech", flag=flag, fix="drop one of the two"
        )
