"""What is stated of GPUs, and of trainings on them."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """memory: bytes.  bandwidth: bytes a second between it and the processor.  Both as the data sheet has them."""

    memory: float
    bandwidth: float


GPUS = {
    "t4": Gpu(16e9, 320e9),
    "v100": Gpu(32e9, 900e9),
    "a10": Gpu(24e9, 600e9),
    "l4": Gpu(24e9, 300e9),
    "l40s": Gpu(48e9, 864e9),
    "rtx4090": Gpu(24e9, 1008e9),
    "a100": Gpu(80e9, 2039e9),
    "h100": Gpu(80e9, 3350e9),
    "h200": Gpu(141e9, 4800e9),
}

# An epoch of icefall's Zipformer medium, 960 h at three speeds (2,880 h by its count), in half precision, with
# --max-duration 1000 takes 1 h 7 min on four V100 with 32 GB: github.com/k2-fsa/icefall/pull/1058.
STATED_GPU, STATED_PRESET = "v100", "medium"
STATED_SPEED = 2880 * 3600 / (4 * 67 * 60)  # seconds of speech a second on one GPU
STATED = "icefall's pull request 1058"

# The largest batch of all GPUs together that icefall's RESULTS.md has: eight times --max-duration 2200.
LARGEST_BATCH = 8 * 2200.0  # seconds of speech
