"""Named architectures.  The Zipformers small, medium and large are icefall's; the rest is ours, tiny is for CPUs.

What a preset names are the settings that its encoder has; the others stay None.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError

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

PRESETS = {"zipformer": ZIPFORMER, "conformer": CONFORMER}


def resolve(config: ModelConfig) -> ModelConfig:
    """Fills every None from the preset and checks that the settings agree.

    Raises:
      UserError: an unknown preset, a flag that the encoder does not have, a per-stack flag of the wrong length,
        a width or a kernel that cannot be.
    """
    presets = PRESETS[config.encoder]
    if config.preset not in presets:
        names = ", ".join(presets)
        raise UserError(f"--preset {config.preset}: unknown for --encoder {config.encoder}; use one of {names}")
    preset = presets[config.preset]
    for item in fields(config):
        if item.default is None and item.name not in preset and getattr(config, item.name) is not None:
            raise UserError(f"{flag(item.name)}: a {config.encoder} has no such setting; leave it out")
    config = replace(config, **{name: value for name, value in preset.items() if getattr(config, name) is None})
    config = replace(config, **spread_over_stacks(config))
    if any(kernel % 2 == 0 for kernel in config.cnn_module_kernel):
        raise UserError("--cnn-module-kernel: kernels must be odd, so that a frame lies in the middle")
    if len(config.frontend_channels) != 3:
        raise UserError("--frontend-channels: the front end has three convolutions; name the channels of each")
    if config.decoder_dim % 4:
        raise UserError(f"--decoder-dim {config.decoder_dim}: not a multiple of 4, the channels of one of its groups")
    if config.pos_dim is not None and config.pos_dim % 2:
        raise UserError(f"--pos-dim {config.pos_dim}: must be even, as sines and cosines share it")
    (check_conformer if config.encoder == "conformer" else check_zipformer)(config)
    return config


def spread_over_stacks(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The settings in PER_STACK, one value for each stack.  Raises UserError if there are too few or too many."""
    stacks, spread = len(config.num_encoder_layers), {}
    for name in PER_STACK:
        values = getattr(config, name)
        if values is None:
            continue
        if len(values) not in (1, stacks):
            raise UserError(
                f"{flag(name)}: {len(values)} values for {stacks} stacks (--num-encoder-layers); give 1 or {stacks}"
            )
        spread[name] = values * stacks if len(values) == 1 else values
    return spread


def check_zipformer(config: ModelConfig) -> None:
    if any(low > dim for low, dim in zip(config.encoder_unmasked_dim, config.encoder_dim, strict=True)):
        raise UserError("--encoder-unmasked-dim: wider than --encoder-dim in some stack; lower it")


def check_conformer(config: ModelConfig) -> None:
    if len(config.num_encoder_layers) != 1:
        raise UserError("--num-encoder-layers: a conformer is one stack; give one number of layers")
    for name in ("encoder_dim", "query_head_dim"):
        if getattr(config, name)[0] % 2:
            raise UserError(f"{flag(name)}: a conformer's must be even, as it takes this width in halves")


def flag(name: str) -> str:
    """As it is on the command line."""
    return "--" + name.replace("_", "-")


PER_STACK = (
    "downsampling_factor",
    "encoder_dim",
    "encoder_unmasked_dim",
    "feedforward_dim",
    "num_heads",
    "query_head_dim",
    "value_head_dim",
    "pos_head_dim",
    "cnn_module_kernel",
)
