"""Lengths in time: one definition of the sample rate and of the three frame rates."""

from __future__ import annotations

SAMPLE_RATE = 16000  # samples a second that models hear
FEATURE_FRAME_MS = 10  # of log mel energies
ENCODER_FRAME_MS = 20  # after the convolutional front end; chunk and left context are counted in these
OUTPUT_FRAME_MS = 40  # after the encoder's last downsampling; the transducer's frames
FRAMES_PER_SECOND = 1000 // FEATURE_FRAME_MS  # feature frames
FEATURE_FRAMES_PER_OUTPUT_FRAME = OUTPUT_FRAME_MS // FEATURE_FRAME_MS
# Rates of audio that comes in pieces.  A resampler between two rates without a large common divisor costs megabytes
# and most of a second to make, so only common rates are taken.
SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
SUBSAMPLING_LOSS = 7  # feature frames that the front end's three convolutions consume: T' = (T - 7) // 2


def tail_frames(input_frames: int) -> int:
    """Feature frames (10 ms) of silence that a client sends after an utterance, before input_finished().

    With them a runtime has been through the utterance's last whole chunk, and no further: every runtime decodes as many
    chunks as torch does.  It is the padding that `pad_to_whole_chunks` may need at most, and one frame for which
    sherpa-onnx waits.  Of an utterance of at most 8 feature frames, which fills no encoder frame, a runtime
    decodes nothing.  Torch fills it up to one, and decodes a chunk.

    Args:
      input_frames: feature frames that a step of the encoder reads, an exported encoder's metadata T.
    """
    return input_frames - SUBSAMPLING_LOSS - 1
