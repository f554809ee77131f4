"""Odd inputs one after another, and how many of each kind were handled and refused."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from odd import messages
from odd.audio import odd_audio
from odd.experiments import odd_checkpoint, odd_config, odd_features, odd_flag, odd_tokenizer
from odd.harness import Case, run
from odd.manifests import odd_cut, odd_field, odd_manifest, odd_text
from odd.world import World

# By kind: what makes an input of it, and its share of all inputs.
KINDS: dict[str, tuple[Callable[[World, random.Random, Path], Case], float]] = {
    "manifest": (odd_manifest, 0.10),
    "field": (odd_field, 0.14),
    "cut": (odd_cut, 0.12),
    "text": (odd_text, 0.08),
    "audio": (odd_audio, 0.14),
    "features": (odd_features, 0.06),
    "tokenizer": (odd_tokenizer, 0.04),
    "checkpoint": (odd_checkpoint, 0.07),
    "config": (odd_config, 0.07),
    "flags": (odd_flag, 0.10),
}
MESSAGES = "messages"
SHARE_OF_MESSAGES = 0.08


class Trial(NamedTuple):
    """How one odd input was taken.  ended: "refused" or "handled".  fault: "" where it was taken rightly."""

    kind: str
    number: int
    what: str
    ended: str
    fault: str
    folder: Path


def try_odd_input(world: World, folder: Path, count: int, seed: int, kinds: Sequence[str] = ()) -> Iterator[Trial]:
    """Tries about `count` inputs, each drawn by (seed, kind, number) alone.

    Inputs that were taken rightly are deleted from `folder`.
    """
    for kind, (make, share) in KINDS.items():
        for number in range(round(count * share) if not kinds or kind in kinds else 0):
            place = folder / f"{kind}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            case = make(world, random.Random(f"{seed} {kind} {number}"), place)
            outcome = run(case.argv, place)
            ended, fault = case.verdict(outcome)
            yield Trial(kind, number, case.what, ended, fault, place)
            if not fault:
                shutil.rmtree(place)
    if not kinds or MESSAGES in kinds:
        for number, (what, ended, fault) in enumerate(messages.faults(world, round(count * SHARE_OF_MESSAGES), seed)):
            yield Trial(MESSAGES, number, what, ended, fault, world.folder / "serve.log")


def count_by_kind(trials: Sequence[Trial]) -> str:
    """A Markdown table."""
    lines = ["| kind | inputs | handled | refused | faults |", "|---|---:|---:|---:|---:|"]
    for kind in [*dict.fromkeys(trial.kind for trial in trials), "all"]:
        some = [trial for trial in trials if kind in (trial.kind, "all")]
        handled, refused = (sum(t.ended == way and not t.fault for t in some) for way in ("handled", "refused"))
        lines.append(f"| {kind} | {len(some)} | {handled} | {refused} | {len(some) - handled - refused} |")
    return "\n".join(lines)
