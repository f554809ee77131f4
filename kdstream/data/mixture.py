"""What an epoch takes of several sets of cuts: mixtures of manifests by weight, and what a teacher transcribed.

What an epoch takes, and in which order, depends on (seed, epoch) alone.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut

from kdstream.data.selection import Selection
from kdstream.errors import UserError, option

REPEATED = "_repeat"  # between the id of a cut and the number of its repetition within an epoch
REPETITION = re.compile(rf"{REPEATED}\d+$")


def ids_in_manifest(cut_id: str) -> list[str]:
    """The ids that a cut of an epoch may have in its manifest: this one, and that of which it may be a repetition."""
    return list(dict.fromkeys((cut_id, REPETITION.sub("", cut_id))))


class CutsInTurn:
    """Cuts of which each epoch takes the next ones of an endless row of shuffled passes over all of them.

    So over the epochs each is used equally often, whether they are more than an epoch takes or fewer.

    Args:
      cuts: read lazily, the same at each reading.
      num_cuts: how many they are.
      per_epoch: how many an epoch takes.
      name: of the row; another name or seed shuffles otherwise.
      seed: of the order in which they are used.
    """

    def __init__(self, cuts: CutSet, num_cuts: int, per_epoch: int, name: str, seed: int) -> None:
        self.cuts, self.num_cuts, self.per_epoch, self.name, self.seed = cuts, num_cuts, per_epoch, name, seed

    def uses(self, epoch: int) -> np.ndarray:
        """How often `epoch` (from 1) takes each cut: (num_cuts,), `per_epoch` in all."""
        begin, end = (epoch - 1) * self.per_epoch, epoch * self.per_epoch
        uses = np.zeros(self.num_cuts, dtype=np.int64)
        for turn in range(begin // self.num_cuts, math.ceil(end / self.num_cuts)):
            seed = zlib.crc32(f"{self.name}/{self.seed}/{turn}".encode())
            order = np.random.default_rng(seed).permutation(self.num_cuts)
            first = turn * self.num_cuts
            uses[order[max(begin - first, 0) : end - first]] += 1
        return uses

    def of_epoch(self, epoch: int) -> CutSet:
        """The cuts that `epoch` takes, in the order of `cuts`."""
        return CutSet(_Repeated(self.cuts, self.uses(epoch)))


class CutsBeside(CutsInTurn):
    """Pseudo-labelled or unlabelled cuts, and the share of them that each epoch takes.

    An epoch goes once through the cuts that are there without them.  Beside these it takes as many as make up `ratio`
    of its utterances.

    Args:
      others: the cuts of an epoch that are there without them.
      ratio: in (0, 1).
    """

    def __init__(self, cuts: CutSet, num_cuts: int, others: int, ratio: float, seed: int, name: str = "pseudo") -> None:
        super().__init__(cuts, num_cuts, max(1, round(others * ratio / (1 - ratio))), name, seed)
        self.others = others

    def mixed_into(self, cuts: CutSet, epoch: int) -> CutSet:
        """The other cuts of `epoch` with its share of these spread evenly among them."""
        return CutSet.mux(cuts, self.of_epoch(epoch), weights=[self.others, self.per_epoch], seed=self.seed)


class Mixture:
    """Several manifests, of each of which an epoch takes its weight in utterances: --mux-weights.

    An epoch ends where the first manifest has been gone through once, as Lhotse's CutSet.mux(stop_early=True) does in
    icefall's finetune.py.  The next epoch takes the next cuts of the other manifests, and not the same ones again.

    Args:
      parts: of each manifest, its name, its cuts (lazily read, the same at each reading) and what was kept of them.
      weights: of the manifests; only their proportions matter.
      seed: of what an epoch takes, and of how it is mixed.

    num_cuts: utterances in an epoch.
    seconds: of speech in an epoch (about).
    """

    def __init__(self, parts: Sequence[tuple[str, CutSet, Selection]], weights: Sequence[float], seed: int) -> None:
        self.parts: list[CutsInTurn] = []
        self.seed, self.num_cuts, self.seconds = seed, 0, 0.0
        length = min(kept.kept / weight for (_, _, kept), weight in zip(parts, weights, strict=True))
        for (name, cuts, kept), weight in zip(parts, weights, strict=True):
            part = CutsInTurn(cuts, kept.kept, max(1, round(length * weight)), f"mux/{len(self.parts)}", seed)
            self.parts.append(part)
            self.num_cuts += part.per_epoch
            self.seconds += part.per_epoch * kept.seconds / kept.kept
            logging.info(f"An epoch takes {part.per_epoch} of the {kept.kept} cuts of {name}")

    def of_epoch(self, epoch: int) -> CutSet:
        """The cuts of one epoch (from 1), each manifest's spread evenly over it."""
        seed = zlib.crc32(f"mux/{self.seed}/{epoch}".encode())
        weights = [float(part.per_epoch) for part in self.parts]
        return CutSet.mux(*(part.of_epoch(epoch) for part in self.parts), weights=weights, seed=seed)

    def all_cuts(self) -> CutSet:
        """All cuts of all manifests, each once."""
        return CutSet.mux(*(part.cuts for part in self.parts), seed=self.seed)


def mix(
    paths: Sequence[Path],
    weights: Sequence[float],
    seed: int,
    select: Callable[[str, list[Path]], tuple[CutSet, Selection]],
) -> Mixture:
    """The mixture of these manifests; `select` gives the cuts of some that can be trained on.

    Raises UserError where there is not one weight for each manifest.
    """
    if len(paths) < 2 or len(paths) != len(weights):
        raise UserError(
            f"{len(weights)} weights for {len(paths)} manifests",
            flag=option("mux_weights", ",".join(f"{weight:g}" for weight in weights)),
            fix="give one for each of two or more --train-cuts or --train-parts",
        )
    parts = [(path.name, *select(f"{path.name}: training", [path])) for path in paths]
    return Mixture(parts, weights, seed)


class _Repeated:
    """Iterates over `cuts`, each as often as `uses` says, afresh each time."""

    is_lazy = True

    def __init__(self, cuts: CutSet, uses: np.ndarray) -> None:
        self.cuts, self.uses = cuts, uses

    def __iter__(self) -> Iterator[Cut]:
        for cut, uses in zip(self.cuts, self.uses.tolist(), strict=True):
            for use in range(uses):  # augmentation draws by id: a repetition must not look like the first use
                yield cut.with_id(f"{cut.id}{REPEATED}{use}") if use else cut
