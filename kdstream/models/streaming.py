"""What a streaming encoder must agree on with whoever feeds it: chunks, padding, states, and its own interface.

Lengths: a feature frame is 10 ms, an encoder frame 20 ms (after the convolutional front end), an
output frame 40 ms.  Chunk, left and right context are counted in encoder frames.
Shapes: N batch, T frames, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.units import ENCODER_FRAME_MS, SUBSAMPLING_LOSS, tail_frames

LOG_EPS = math.log(1e-10)  # what batches are padded with, as in icefall
SILENCE = math.log(torch.finfo(torch.float32).eps)  # log energy that the filter bank gives to digital silence
LOOKAHEAD = 3  # encoder frames that the front end's ConvNeXt sees to the right
SHORTEST = SUBSAMPLING_LOSS + 2  # feature frames that make one encoder frame
OUTPUT_DOWNSAMPLING = 2  # encoder frames per output frame

Lens = TypeVar("Lens", int, Tensor)
Cache = Tensor | None  # what a module keeps of a stream's past; None for whole utterances


def frames_of(x: Tensor, caches: object) -> int:
    """T of x (N, T, ...): a constant of a traced step, which has caches; any number of a traced whole utterance."""
    return x.size(1) if caches is None else int(x.size(1))


@dataclass(frozen=True)
class ChunkConfig:
    """A chunk and the left and right context of its frames, in 20 ms encoder frames.

    `left` -1 is unlimited (simulated streaming only); else it must be a multiple of `chunk`, so
    that a cache of `left` frames holds exactly the chunks that the attention mask lets through.

    `right` is look-ahead.  A chunk is computed together with so many frames after it.  They give no output and enter no
    cache, and are computed again with the next chunk: so no frame sees further, however many layers there are.
    """

    chunk: int
    left: int
    right: int = 0

    def __post_init__(self) -> None:
        if self.chunk <= 0:
            raise UserError(f"chunk {self.chunk}: must be positive", fix="use --chunk-size 8,16,... in 20 ms frames")
        if self.left != -1 and (self.left < self.chunk or self.left % self.chunk):
            raise UserError(
                f"left context {self.left}: not a multiple of chunk {self.chunk}",
                fix=f"use --left-context-frames {self.chunk * max(1, round(self.left / self.chunk))}",
            )
        if self.right < 0:
            raise UserError(f"right context {self.right}: below 0", fix="use --right-context-frames 0, 8 or the like")
        if self.right and self.left == -1:
            raise UserError(
                f"right context {self.right} needs a limited left context",
                fix="use --left-context-frames 32 or the like, or --right-context-frames 0",
            )

    @property
    def is_limited(self) -> bool:
        """Whether a frame sees a limited number of others, so that work grows with the utterance, not its square."""
        return self.left >= 0

    def downsampled(self, factor: int) -> ChunkConfig:
        """The same in frames of a stack that downsamples by `factor`."""
        return ChunkConfig(self.chunk // factor, max(-1, self.left // factor), self.right // factor)

    @property
    def step(self) -> int:
        """Encoder frames that one step computes: the chunk and its right context."""
        return self.chunk + self.right

    def places(self, frames: int, device: torch.device) -> Tensor:
        """Where in an utterance the frames of its steps are: (frames,), so many of all steps together."""
        frame = torch.arange(frames, device=device)
        return frame - torch.div(frame, self.step, rounding_mode="floor") * self.right

    @property
    def input_frames(self) -> int:
        """Feature frames (10 ms) that one step reads; successive steps overlap."""
        return 2 * self.step + SUBSAMPLING_LOSS + 2 * LOOKAHEAD

    @property
    def shift(self) -> int:
        """Feature frames (10 ms) from one step to the next."""
        return 2 * self.chunk

    @property
    def tail(self) -> int:
        """Feature frames (10 ms) of silence that a client sends after an utterance; see `tail_frames`."""
        return tail_frames(self.input_frames)

    @property
    def chunk_ms(self) -> int:
        return self.chunk * ENCODER_FRAME_MS

    @property
    def left_ms(self) -> int:
        return self.left * ENCODER_FRAME_MS if self.left >= 0 else -1

    @property
    def right_ms(self) -> int:
        return self.right * ENCODER_FRAME_MS


def chunks_of(config: ModelConfig, size: int) -> list[ChunkConfig]:
    """The chunks of `size` encoder frames that a model is trained with, in the order of its flags.

    These are those with each --left-context-frames and --right-context-frames that fit.
    Raises:
      UserError: none fits.
    """
    lefts = [left for left in config.left_context_frames if left == -1 or (left >= size > 0 and left % size == 0)]
    sides = list(product(lefts or config.left_context_frames[:1], config.right_context_frames))
    fitting = [(left, right) for left, right in sides if left != -1 or right == 0]
    return [ChunkConfig(size, left, right) for left, right in fitting or sides[:1]]


@dataclass
class EncoderState:
    """Caches of a batch of streams between two chunks.  Dimension 0 of every tensor is the stream.

    layers: for each layer, in order, the tensors that its encoder caches (see the encoder's `cache_shapes`).
    embed: (N, C, LOOKAHEAD, F) left padding of the front end's ConvNeXt.
    processed: (N,) int64, encoder frames that each stream has consumed; streams of different ages share a batch.
    """

    layers: list[Tensor]
    embed: Tensor
    processed: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.layers, self.embed, self.processed]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor]) -> EncoderState:
        *layers, embed, processed = tensors
        return EncoderState(list(layers), embed, processed)


def stack_states(states: Sequence[EncoderState]) -> EncoderState:
    """One state of N streams from states of fewer streams each."""
    return EncoderState.from_tensors([torch.cat(group) for group in zip(*(s.tensors() for s in states), strict=True)])


def followed_by_silence(features: Tensor, feature_lens: Tensor, total: int) -> Tensor:
    """(N, total, F): features (N, T, F) where everything at and after feature_lens (N,) is SILENCE."""
    features = F.pad(features, (0, 0, 0, total - features.size(1)), value=SILENCE)  # a negative number cuts
    invalid = torch.arange(total, device=features.device) >= feature_lens.to(features.device).unsqueeze(1)
    return features.masked_fill_(invalid.unsqueeze(2), SILENCE)


def pad_to_whole_chunks(features: Tensor, feature_lens: Tensor, chunk: int, right: int = 0) -> tuple[Tensor, Tensor]:
    """Pads with silence so that every utterance fills whole chunks and its last frame has its look-ahead.

    A runtime hears the same silence if its client sends zeros after the last sample.  Padded like this, an utterance
    gives the same output frames alone, in any batch, and chunk by chunk: no valid frame sees where the batch ends.
    The exception is a causal Zipformer in full context, whose one chunk ends where the batch ends.  For a full-context
    encoder pass its max_downsampling as `chunk`.

    Args:
      features: (N, T, F) log energies, T those of the longest; frames after an utterance are overwritten with SILENCE.
      feature_lens: (N,) in feature frames; utterances of fewer than SHORTEST are padded to it first.
      chunk: encoder frames.
      right: encoder frames of silence after the chunks, which the last step of a stream reads; `Transducer.encode`
        itself adds those of whole utterances.
    Returns:
      features (N, T', F) and the lengths (N,) to pass on with them.
    """
    padded_lens = 2 * padded_encoder_lens(feature_lens.clamp(min=SHORTEST), chunk) + SUBSAMPLING_LOSS
    # by the shape: for the largest of the lengths the host would wait, if a GPU has them
    longest = 2 * padded_encoder_lens(max(features.size(1), SHORTEST), chunk) + SUBSAMPLING_LOSS
    padded = followed_by_silence(features, feature_lens, longest + 2 * (LOOKAHEAD + right))
    # a last odd frame makes no encoder frame, but those before it hear it
    return padded, torch.maximum(padded_lens, feature_lens)


def padded_encoder_lens(feature_lens: Lens, chunk: int) -> Lens:
    """Encoder frames (N,) of utterances of feature_lens (N,) feature frames, filled up to whole chunks."""
    encoder_lens = (feature_lens - SUBSAMPLING_LOSS) // 2
    return (encoder_lens + chunk - 1) // chunk * chunk


def output_lens(feature_lens: Lens) -> Lens:
    """Output frames (N,) of utterances of feature_lens (N,) feature frames."""
    return ((feature_lens - SUBSAMPLING_LOSS) // 2 + 1) // OUTPUT_DOWNSAMPLING


class TapRecorder(Protocol):
    """What looks inside a forward pass: an encoder shows it the layers that it wants, the transducer its posteriors.

    Layers are named stack.layer, counted from 0.

    wants_lattice: whether to record the lattice.
    wants_ctc: whether to record the posteriors of the CTC head.
    wants_full_context: whether to encode the batch in full context too, and to record that.
    """

    wants_lattice: bool
    wants_ctc: bool
    wants_full_context: bool

    def wants(self, name: str) -> bool:
        """Whether to record the layer."""
        ...

    def record(
        self,
        name: str,
        *,
        inputs: Tensor | None = None,
        features: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lens: Tensor,
        stride: int,
    ) -> None:
        """Keeps what a layer did.

        Args:
          inputs: (N, T, D), what the layer was given.
          features: (N, T, D), the layer's output at its own frame rate.
          query, key: (N, T, H * d), as its self-attention projects them, without positions.
          value: (N, T, H * d_v), its first value projection.
          lens: (N,) valid frames.
          stride: encoder frames (20 ms) per frame of the layer.
        """
        ...

    def record_lattice(
        self,
        *,
        encoder_lens: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        decoder_out: Tensor,
        ranges: Tensor,
        logits: Tensor,
    ) -> None:
        """Keeps the part of the transducer's lattice that the pruned loss keeps.

        Args:
          encoder_lens, token_lens: (N,) valid output frames (40 ms) and symbols.
          tokens: (N, S), padded with blank.
          decoder_out: (N, S + 1, D), the predictor's.
          ranges: (N, T, R), the symbols kept at each of T output frames.
          logits: (N, T, R, V), the joiner's.
        """
        ...

    def record_ctc(self, encoder_lens: Tensor, log_probs: Tensor) -> None:
        """Keeps the log posteriors of the CTC head, (N, T, V), of utterances of encoder_lens (N,) output frames."""
        ...

    def record_full_context(self, encoder_out: Tensor) -> None:
        """Keeps what the encoder makes of the batch in full context, (N, T, D) in output frames."""
        ...


class StreamingEncoder(nn.Module):
    """What the transducer asks of an encoder: encoder frames (20 ms) in, output frames (40 ms) out.

    A subclass takes its config alone: __init__(config).

    config: resolved (no None that the encoder would need).
    output_dim: width of the output frames.
    max_downsampling: encoder frames of which every chunk must hold a whole number.
    """

    def __init__(self, config: ModelConfig, output_dim: int, max_downsampling: int) -> None:
        super().__init__()
        self.config = config
        self.output_dim = output_dim
        self.max_downsampling = max_downsampling

    @staticmethod
    def input_dim(config: ModelConfig) -> int:
        """Width of the encoder frames that an encoder of this config takes from the front end."""
        raise NotImplementedError

    @staticmethod
    def streaming_parameters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a full-context transducer as those of a streaming one of the same sizes."""
        raise NotImplementedError

    def cache_shapes(self, chunk: ChunkConfig) -> list[tuple[int, int]]:
        """(frames, width) of every tensor that one stream caches, in order."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        chunk: ChunkConfig | None = None,
        caches: list[Tensor] | None = None,
        processed: Tensor | None = None,
        taps: TapRecorder | None = None,
    ) -> tuple[Tensor, Tensor, list[Cache]]:
        """
        Args:
          x: (N, T, D) from the front end; T counts the right context of the last chunk too.
          x_lens: (N,) in encoder frames, without right context.
          chunk: None for full context; alone, a mask simulates streaming; with `caches`, x is the next chunk.
          caches: (N, frames, width) tensors as `init_caches` or the last step gave them.
          processed: (N,) encoder frames that each stream has consumed before x; with `caches` only.
          taps: records the layers that it wants.
        Returns:
          (N, ceil(T / 2), output_dim), lengths in output frames, new caches.
        Raises:
          UserError: the chunk does not fit the encoder.
        """
        raise NotImplementedError

    def layer(self, name: str) -> nn.Module:
        """The layer that taps call `name`."""
        raise NotImplementedError

    def run_layer(self, layer: nn.Module, x: Tensor, lens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What one layer, or a copy of it, makes of x in full context.

        Args:
          x: (N, T, D) at the layer's own frame rate.
          lens: (N,) valid frames.
        Returns:
          (N, T, D); query, key and value of x as taps record them.
        """
        raise NotImplementedError

    def hidden(self, x: Tensor, x_lens: Tensor, chunk: ChunkConfig | None, processed: Tensor | None) -> Tensor:
        """Which frames nobody may attend to, at the rate of encoder frames; arguments as in `forward`.

        Whole utterances with right context are in steps (see windows.py).

        Returns:
          (N, T) bool, True at padding; in a step (N, left + T), True at cached frames from before a stream's start.
        """
        if chunk is not None:
            self.check_chunk(chunk)
        if processed is None or chunk is None:
            if chunk is not None and chunk.right:
                return chunk.places(x.size(1), x.device) >= x_lens.to(x.device).unsqueeze(1) + chunk.right
            return torch.arange(x.size(1), device=x.device) >= x_lens.to(x.device).unsqueeze(1)
        age = torch.arange(chunk.left, 0, -1, device=processed.device)  # of cached frames, oldest first
        unfilled = age > processed.unsqueeze(1)
        return torch.cat([unfilled, unfilled.new_zeros(processed.size(0), int(x.size(1)))], dim=1)

    def check_chunk(self, chunk: ChunkConfig) -> None:
        """Raises UserError where the encoder cannot run `chunk`."""
        if not self.config.causal:
            raise UserError(
                "this encoder was trained with --causal 0: it cannot run in chunks", fix="leave out --chunk-size"
            )
        for name, frames, flag, first in (
            ("chunk", chunk.chunk, "--chunk-size", 1),
            ("right context", chunk.right, "--right-context-frames", 0),
        ):
            if frames % self.max_downsampling:
                multiples = ",".join(str(self.max_downsampling * i) for i in (first, first + 1, 2 * first + 2))
                raise UserError(
                    f"{name} {frames}: not a multiple of {self.max_downsampling}, the largest downsampling factor",
                    fix=f"use {flag} {multiples},...",
                )

    def init_caches(self, batch_size: int, chunk: ChunkConfig, device: torch.device | str) -> list[Tensor]:
        """Caches of zeros for `batch_size` fresh streams."""
        self.check_chunk(chunk)
        if chunk.left < 0:
            raise UserError(
                "unlimited left context needs an endless cache", fix="use --left-context-frames 32 or the like"
            )
        return [torch.zeros(batch_size, *shape, device=device) for shape in self.cache_shapes(chunk)]
