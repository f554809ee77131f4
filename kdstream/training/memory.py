"""A GPU's memory: how much is in use, and whether it is enough for the largest batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice

import torch
from lhotse import CutSet

from kdstream.data.batch import Batch
from kdstream.data.cuts import iterate
from kdstream.data.loader import BatchLoader
from kdstream.errors import UserError, option

SCANNED = 200  # batches of each process, which come in random order; all of a million cuts would take minutes


def max_memory_mb(device: torch.device) -> int | None:
    """Peak memory of a GPU so far, in MB; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) // 1_000_000 if device.type == "cuda" else None


def scan_for_oom(
    loader: BatchLoader, try_batch: Callable[[Batch], None], max_duration: float, device: torch.device
) -> None:
    """Tries the batches that need most memory among the first ones, so that too large a --max-duration shows now.

    Args:
      loader: of a training epoch.
      try_batch: forward and backward of one batch, in this process alone: others may try more batches or fewer.
    Raises:
      UserError: the GPU has too little memory for a batch.
    """
    for cuts in heaviest(list(islice(loader.cut_batches, SCANNED))):
        batch = loader.read(cuts)
        try:
            try_batch(batch)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise UserError(
                f"the GPU ran out of memory on a batch of {len(cuts)} cuts, the longest of {longest(cuts):g} s",
                flag=option("max_duration", f"{max_duration:g}"),
                fix=f"lower it, and raise {option('accum_grad')} to make up for it",
            ) from error
    logging.info(f"No batch needs more than {max_memory_mb(device)}MB")


def heaviest(batches: list[CutSet]) -> list[CutSet]:
    """The batches with the longest cut, with most seconds, padding included, and with most cuts; none of them twice."""
    if not batches:
        return []
    found = (max(batches, key=measure) for measure in (longest, lambda cuts: len(cuts) * longest(cuts), len))
    return list({id(cuts): cuts for cuts in found}.values())


def longest(cuts: CutSet) -> float:
    """Seconds of the longest cut."""
    return max(cut.duration for cut in iterate(cuts))
