"""Lengths in time: one definition of the sample rate and of the three frame rates."""

from __future__ import annotations

SAMPLE_RATE = 16000  # samples a second that models hear
FEATURE_FRAME_MS = 10  # of log mel energies
ENCODER_FRAME_MS = 20  # after the convolutional front end; chunk and left context are counted in these
OUTPUT_FRAME_MS = 40  # after the encoder's last downsampling; the transducer's frames
FRAMES_PER_SECOND = 1000 // FEATURE_FRAME_MS  # feature frames
FEATURE_FRAMES_PER_OUTPUT_FRAME = OUTPUT_FRAME_MS // FEATURE_FRAME_MS
