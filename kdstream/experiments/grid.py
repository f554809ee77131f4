"""A flag and its values, as --grid takes them, and how the points of a grid are decoded."""

from __future__ import annotations

import argparse
from typing import NamedTuple

COMMANDS = {"simulated": "decode", "chunkwise": "streaming-decode"}  # by --mode


class Axis(NamedTuple):
    """A flag, without its dashes, and the values it takes."""

    name: str
    values: tuple[str, ...]


def parse_values(text: str) -> tuple[str, ...]:
    """Reads a,b or, of values that hold commas, a|b; a| is one of them."""
    separator = "|" if "|" in text else ","
    return tuple(value.strip() for value in text.removesuffix("|").split(separator))


def parse_axis(text: str) -> Axis:
    """Reads kd-apc-shift=1,2,4 or kd-layers=2.0,3.1|1.0.  Raises ArgumentTypeError for anything else."""
    name, _, values = text.partition("=")
    axis = Axis(name.lstrip("-"), parse_values(values))
    if not axis.name or "" in axis.values or len(set(axis.values)) < max(2, len(axis.values)):
        raise argparse.ArgumentTypeError(
            f"{text}: wants a flag and two or more different values, as in kd-apc-shift=1,2,4"
        )
    return axis
