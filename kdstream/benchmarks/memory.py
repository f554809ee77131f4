"""Peak memory: resident memory on the CPU, which Linux alone tells, and allocated memory on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

KILOBYTE, MEGABYTE = 1024, 1024**2


class PeakMemory:
    """The highest number of bytes since `start`, above the number at `start`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # makes the kernel forget the peak
        self.before = torch.cuda.memory_allocated() if self.cuda else self.resident("VmRSS")

    def read(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else self.resident("VmHWM")) - self.before

    @staticmethod
    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * KILOBYTE for line in lines if line.startswith(field))
