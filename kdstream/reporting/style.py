"""The look of every plot: a file for a phone, 720 pixels wide, with large letters."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kdstream.files import replacing

COLOURS = (
    "#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c77800", "#4a4a4a", "#17a2b8", "#a0522d", "#d63384", "#7a8b00",
)  # fmt: skip
PHONE: dict[Any, Any] = {
    "font.size": 15,
    "axes.titlesize": 16,
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "kdstream",  # without it, names in a file are random
    "text.parse_math": False,  # names and transcripts may hold a $
}
WIDTH = 7.2  # inches; 720 pixels, a phone's width


def phone_style() -> AbstractContextManager[None]:
    """The context in which to draw."""
    return plt.rc_context(PHONE)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG or SVG, the same bytes for the same figure, and closes it."""
    with replacing(path) as temporary:
        dated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, format=path.suffix.lstrip("."), metadata=dated)
    plt.close(figure)
