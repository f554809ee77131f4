"""What a streaming encoder must agree on with whoever feeds it: chunks, padding and states.

Lengths: a feature frame is 10 ms, an encoder frame 20 ms (after the convolutional front end), an
output frame 40 ms.  Chunk and left context are counted in encoder frames.
Shapes: N batch, T frames, D model width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from kdstream.config import ENCODER_FRAME_MS, UserError

LOG_EPS = math.log(1e-10)  # log energy of silence: what batches are padded with
SUBSAMPLING_LOSS = 7  # feature frames that the front end's three convolutions consume: T' = (T - 7) // 2
LOOKAHEAD = 3  # encoder frames that the front end's ConvNeXt sees to the right


@dataclass(frozen=True)
class ChunkConfig:
    """A chunk and the left context that its frames attend to, in 20 ms encoder frames.

    `left` -1 is unlimited (simulated streaming only); else it must be a multiple of `chunk`, so
    that a cache of `left` frames holds exactly the chunks that the attention mask lets through.
    """

    chunk: int
    left: int

    def __post_init__(self) -> None:
        if self.chunk <= 0:
            raise UserError(f"chunk {self.chunk}: must be positive; use --chunk-size 8,16,... in 20 ms frames")
        if self.left != -1 and (self.left < self.chunk or self.left % self.chunk):
            raise UserError(
                f"left context {self.left}: not a multiple of chunk {self.chunk}; "
                f"use --left-context-frames {self.chunk * max(1, round(self.left / self.chunk))}"
            )

    @property
    def input_frames(self) -> int:
        """Feature frames (10 ms) that one step reads; successive steps overlap."""
        return 2 * self.chunk + SUBSAMPLING_LOSS + 2 * LOOKAHEAD

    @property
    def shift(self) -> int:
        """Feature frames (10 ms) from one step to the next."""
        return 2 * self.chunk

    @property
    def chunk_ms(self) -> int:
        return self.chunk * ENCODER_FRAME_MS

    @property
    def left_ms(self) -> int:
        return self.left * ENCODER_FRAME_MS if self.left >= 0 else -1


@dataclass
class EncoderState:
    """Caches of a batch of streams between two chunks.  Dimension 0 of every tensor is the stream.

    layers: for each layer, in order, the tensors that its encoder caches (see the encoder's `init_state`).
    embed: (N, C, LOOKAHEAD, F) left padding of the front end's ConvNeXt.
    processed: (N,) int64, encoder frames that each stream has consumed; streams of different ages share a batch.
    """

    layers: List[Tensor]
    embed: Tensor
    processed: Tensor

    def tensors(self) -> List[Tensor]:
        return [*self.layers, self.embed, self.processed]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor]) -> "EncoderState":
        *layers, embed, processed = tensors
        return EncoderState(list(layers), embed, processed)


def stack_states(states: Sequence[EncoderState]) -> EncoderState:
    """One state of N streams from states of fewer streams each."""
    return EncoderState.from_tensors([torch.cat(group) for group in zip(*(s.tensors() for s in states))])


def pad_to_whole_chunks(features: Tensor, feature_lens: Tensor, chunk: int) -> Tuple[Tensor, Tensor]:
    """Pads with silence so that every utterance fills whole chunks, with the look-ahead of its last frame.

    After it an utterance gives the same output frames alone, in any batch, and chunk by chunk: no
    valid frame sees where the batch ends.  For a full-context encoder pass its largest downsampling
    factor as `chunk`.

    Args:
      features: (N, T, F) log energies; frames at and after feature_lens are overwritten with LOG_EPS.
      feature_lens: (N,) in feature frames; at least SUBSAMPLING_LOSS + 2.
      chunk: encoder frames.
    Returns:
      features (N, T', F) and the lengths (N,) to pass on with them.
    """
    padded_lens = 2 * padded_encoder_lens(feature_lens, chunk) + SUBSAMPLING_LOSS
    total = int(padded_lens.max()) + 2 * LOOKAHEAD
    padded = features.new_full((features.size(0), total, features.size(2)), LOG_EPS)
    frames = min(total, features.size(1))
    valid = torch.arange(frames, device=features.device) < feature_lens.to(features.device).unsqueeze(1)  # (N, T)
    padded[:, :frames] = torch.where(valid.unsqueeze(2), features[:, :frames], padded[:, :frames])
    return padded, padded_lens


def padded_encoder_lens(feature_lens: Tensor, chunk: int) -> Tensor:
    """Encoder frames (N,) of utterances of feature_lens (N,) feature frames, filled up to whole chunks."""
    encoder_lens = (feature_lens - SUBSAMPLING_LOSS) // 2
    return (encoder_lens + chunk - 1) // chunk * chunk
