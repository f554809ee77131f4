"""The table of encoders: what each is built of, its presets, and how it is exported.

One entry adds an encoder; its class keeps the contract of `StreamingEncoder` (streaming.py):

    ENCODERS.add(
        "my",
        EncoderSpec(MyEncoder, presets={"tiny": dict(TINY_ENDS, encoder_dim=(64,))}, per_stack=("encoder_dim",)),
        my_width=flag(3, "Width of my layers."),
    )

Of the presets the Zipformers small, medium and large are icefall's; the rest is ours, tiny is for CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kdstream.config import sections
from kdstream.config.registry import Registry
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError, option
from kdstream.models.conformer import Conformer
from kdstream.models.onnx_step import ConformerStep, EncoderStep, ZipformerStep
from kdstream.models.streaming import StreamingEncoder
from kdstream.models.zipformer import Zipformer


class EncoderClass(Protocol):
    """A subclass of StreamingEncoder: it is made of a config alone."""

    def __call__(self, config: ModelConfig) -> StreamingEncoder: ...

    def input_dim(self, config: ModelConfig) -> int: ...


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder architecture, --encoder.

    encoder: its class.
    presets: by name, a value for each setting that this architecture has, and for those of front end, predictor and
      joiner.  A setting without a default that a preset does not name must not be given.
    per_stack: its settings that hold one value for each stack of layers.
    check: raises UserError where settings do not fit each other.
    step: what sherpa-onnx is to run; None: it cannot be exported.
    """

    encoder: EncoderClass
    presets: Mapping[str, Mapping[str, Any]]
    per_stack: tuple[str, ...] = ()
    check: Callable[[ModelConfig], None] | None = None
    step: type[EncoderStep] | None = None


ENCODERS: Registry[EncoderSpec] = sections.ENCODERS

# The front end is where a CPU spends its time, so tiny's is narrower than icefall's.
TINY_ENDS: dict[str, Any] = dict(frontend_channels=(8, 8, 128), frontend_hidden_dim=64, decoder_dim=160, joiner_dim=160)
ICEFALL_ENDS: dict[str, Any] = dict(
    frontend_channels=(8, 32, 128), frontend_hidden_dim=384, decoder_dim=512, joiner_dim=512
)

ICEFALL: dict[str, Any] = dict(
    ICEFALL_ENDS,
    downsampling_factor=(1, 2, 4, 8, 4, 2),
    encoder_unmasked_dim=(192, 192, 192, 192, 192, 192),
    num_heads=(4, 4, 4, 8, 4, 4),
    query_head_dim=(32,),
    value_head_dim=(12,),
    pos_head_dim=(4,),
    pos_dim=48,
    cnn_module_kernel=(31, 31, 15, 15, 15, 31),
)

ZIPFORMER: dict[str, dict[str, Any]] = {
    "tiny": dict(
        TINY_ENDS,
        num_encoder_layers=(1, 1, 2, 1),
        downsampling_factor=(1, 2, 4, 2),
        encoder_dim=(64, 128, 160, 128),
        encoder_unmasked_dim=(64, 128, 160, 128),
        feedforward_dim=(128, 256, 384, 256),
        num_heads=(4,),
        query_head_dim=(16,),
        value_head_dim=(12,),
        pos_head_dim=(4,),
        pos_dim=48,
        cnn_module_kernel=(15,),
    ),
    "small": dict(
        ICEFALL,
        num_encoder_layers=(2, 2, 2, 2, 2, 2),
        encoder_dim=(192, 256, 256, 256, 256, 256),
        feedforward_dim=(512, 768, 768, 768, 768, 768),
    ),
    "medium": dict(
        ICEFALL,
        num_encoder_layers=(2, 2, 3, 4, 3, 2),
        encoder_dim=(192, 256, 384, 512, 384, 256),
        encoder_unmasked_dim=(192, 192, 256, 256, 256, 192),
        feedforward_dim=(512, 768, 1024, 1536, 1024, 768),
    ),
    "large": dict(
        ICEFALL,
        num_encoder_layers=(2, 2, 4, 5, 4, 2),
        encoder_dim=(192, 256, 512, 768, 512, 256),
        encoder_unmasked_dim=(192, 192, 256, 320, 256, 192),
        feedforward_dim=(512, 768, 1536, 2048, 1536, 768),
    ),
}

CONFORMER: dict[str, dict[str, Any]] = {
    # One stack at 40 ms.  Keys and values are half the width each, so that a frame's cache is of the model's width.
    "tiny": dict(
        TINY_ENDS,
        num_encoder_layers=(6,),
        encoder_dim=(128,),
        feedforward_dim=(512,),
        num_heads=(4,),
        query_head_dim=(16,),
        cnn_module_kernel=(15,),
    ),
    "small": dict(
        ICEFALL_ENDS,
        num_encoder_layers=(16,),
        encoder_dim=(256,),
        feedforward_dim=(1024,),
        num_heads=(4,),
        query_head_dim=(32,),
        cnn_module_kernel=(31,),
    ),
    "medium": dict(
        ICEFALL_ENDS,
        num_encoder_layers=(14,),
        encoder_dim=(512,),
        feedforward_dim=(2048,),
        num_heads=(8,),
        query_head_dim=(32,),
        cnn_module_kernel=(31,),
    ),
}


def check_zipformer(config: ModelConfig) -> None:
    if any(low > dim for low, dim in zip(config.encoder_unmasked_dim, config.encoder_dim, strict=True)):
        raise UserError("wider than --encoder-dim in some stack", flag=option("encoder_unmasked_dim"), fix="lower it")
    if config.pos_dim % 2:
        raise UserError("must be even, as sines and cosines share it", flag=option("pos_dim", config.pos_dim))


def check_conformer(config: ModelConfig) -> None:
    if len(config.num_encoder_layers) != 1:
        raise UserError("a conformer is one stack; give one number of layers", flag=option("num_encoder_layers"))
    for name in ("encoder_dim", "query_head_dim"):
        if getattr(config, name)[0] % 2:
            raise UserError("must be even, as a conformer takes this width in halves", flag=option(name))


ENCODERS.add(
    "zipformer",
    EncoderSpec(
        Zipformer,
        ZIPFORMER,
        per_stack=(
            "downsampling_factor", "encoder_dim", "encoder_unmasked_dim", "feedforward_dim", "num_heads",
            "query_head_dim", "value_head_dim", "pos_head_dim", "cnn_module_kernel",
        ),
        check=check_zipformer,
        step=ZipformerStep,
    ),
)  # fmt: skip
ENCODERS.add(
    "conformer",
    EncoderSpec(
        Conformer,
        CONFORMER,
        per_stack=("encoder_dim", "feedforward_dim", "num_heads", "query_head_dim", "cnn_module_kernel"),
        check=check_conformer,
        step=ConformerStep,
    ),
)
