"""Lengths in time: one definition of the sample rate and of the three frame rates."""

from __future__ import annotations

ENCODER_FRAME_MS = 20  # after the convolutional front end; chunk and left context are counted in these
FRAMES_PER_SECOND = 100
SAMPLE_RATE = 16000
