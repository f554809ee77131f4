"""Dataclass fields as command-line flags: one field is one flag, one default and one help text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import field, fields, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def flag(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      more: `choices`; `minimum`, or `above`, that of which a number must be more; `unset`, what help shows for None.
    """
    return field(default=default, metadata={"help": help, **more})


def from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """A dataclass from JSON values; lists become tuples.  Raises TypeError on unknown names."""
    return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def add_arguments(
    parser: argparse.ArgumentParser, config_class: type, leave_out: Sequence[str] = (), **defaults: Any
) -> None:
    """Adds one flag per flag field of `config_class` but `leave_out`; `defaults` override the fields' own."""
    types = get_type_hints(config_class)
    group = parser.add_argument_group((config_class.__doc__ or config_class.__name__).splitlines()[0])
    for item in fields(config_class):
        if "help" not in item.metadata or item.name in leave_out:
            continue
        default = defaults.get(item.name, item.default)
        _add_flag(group, item, types[item.name], default, _shown(default, item.metadata.get("unset", "by preset")))


def add_overrides(parser: argparse.ArgumentParser, config_class: type, *names: str) -> None:
    """Adds these flags of `config_class` for a script that reads config.json; see `override`."""
    types = get_type_hints(config_class)
    group = parser.add_argument_group("Instead of what config.json has")
    for item in fields(config_class):
        if item.name in names:
            _add_flag(group, item, types[item.name], None, "as config.json has it")


def override(config: Config, args: argparse.Namespace) -> Config:
    """`config` with the flags of `add_overrides` that were given."""
    given = {f.name: getattr(args, f.name, None) for f in fields(config)}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _add_flag(group: Any, item: Any, annotation: Any, default: Any, shown: str) -> None:
    group.add_argument(
        "--" + item.name.replace("_", "-"),
        type=_parser_of(annotation, item.metadata.get("minimum"), item.metadata.get("above")),
        default=default,
        choices=item.metadata.get("choices"),
        help=f"{item.metadata['help']} (default: {shown})",
    )


def from_args(config_class: type[Config], args: argparse.Namespace) -> Config:
    """Reads the flags of `config_class` back out of parsed arguments."""
    return config_class(**{f.name: getattr(args, f.name) for f in fields(config_class) if hasattr(args, f.name)})


def str2bool(text: str) -> bool:
    """0/1, true/false, yes/no, as icefall's flags take them."""
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "y", "t"):
        return True
    if lowered in ("0", "false", "no", "n", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or 1")


def flag_value(value: Any) -> str:
    """A field as it is typed after its flag."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _shown(default: Any, unset: str) -> str:
    if isinstance(default, tuple):
        return flag_value(default) or "none"
    return unset if default is None else str(default) or "empty"


def _parser_of(annotation: Any, minimum: float | None = None, above: float | None = None) -> Any:
    """The argparse type for a field annotation: scalar, bool, X | None or tuple[X, ...]."""
    if get_origin(annotation) is UnionType:  # X | None
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is tuple:
        element = in_range(get_args(annotation)[0], minimum, above)

        def parse_tuple(text: str) -> tuple[Any, ...]:
            return tuple(element(part.strip()) for part in text.split(",") if part.strip())

        parse_tuple.__name__ = f"comma-separated {element.__name__}"
        return parse_tuple
    return str2bool if annotation is bool else in_range(annotation, minimum, above)


def in_range(number: Any, minimum: float | None = None, above: float | None = None) -> Any:
    """The argparse type `number`, for values from `minimum` on or more than `above`; itself where neither is given."""
    if minimum is None and above is None:
        return number

    def parse_number(text: str) -> Any:
        value = number(text)
        if minimum is not None and not value >= minimum:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {minimum}")
        if above is not None and not value > above:
            raise argparse.ArgumentTypeError(f"{text}: must be more than {above}")
        return value

    parse_number.__name__ = number.__name__
    return parse_number
