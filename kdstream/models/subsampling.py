"""The convolutional front end: 10 ms feature frames to 20 ms encoder frames.

Three 3x3 convolutions, one ConvNeXt block and a projection; parameter names and arithmetic are
icefall's `Conv2dSubsampling`.  Activations are kept in channels-last memory, where the depthwise 7x7
convolution is several times faster on a CPU and the pointwise ones are plain matrix products.

Shapes: N batch, T frames, C channels, F frequencies, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.linear import swoosh_linear
from kdstream.models.on_cpu import depthwise_conv2d, turned
from kdstream.models.scaling import (
    Balancer,
    BiasNorm,
    FloatLike,
    ScaleGrad,
    ScheduledFloat,
    SharedDropout,
    SwooshL,
    SwooshR,
    Whiten,
    scale_init_,
)
from kdstream.models.streaming import LOOKAHEAD, SHORTEST
from kdstream.units import SUBSAMPLING_LOSS

LONGEST_AT_ONCE = 3000  # feature frames; the activations of an utterance of 30 s take some 100 MB


def pieces(x: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Pieces of features (N, T, F), and which frames of each one's output are those of the whole, one after the other.

    A piece begins and ends LOOKAHEAD frames of output earlier and later than what is its own.
    """
    frames = (int(x.size(1)) - SUBSAMPLING_LOSS) // 2
    size = LONGEST_AT_ONCE // 2
    for start in range(0, frames, size):
        end = min(start + size, frames)
        first, last = max(start - LOOKAHEAD, 0), min(end + LOOKAHEAD, frames)
        yield x[:, 2 * first : 2 * last + SUBSAMPLING_LOSS], slice(start - first, end - first)


