"""Checks of cuts, as training and decoding will read them."""

from __future__ import annotations

from lhotse.cut import Cut

from kdstream.data.cuts import text_of
from kdstream.data.features import FBANK_CONFIG
from kdstream.errors import UserError


def check_cut(cut: Cut) -> None:
    """Raises UserError unless the cut has one transcript, within it, and features of the right kind if it has any."""
    if len(cut.supervisions) != 1 or not text_of(cut):
        raise UserError(
            f"cut {cut.id}: {len(cut.supervisions)} supervisions or an empty transcript", fix="it must have one"
        )
    supervision = cut.supervisions[0]
    if supervision.start < -0.01 or supervision.end > cut.duration + 0.01:
        raise UserError(f"cut {cut.id}: its supervision ends outside it", fix="use cuts.trim_to_supervisions()")
    if cut.has_features and cut.num_features != FBANK_CONFIG.num_filters:
        wanted = FBANK_CONFIG.num_filters
        raise UserError(f"cut {cut.id}: {cut.num_features} mel bins instead of {wanted}", fix="use compute_fbank.py")
    if not cut.has_features and not cut.has_recording:
        raise UserError(f"cut {cut.id}: neither features nor a recording", fix="take it out")
