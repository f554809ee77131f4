"""Checks of cuts, as training and decoding will read them."""

from __future__ import annotations

from pathlib import Path

from lhotse.cut import Cut

from kdstream.data.checks import check_readable, check_text
from kdstream.data.cuts import text_of
from kdstream.errors import UserError


def check_cut(cut: Cut, path: Path) -> None:
    """Raises UserError, which names `path`, unless the cut has one transcript, said in it, and can be read."""
    check_readable(cut, from_audio=False, path=path)
    if not text_of(cut):
        raise UserError(f"{path}: cut {cut.id}: no transcript", fix="fill it or take the cut out")
    check_text(cut, path)
