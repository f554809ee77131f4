"""The pruned transducer loss (Kuang et al., arXiv 2206.13236), by k2 or in pure torch.

A cheap "simple" loss over the whole lattice, whose joiner is the addition of encoder and predictor logits, says
which few symbols are likely at each frame; the real joiner then runs on those alone.  The four steps have k2's
names, arguments and arithmetic (k2/python/k2/rnnt_loss.py): `rnnt_loss_smoothed`, `get_rnnt_prune_ranges`,
`do_rnnt_pruning`, `rnnt_loss_pruned`.  `transducer_losses` runs them, with k2's functions or with this file's;
`backend` says which.  The sums over paths are in `rnnt_lattice.py`, and what a CPU does in `rnnt_in_groups.py`.

Shapes: N batch, T frames (40 ms), S symbols (U elsewhere; k2's letter here), V vocabulary, J joiner width.
Kinds of lattice (`rnnt_type`): "regular", a symbol stays on its frame and blank moves on; "modified", both move on;
"constrained", as modified, and a symbol is followed by the blank of the next context on the same frame.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kdstream.errors import UserError, option
from kdstream.models.in_blocks import at_least_float32
from kdstream.models.rnnt_lattice import lattice_scores, transition_log_probs

_NEEDED_FROM_K2 = ("rnnt_loss_smoothed", "get_rnnt_prune_ranges", "do_rnnt_pruning", "rnnt_loss_pruned")
RNNT_TYPES = ("regular", "modified", "constrained")

OptionalGrads = Tensor | tuple[Tensor, tuple[Tensor, Tensor]]


class LossSettings(NamedTuple):
    """How the transducer loss is computed; see the flags of the same names.

    prune_range: symbols per frame that the pruned loss keeps; `enough_symbols` raises it where a batch needs more.
    lm_scale, am_scale: weights of the predictor-only and the encoder-only term in the simple loss.
    delay_penalty: added per frame (40 ms) that a symbol comes before the middle of its utterance (k2 issue 955).
    rnnt_type: the kind of lattice.
    backend: whose functions compute it, as `backend` reads it.
    """

    prune_range: int = 5
    lm_scale: float = 0.25
    am_scale: float = 0.0
    delay_penalty: float = 0.0
    rnnt_type: str = "regular"
    backend: str = "auto"

    def wide_enough(self, frame_lens: Tensor, symbol_lens: Tensor) -> LossSettings:
        """The same with a prune_range that leaves every utterance a path; see `enough_symbols`."""
        if self.rnnt_type != "regular":
            return self
        return self._replace(prune_range=enough_symbols(self.prune_range, frame_lens, symbol_lens))


class RnntLosses(NamedTuple):
    """Both losses, () or (N,), the kept symbols (N, T, R) and, where they were kept, the logits (N, T, R, V)."""

    simple: Tensor
    pruned: Tensor
    ranges: Tensor
    logits: Tensor | None


def transducer_losses(
    am_simple: Tensor,
    lm_simple: Tensor,
    encoder_proj: Tensor,
    decoder_proj: Tensor,
    joiner: Callable[..., Tensor],
    tokens: Tensor,
    encoder_lens: Tensor,
    token_lens: Tensor,
    settings: LossSettings,
    *,
    blank_id: int = 0,
    reduction: str = "sum",
) -> RnntLosses:
    """The simple and the pruned loss of one batch, in float32 whatever autocast says.

    Args:
      am_simple: (N, T, V) logits of the encoder alone.
      lm_simple: (N, S+1, V) logits of the predictor alone.
      encoder_proj: (N, T, J) the joiner's projection of the encoder output.
      decoder_proj: (N, S+1, J) the joiner's projection of the predictor output.
      joiner: called as joiner(encoder (N, T, R, J), decoder (N, T, R, J), project_input=False) -> (N, T, R, V).
      tokens: (N, S) int64; what lies beyond `token_lens` is not looked at, but must be a valid id.
      encoder_lens, token_lens: (N,) valid frames and symbols.
      reduction: "sum" over the batch, or "none".
    """
    functions = _functions(backend(settings.backend, am_simple.device))
    boundary = lattice_boundary(encoder_lens, token_lens)
    common = dict(
        symbols=tokens,
        termination_symbol=blank_id,
        boundary=boundary,
        rnnt_type=settings.rnnt_type,
        delay_penalty=settings.delay_penalty,
        reduction=reduction,
    )
    device = am_simple.device.type
    with torch.autocast(device_type=device, enabled=False):
        simple, (px_grad, py_grad) = functions.rnnt_loss_smoothed(
            lm=at_least_float32(lm_simple),
            am=at_least_float32(am_simple),
            lm_only_scale=settings.lm_scale,
            am_only_scale=settings.am_scale,
            return_grad=True,
            **common,
        )
        ranges = functions.get_rnnt_prune_ranges(px_grad, py_grad, boundary, settings.prune_range)
    encoder_pruned, decoder_pruned = functions.do_rnnt_pruning(am=encoder_proj, lm=decoder_proj, ranges=ranges)
    logits = joiner(encoder_pruned, decoder_pruned, project_input=False)
    with torch.autocast(device_type=device, enabled=False):
        pruned = functions.rnnt_loss_pruned(logits=at_least_float32(logits), ranges=ranges, **common)
    return RnntLosses(simple, pruned, ranges, logits)


def lattice_boundary(encoder_lens: Tensor, token_lens: Tensor) -> Tensor:
    """(N, 4) int64 [0, 0, symbols, frames]: where the lattices of a batch begin and end."""
    zeros = torch.zeros_like(token_lens)
    return torch.stack([zeros, zeros, token_lens, encoder_lens.to(token_lens)], dim=1)


def backend(wanted: str, device: torch.device) -> str:
    """ "k2" or "torch": whose functions compute the loss on this device.

    Args:
      wanted: --rnnt-backend.  "auto" is "k2" on a GPU where k2 imports, and "torch" elsewhere: on a CPU k2's functions
        take 1.8 to 2.3 times as long.
    Raises:
      UserError: k2 is wanted, and cannot be imported.
    """
    if wanted == "auto":
        return "k2" if device.type == "cuda" and k2_imports() else "torch"
    if wanted == "k2" and not k2_imports():
        raise UserError(
            "k2 cannot be imported",
            flag=option("rnnt_backend", "k2"),
            fix="install it as docs/k2.md says, or give --rnnt-backend torch",
        )
    return wanted


@functools.cache
def k2_imports() -> bool:
    """Whether k2 imports with the functions of its pruned loss."""
    try:
        import k2  # pyright: ignore[reportMissingImports]  # optional
    except (ImportError, OSError):  # OSError: a wheel built against another torch
        return False
    return all(hasattr(k2, name) for name in _NEEDED_FROM_K2)


def _functions(name: str) -> ModuleType:
    if name == "torch":
        return sys.modules[__name__]
    import k2  # pyright: ignore[reportMissingImports]  # optional

    return k2


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> OptionalGrads:
    """The simple loss: joiner = addition, log-probabilities interpolated with those of each part alone.

    Args:
      lm: (N, S+1, V) predictor logits.
      am: (N, T, V) encoder logits.
      symbols: (N, S) int64.
      termination_symbol: blank's id.
      lm_only_scale, am_only_scale: weights of the two parts; the rest goes to their sum.
      boundary: (N, 4) int64 [0, 0, symbols, frames]; None means all of them.
      return_grad: also return the occupation probabilities (px_grad, py_grad) that pruning wants.

    Returns:
      The loss, () or (N,) with reduction "none"; with `return_grad`, (loss, (px_grad, py_grad)).
    """
    px, py = _smoothed_log_probs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
    loss, grads = path_loss(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad)
    return loss if grads is None else (loss, grads)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The loss over the part of the lattice that `ranges` keeps.

    Args:
      logits: (N, T, R, V) the joiner's output on the kept symbols.
      symbols: (N, S) int64.
      ranges: (N, T, R) from `get_rnnt_prune_ranges`.
      termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as in `rnnt_loss_smoothed`.
    """
    px, py = unpruned_log_probs(logits, symbols, ranges, termination_symbol)
    return path_loss(px, py, boundary, rnnt_type, delay_penalty, reduction)[0]


