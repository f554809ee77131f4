"""Named architectures.  small, medium and large are icefall's; tiny is ours, for CPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict

from kdstream.config import ModelConfig, UserError

ICEFALL: Dict[str, Any] = dict(
    downsampling_factor=(1, 2, 4, 8, 4, 2),
    encoder_unmasked_dim=(192, 192, 192, 192, 192, 192),
    num_heads=(4, 4, 4, 8, 4, 4),
    query_head_dim=(32,),
    value_head_dim=(12,),
    pos_head_dim=(4,),
    pos_dim=48,
    cnn_module_kernel=(31, 31, 15, 15, 15, 31),
    frontend_channels=(8, 32, 128),
    frontend_hidden_dim=384,
    decoder_dim=512,
    joiner_dim=512,
)

ZIPFORMER: Dict[str, Dict[str, Any]] = {
    # The front end is where a CPU spends its time, so it is narrower than icefall's.
    "tiny": dict(
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
        frontend_channels=(8, 8, 128),
        frontend_hidden_dim=64,
        decoder_dim=160,
        joiner_dim=160,
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


def resolve(config: ModelConfig) -> ModelConfig:
    """Fills every None from the preset and checks that the stacks agree.

    Raises:
      UserError: an unknown preset, a per-stack flag of the wrong length, an even kernel.
    """
    if config.preset not in ZIPFORMER:
        raise UserError(f"--preset {config.preset}: unknown; use one of {', '.join(ZIPFORMER)}")
    preset = ZIPFORMER[config.preset]
    config = replace(config, **{name: value for name, value in preset.items() if getattr(config, name) is None})
    stacks = len(config.num_encoder_layers)
    spread = {}
    for name in PER_STACK:
        values = getattr(config, name)
        if len(values) not in (1, stacks):
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag}: {len(values)} values for {stacks} stacks (--num-encoder-layers); give 1 or {stacks}"
            )
        spread[name] = values * stacks if len(values) == 1 else values
    if any(kernel % 2 == 0 for kernel in spread["cnn_module_kernel"]):
        raise UserError("--cnn-module-kernel: kernels must be odd, so that a frame lies in the middle")
    if any(low > dim for low, dim in zip(spread["encoder_unmasked_dim"], spread["encoder_dim"])):
        raise UserError("--encoder-unmasked-dim: wider than --encoder-dim in some stack; lower it")
    return replace(config, **spread)


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
