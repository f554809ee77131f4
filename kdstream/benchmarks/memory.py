"""Peak memory: resident memory on the CPU, which Linux alone tells, and allocated memory on a GPU."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from kdstream.errors import UserError

KILOBYTE, MEGABYTE = 1024, 1024**2


class PeakMemory:
    """The highest number of bytes since `start`, above the number at `start`."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device if device.type == "cuda" else None

    def start(self) -> None:
        if self.gpu is not None:
            torch.cuda.reset_peak_memory_stats(self.gpu)
            self.before = torch.cuda.memory_allocated(self.gpu)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # makes the kernel forget the peak
            self.before = self.resident("VmRSS")

    def read(self) -> int:
        peak = self.resident("VmHWM") if self.gpu is None else torch.cuda.max_memory_allocated(self.gpu)
        return peak - self.before

    @staticmethod
    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * KILOBYTE for line in lines if line.startswith(field))


def told_by(command: Sequence[str]) -> float:
    """The megabytes that a command prints last, as bytes.  Raises UserError where it fails."""
    # Otherwise glibc keeps freed tensors, and resident memory tells what was used at some time.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: failed as shown above", fix="give --memory 0")
    return int(done.stdout.splitlines()[-1]) / MEGABYTE