def unpruned_log_probs(logits: Tensor, symbols: Tensor, ranges: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """(px, py) of the whole lattice, (N, S, T) and (N, S+1, T), -inf where pruning left nothing.

    Args: as in `rnnt_loss_pruned`.
    """
    cells = transition_log_probs(logits, next_symbols(symbols, ranges, blank), blank)  # twice (N, T, R)
    return unpruned(*cells, ranges, symbols.shape[1])


def unpruned(symbol: Tensor, blank: Tensor, ranges: Tensor, symbol_count: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the kept cells, twice (N, T, R), as (px, py) of the whole lattice of S symbols."""
    N, T, _ = ranges.shape
    # Row s of the lattice at frame t is cell s - ranges[n, t, 0].
    missing = symbol.new_full((N, T, symbol_count + 1), float("-inf"))
    px = missing.scatter(2, ranges, symbol)[:, :, :symbol_count].transpose(1, 2)  # (N, S, T)
    py = missing.scatter(2, ranges, blank).transpose(1, 2)  # (N, S+1, T)
    return px, py


def next_symbols(symbols: Tensor, ranges: Tensor, blank: int) -> Tensor:
    """(N, T, R): the symbol that each kept cell may emit; blank after the last one."""
    padded = torch.nn.functional.pad(symbols, (0, 1), value=blank)  # (N, S+1)
    return padded.gather(1, ranges.flatten(1)).view_as(ranges)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """The `s_range` symbols kept at each frame: those with the most occupation, moved so that a path exists.

    The first kept symbol starts at 0, never falls, rises by less than `s_range` from frame to frame (by at most
    one where symbols consume frames), and the last frame keeps the last symbol (arXiv 2206.13236, section 3.1).

    Args:
      px_grad, py_grad: occupation probabilities from `rnnt_loss_smoothed`.
      boundary: (N, 4) int64 [0, 0, symbols, frames].
      s_range: symbols to keep; on a CPU raised to what `enough_symbols` says, and cut to S+1.

    Returns:
      (N, T, s_range) int64, consecutive along the last axis.

    Raises:
      ValueError: s_range below 2 for the regular lattice, or below 1.
    """
    N, S, px_frames = px_grad.shape
    T = py_grad.shape[2]
    regular = px_frames == T + 1
    symbol_lens, frame_lens = boundary[:, 2], boundary[:, 3]
    if s_range < (2 if regular else 1):
        raise ValueError(f"prune range {s_range}: no path survives; at least {2 if regular else 1} is needed")
    if regular and boundary.device.type == "cpu":  # elsewhere the host would have to wait
        s_range = enough_symbols(s_range, frame_lens, symbol_lens)
    s_range = min(s_range, S + 1)

    # Occupation of a window = its blanks, less the symbols that enter it from below: they stand on no blank of it.
    occupation = py_grad.unfold(1, s_range, 1).sum(3)  # (N, S+2-s_range, T)
    occupation[:, 1:] -= px_grad[:, : S + 1 - s_range, :T]
    first = occupation.argmax(1)  # (N, T)

    before_last = torch.arange(T, device=first.device) < (frame_lens - 1).unsqueeze(1)
    first = torch.where(before_last, first, (symbol_lens - s_range + 1).clamp(min=0).unsqueeze(1))
    first = _limit_rise(first, s_range - 1 if regular else 1)
    return first.unsqueeze(2) + torch.arange(s_range, device=first.device)


def enough_symbols(s_range: int, frame_lens: Tensor, symbol_lens: Tensor) -> int:
    """`s_range`, or more where an utterance has more symbols than so many per frame can reach, in the regular lattice.

    frame_lens, symbol_lens: (N,), where the host need not wait for them.
    """
    per_frame = torch.div(symbol_lens - 1, frame_lens, rounding_mode="trunc")
    return max(s_range, int(per_frame.max()) + 2)


def _limit_rise(first: Tensor, rise: int) -> Tensor:
    """The largest rows below `first` (N, T) that start at 0, never fall and rise by at most `rise` per frame."""
    slope = rise * torch.arange(first.shape[1], device=first.device)
    first = _lower_envelope(first)
    # "rises by at most `rise`" is "first - slope never rises": the same envelope on the mirrored values.
    return slope - _lower_envelope(slope - first).clamp(min=0)


def _lower_envelope(values: Tensor) -> Tensor:
    """The largest non-falling rows that lie nowhere above `values` (N, T)."""
    return values.flip(1).cummin(1).values.flip(1)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs each frame with its kept symbols: (N, T, J), (N, S+1, J) -> twice (N, T, R, J)."""
    N, T, R = ranges.shape
    S1, width = lm.shape[1:]
    rows = ranges + S1 * torch.arange(N, device=ranges.device).view(N, 1, 1)
    kept = lm.reshape(N * S1, width).index_select(0, rows.flatten()).view(N, T, R, width)
    return am.unsqueeze(2).expand(N, T, R, am.shape[2]), kept


def _smoothed_log_probs(
    lm: Tensor, am: Tensor, symbols: Tensor, blank: int, lm_only: float, am_only: float
) -> tuple[Tensor, Tensor]:
    """(px, py) of the simple loss, (N, S, T) and (N, S+1, T): interpolated log-probabilities of symbols and blanks."""
    N, T, V = am.shape
    S = symbols.shape[1]
    tiny = torch.finfo(am.dtype).tiny

    # log sum_v exp(lm + am) as a matrix product of exponentials, each less its own maximum.
    lm_max, am_max = lm.amax(2, keepdim=True).detach(), am.amax(2, keepdim=True).detach()
    lm_exp, am_exp = (lm - lm_max).exp(), (am - am_max).exp()
    both = (torch.bmm(lm_exp, am_exp.transpose(1, 2)) + tiny).log() + lm_max + am_max.transpose(1, 2)  # (N, S+1, T)

    am_symbol = am.gather(2, symbols.unsqueeze(1).expand(N, T, S)).transpose(1, 2)  # (N, S, T)
    am_blank = am[:, :, blank].unsqueeze(1)  # (N, 1, T)
    lm_symbol = lm[:, :S].gather(2, symbols.unsqueeze(2))  # (N, S, 1)
    lm_blank = lm[:, :, blank].unsqueeze(2)  # (N, S+1, 1)
    px = am_symbol + lm_symbol - both[:, :S]
    py = am_blank + lm_blank - both

    if lm_only != 0.0 or am_only != 0.0:
        lm_sum = lm_exp.sum(2, keepdim=True)  # (N, S+1, 1)
        lm_normalizer = lm_sum.log() + lm_max
        # The encoder-only term stands on the batch's average predictor, a unigram.
        unigram = (lm_exp / lm_sum).mean((0, 1)) + tiny  # (V,)
        am_normalizer = (torch.mv(am_exp.reshape(-1, V), unigram).view(N, T, 1).log() + am_max).transpose(1, 2)
        unigram = unigram.log()
        combined = 1.0 - lm_only - am_only
        px = (
            px * combined
            + (lm_symbol - lm_normalizer[:, :S]) * lm_only
            + (am_symbol + unigram[symbols].unsqueeze(2) - am_normalizer) * am_only
        )
        py = (
            py * combined + (lm_blank - lm_normalizer) * lm_only + (am_blank + unigram[blank] - am_normalizer) * am_only
        )
    return px, py


def path_loss(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_grad: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The loss from log-probabilities px (N, S, T) and py (N, S+1, T), shaped into the lattice of `rnnt_type`.

    Returns:
      The loss, and with `return_grad` the occupation probabilities.
    """
    N, S, T = px.shape
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type {rnnt_type!r}: not one of {', '.join(RNNT_TYPES)}")
    if boundary is None:
        boundary = torch.tensor([[0, 0, S, T]], device=px.device).expand(N, 4)
    frame_lens = boundary[:, 3:]  # (N, 1)
    # elsewhere than on a CPU the host would wait for the answer; there the loss is infinite
    if rnnt_type != "regular" and px.device.type == "cpu" and bool((frame_lens < boundary[:, 2:3]).any()):
        raise ValueError(f"rnnt_type {rnnt_type}: an utterance has fewer frames than symbols")
    if rnnt_type == "constrained":
        px = px + py[:, 1:]
    if delay_penalty > 0.0:
        early = (frame_lens - 1) / 2 - torch.arange(T, device=px.device)  # (N, T) frames before the middle
        px = px + delay_penalty * early.unsqueeze(1).to(px.dtype)
    if rnnt_type == "regular":
        px = closed_after_last_frame(px, frame_lens)
    scores, grads = lattice_scores(px, py, boundary, return_grad)
    if reduction == "none":
        loss = -scores
    elif reduction in ("sum", "mean"):
        loss = -getattr(scores, reduction)()
    else:
        raise ValueError(f"reduction {reduction!r}: not one of none, mean, sum")
    return loss, grads


def closed_after_last_frame(px: Tensor, frame_lens: Tensor) -> Tensor:
    """px (N, S, T) of the regular lattice as (N, S, T+1): nothing is emitted once the last frame's blank is passed.

    frame_lens: (N, 1).
    """
    px = torch.nn.functional.pad(px, (0, 1), value=float("-inf"))
    past = torch.arange(px.shape[2], device=px.device) == frame_lens  # (N, T+1)
    return px.masked_fill(past.unsqueeze(1), float("-inf"))