class ChannelBalancer(Balancer):
    """Balancer for (N, C, T, F) in channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BiasedConv2d(nn.Conv2d):
    """A convolution that has a bias."""

    bias: nn.Parameter


class ConvNeXt(nn.Module):
    """Depthwise 7x7 and two pointwise convolutions around a bottleneck, with a residual connection."""

    kernel = 2 * LOOKAHEAD + 1

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise_conv = BiasedConv2d(channels, channels, self.kernel, groups=channels)
        self.pointwise_conv1 = BiasedConv2d(channels, hidden, 1)
        self.hidden_balancer = Balancer(min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0)
        self.activation = SwooshL()
        self.pointwise_conv2 = scale_init_(BiasedConv2d(hidden, channels, 1), 0.01)
        self.layerdrop_rate = ScheduledFloat((0, 0.2), (20000, 0.015))
        self.out_balancer = Balancer(min_positive=0.4, max_positive=0.6, min_abs=1.0, max_abs=6.0)
        self.out_whiten = Whiten(1, 5.0, 0.01)

    def forward(self, x: Tensor, left: Tensor | None, right: int) -> tuple[Tensor, Tensor | None]:
        """
        Args:
          x: (N, C, T, F), channels-last.
          left: None for a whole utterance; else (N, C, LOOKAHEAD, F), the frames before x.
          right: frames of right context at the end of x, with `left`; the next x begins with them.
        Returns:
          (N, T, F, C), or (N, T - LOOKAHEAD, F, C) with `left`, as the last frames still lack their right
          context; and the new `left`.
        """
        residual, padding = x, LOOKAHEAD
        if left is not None:
            done = int(x.size(2)) - LOOKAHEAD
            residual, padding = x[:, :, :done], 0
            # else the whole would take the memory order of `left`, and the convolution would turn all of it back
            x = torch.cat([left.contiguous(memory_format=torch.channels_last), x], dim=2)
            left = x[:, :, done - right : done - right + LOOKAHEAD]
        x = depthwise_conv2d(x, self.depthwise_conv.weight, padding)
        x = x.permute(0, 2, 3, 1)  # (N, T, F, C), contiguous
        # the depthwise bias goes through the pointwise weight: its own gradient would cost a third of the block
        weight = self.pointwise_conv1.weight.flatten(1)
        x = F.linear(x, weight, self.pointwise_conv1.bias + weight @ self.depthwise_conv.bias)
        weight = self.pointwise_conv2.weight.flatten(1)
        x = swoosh_linear(self.hidden_balancer(x), self.activation, None, weight, self.pointwise_conv2.bias)
        residual = residual.permute(0, 2, 3, 1)
        if self.training:
            keep = torch.rand(x.size(0), 1, 1, 1, device=x.device) > float(self.layerdrop_rate)
            x = torch.addcmul(residual, x, keep.to(x.dtype))
        else:
            x = residual + x
        return self.out_whiten(self.out_balancer(x)), left


class Conv2dSubsampling(nn.Module):
    """80-bin features to vectors of the first stack's width at half the frame rate.

    Args:
      feature_dim: F, at least 7.
      out_channels: D.
      channels: of the three convolutions.
      hidden: width of the ConvNeXt's bottleneck.
    """

    def __init__(
        self, feature_dim: int, out_channels: int, channels: tuple[int, ...], hidden: int, dropout: FloatLike
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=(0, 1)),
            ScaleGrad(0.2),
            ChannelBalancer(max_abs=1.0),
            SwooshR(),
            nn.Conv2d(first, second, 3, stride=2),
            ChannelBalancer(max_abs=4.0),
            SwooshR(),
            nn.Conv2d(second, third, 3, stride=(1, 2)),
            ChannelBalancer(max_abs=4.0),
            SwooshR(),
        )
        self.convnext = ConvNeXt(third, hidden)
        self.out_width = ((feature_dim - 1) // 2 - 1) // 2
        self.channels = third
        self.out = nn.Linear(self.out_width * third, out_channels)
        self.out_whiten = Whiten(1, ScheduledFloat((0, 4.0), (20000, 8.0)), 0.02)
        self.out_norm = BiasNorm(out_channels)
        self.dropout = SharedDropout(dropout)
        self.to(memory_format=torch.channels_last)

    def forward(
        self, x: Tensor, x_lens: Tensor, left: Tensor | None = None, right: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Args:
          x: (N, T, F) features.
          x_lens: (N,) in feature frames.
          left: None for whole utterances; else the ConvNeXt's left context, as `init_state` starts it.
          right: encoder frames of right context, with `left`.
        Returns:
          (N, T', D) with T' = (T - 7) // 2, less LOOKAHEAD where `left` is given; lengths without right context; the
          new left context.
        Raises:
          UserError: an utterance of fewer than 9 frames.
        """
        if x.size(1) < SHORTEST:
            raise UserError(
                f"an utterance of {x.size(1)} feature frames (10 ms): the front end needs at least 9",
                fix="leave it out",
            )
        if left is None and x.size(1) > LONGEST_AT_ONCE and not (self.training or torch.is_grad_enabled()):
            x = torch.cat([self.convolve(piece, None, 0)[0][:, skipped] for piece, skipped in pieces(x)], dim=1)
        else:
            x, left = self.convolve(x, left, right)
        x = self.dropout(self.out_norm(self.out_whiten(x)))
        x_lens = torch.div(x_lens - SUBSAMPLING_LOSS, 2, rounding_mode="floor")
        return x, x_lens if left is None else x_lens - (LOOKAHEAD + right), left

    def convolve(self, x: Tensor, left: Tensor | None, right: int) -> tuple[Tensor, Tensor | None]:
        """`forward` up to the projection, without checks and lengths."""
        x = self.conv(x.unsqueeze(1).contiguous(memory_format=torch.channels_last))  # (N, C, T', F')
        x, left = self.convnext(x, left, right)  # (N, T', F', C)
        weight = turned(self.out.weight, self.channels, self.out_width)
        return F.linear(x.flatten(2), weight, self.out.bias), left

    def init_state(self, batch_size: int, device: torch.device | str) -> Tensor:
        """(N, C, LOOKAHEAD, F') of zeros, as at the start of an utterance."""
        return torch.zeros(batch_size, self.channels, LOOKAHEAD, self.out_width, device=device)
