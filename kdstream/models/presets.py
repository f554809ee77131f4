"""From the flags to a model that can be built: what is not given is filled in from the preset, and checked."""

from __future__ import annotations

from dataclasses import replace

from kdstream.config.flags import flags_of
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError, option
from kdstream.models.encoders import ENCODERS


def resolve(config: ModelConfig) -> ModelConfig:
    """Fills every None from the preset and checks that the settings agree.

    Raises:
      UserError: an unknown encoder or preset, a flag that the encoder does not have, a per-stack flag of the wrong
        length, a width or a kernel that cannot be.
    """
    kind = ENCODERS.find(config.encoder)
    check_preset(config.encoder, config.preset, "preset")
    preset = kind.presets[config.preset]
    check_settings_are_its_own(config)
    config = replace(config, **{name: value for name, value in preset.items() if getattr(config, name) is None})
    config = replace(config, **spread_over_stacks(config, kind.per_stack))
    if any(kernel % 2 == 0 for kernel in config.cnn_module_kernel or ()):
        raise UserError("must be odd, so that a frame lies in the middle", flag=option("cnn_module_kernel"))
    if len(config.frontend_channels) != 3:
        raise UserError(
            "the front end has three convolutions", flag=option("frontend_channels"), fix="name the channels of each"
        )
    if config.decoder_dim % 4:
        raise UserError(
            "must be a multiple of 4, the channels of one of its groups", flag=option("decoder_dim", config.decoder_dim)
        )
    if kind.check is not None:
        kind.check(config)
    return config


def check_preset(encoder: str, preset: str, name: str) -> None:
    """Raises UserError, with the setting `name`, for a preset that the encoder lacks."""
    presets = ENCODERS.find(encoder).presets
    if preset not in presets:
        problem = f"unknown for {option('encoder', encoder)}"
        raise UserError(problem, flag=option(name, preset), fix=f"use one of {', '.join(presets)}")


def check_settings_are_its_own(config: ModelConfig) -> None:
    """Raises UserError for a setting that another encoder has and this one lacks."""
    preset = ENCODERS.find(config.encoder).presets[config.preset]
    of_others = {name for encoder, names in ENCODERS.settings.items() if encoder != config.encoder for name in names}
    for item in flags_of(ModelConfig):
        lacking = item.name in of_others or item.default is None and item.name not in preset
        if lacking and getattr(config, item.name) != item.default:
            raise UserError(f"a {config.encoder} has no such setting", flag=option(item.name), fix="leave it out")


def spread_over_stacks(config: ModelConfig, per_stack: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The settings in `per_stack`, one value for each stack.  Raises UserError if there are too few or too many."""
    stacks, spread = len(config.num_encoder_layers or (1,)), {}
    for name in per_stack:
        values = getattr(config, name)
        if len(values) not in (1, stacks):
            raise UserError(
                f"{len(values)} values for {stacks} stacks (--num-encoder-layers)",
                flag=option(name),
                fix=f"give 1 or {stacks}" if stacks > 1 else "give 1",
            )
        spread[name] = values * stacks if len(values) == 1 else values
    return spread
