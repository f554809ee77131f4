"""Dataclass fields as command-line flags: one field is one flag, one default and one help text."""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from types import UnionType
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from kdstream.errors import UserError, option


class Flag(NamedTuple):
    """One setting: its name, with underscores, its type, its default and its help text.

    more: `choices`; `minimum`, or `above`, that of which a number must be more; `maximum`; `text`, a pattern of what
      may stand instead of a number, and `example`, such a text; `unset`, what help shows for None and an empty tuple.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    more: Mapping[str, Any]


LARGEST = 2**31 - 1  # of whole numbers
LARGEST_PORT = 2**16 - 1
NEGATIVE_NUMBER = re.compile(r"-\.?\d")  # how it begins
RANGE = ("minimum", "above", "maximum")  # of `Flag.more`: arguments of `range_fault`
EXTENSIONS: dict[type, dict[str, Flag]] = {}  # by section: flags that `extend` has added


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the dataclasses of settings.

    extensions: values of the flags that `extend` has added; they read like fields, and stand in config.json.
    """

    extensions: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__.get("extensions", {})
        added = added_to(type(self))
        if name in given:
            return given[name]
        if name not in added:
            raise AttributeError(f"{type(self).__name__} has no setting {name}")
        return added[name].default


Config = TypeVar("Config", bound=Section)


def flag(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
      more: see `Flag`.
    """
    return field(default=default, metadata={"help": help, **more})


def extend(section: type, **flags: Any) -> None:
    """Adds flags to a section from outside: extend(DistillConfig, kd_my_scale=flag(0.0, "Weight of my loss.")).

    The type of a flag is that of its default; an empty tuple is one of texts.  Raises ValueError where the section has
    a setting of this name.
    """
    added = EXTENSIONS.setdefault(section, {})
    for name, item in flags.items():
        if name in added or name in {f.name for f in fields(section)}:
            raise ValueError(f"{section.__name__} has a setting {name} already")
        more = dict(item.metadata)
        added[name] = Flag(name, _annotation_of(item.default), item.default, more.pop("help"), more)


def added_to(section: type) -> dict[str, Flag]:
    """The flags that `extend` has added to a section, or to those that it is made of."""
    return {name: item for part in reversed(section.__mro__) for name, item in EXTENSIONS.get(part, {}).items()}


def _annotation_of(default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple[type(default[0]) if default else str, ...]
    return type(default)


def flags_of(section: type) -> list[Flag]:
    """The flags of a section, those that `extend` has added last."""
    types = get_type_hints(section)
    own = [
        Flag(f.name, types[f.name], f.default, f.metadata["help"], f.metadata)
        for f in fields(section)
        if "help" in f.metadata
    ]
    return [*own, *added_to(section).values()]


def settings_of(section: Any) -> dict[str, Any]:
    """All settings by name, those of added flags among them, with their defaults where they are not given."""
    values = asdict(section)
    given = values.pop("extensions", {})
    defaults = {name: item.default for name, item in added_to(type(section)).items()}
    return {**values, **defaults, **given}


def with_settings(section: Config, **values: Any) -> Config:
    """`dataclasses.replace` that knows added flags too; of these, defaults are not kept."""
    own = {f.name for f in fields(section)}
    added = {name: value for name, value in values.items() if name not in own}
    values = {name: value for name, value in values.items() if name in own}
    if added:
        flags = added_to(type(section))
        kept = {**section.extensions, **added}
        values["extensions"] = {
            name: value for name, value in kept.items() if name not in flags or value != flags[name].default
        }
    return replace(section, **values)


def to_dict(section: Any) -> dict[str, Any]:
    """The inverse of `from_dict`."""
    return {name: value for name, value in asdict(section).items() if name != "extensions" or value}


def from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """A dataclass from JSON values; lists become tuples.

    Raises TypeError for an unknown name, or a value that the flag of its name would not take.
    """

    def tuples(items: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(v) if isinstance(v, list) else v for name, v in items.items()}

    values = tuples(values)
    if "extensions" in values:
        values["extensions"] = tuples(values["extensions"])
    defaults = {f.name: f.default for f in fields(config_class)}
    types = get_type_hints(config_class)
    ranges = {item.name: item.more for item in flags_of(config_class)}
    for name in values.keys() & defaults.keys() - {"extensions"}:
        if not _may_be(values[name], types[name], defaults[name], ranges.get(name, {})):
            raise TypeError(f"{name} is {values[name]!r}")
    return config_class(**values)


def _may_be(value: Any, annotation: Any, default: Any, more: Mapping[str, Any]) -> bool:
    """Whether a setting may have this value: one of its type and in its range, or its default."""
    if value is None or value == default:
        return default is None or value is not None
    if get_origin(annotation) is tuple:
        element = get_args(annotation)[0]
        return isinstance(value, tuple) and all(_may_be(each, element, ..., more) for each in value)
    if annotation is bool or isinstance(value, bool):
        return annotation is bool and isinstance(value, bool)
    if not isinstance(value, (int, float) if annotation is float else annotation):
        return False
    if isinstance(value, str):
        return "text" not in more or more["text"].fullmatch(value) is not None
    return not range_fault(value, **_range_of(more))


def _range_of(more: Mapping[str, Any]) -> dict[str, float]:
    return {name: more[name] for name in RANGE if name in more}


def range_fault(
    value: float, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> str:
    """What a number must be and is not; "" if nothing is wrong with it.  No setting is NaN or infinite."""
    if not math.isfinite(value):
        return "must be a number"
    if minimum is not None and value < minimum:
        return f"must be at least {minimum}"
    if above is not None and value <= above:
        return f"must be more than {above}"
    if maximum is None and isinstance(value, int):
        maximum = LARGEST
    if maximum is not None and value > maximum:
        return f"must be at most {maximum}"
    return ""


def check_values(*sections: Section) -> None:
    """Raises UserError for a value that its flag would not take; for settings that no parser has read."""
    read = [(settings_of(section), item) for section in sections for item in flags_of(type(section))]
    for values, item in read:
        value, choices = values[item.name], item.more.get("choices")
        if choices and value not in choices:
            raise UserError("unknown", flag=option(item.name, value), fix=f"use one of {', '.join(choices)}")
        is_number = isinstance(value, (int, float))
        fault = range_fault(value, **_range_of(item.more)) if is_number else ""
        if fault:
            raise UserError(fault, flag=option(item.name, value))


def not_at_default(section: Section, names: Collection[str]) -> list[str]:
    """Those of the settings `names` that are not at their defaults, as they are typed."""
    return [
        option(item.name, flag_value(value))
        for item in flags_of(type(section))
        if item.name in names and (value := getattr(section, item.name)) != item.default
    ]


def warn_of_unread(section: Section, names: Collection[str], why: str) -> None:
    """Logs which of the settings `names` are not at their defaults, although nothing reads them."""
    for typed in not_at_default(section, names):
        logging.warning(f"{typed}: has no effect {why}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the flag that an unknown one is most like.

    What begins as a negative number is a value: of argparse's own, -1 is one, and -1,8 and -1e-3 are not.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        for word in message.partition("unrecognized arguments: ")[2].split():
            typed = word.partition("=")[0]
            known = get_close_matches(typed, self._option_string_actions, 1) if typed.startswith("--") else []
            message += f"; did you mean {known[0]}?" if known else ""
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help lists all flags\n")


def parser_of(description: str | None, **more: Any) -> argparse.ArgumentParser:
    """The parser of a command.  It refuses abbreviated flags, which other commands would not know again.

    Args:
      description: the docstring of the command's module.
      more: of argparse.ArgumentParser.
    """
    raw = argparse.RawDescriptionHelpFormatter
    return Parser(description=description, formatter_class=raw, allow_abbrev=False, **more)


def add_arguments(
    parser: argparse.ArgumentParser,
    config_class: type,
    names: Collection[str] | None = None,
    typed_only: bool = False,
    **defaults: Any,
) -> None:
    """Adds one flag per flag of `config_class`, in a group of its own.

    Args:
      names: of these flags alone.
      typed_only: parsed arguments then hold the flags that were typed and no others; `from_args` knows the defaults.
      defaults: override the flags' own.
    """
    group = parser.add_argument_group((config_class.__doc__ or config_class.__name__).splitlines()[0].rstrip("."))
    for item in flags_of(config_class):
        if names is None or item.name in names:
            default = defaults.get(item.name, item.default)
            shown = _shown(default, item.more.get("unset"))
            _add_flag(group, item, argparse.SUPPRESS if typed_only else default, shown)


def add_overrides(parser: argparse.ArgumentParser, config_class: type, *names: str) -> None:
    """Adds these flags of `config_class` for a command that reads config.json; see `override`."""
    group = parser.add_argument_group("Instead of what config.json has")
    for item in flags_of(config_class):
        if item.name in names:
            _add_flag(group, item, None, "as config.json has it")


def override(config: Config, args: argparse.Namespace) -> Config:
    """`config` with the flags that were typed: those of `add_overrides`, or of `add_arguments` with typed_only."""
    given = {item.name: getattr(args, item.name, None) for item in flags_of(type(config))}
    return with_settings(config, **{name: value for name, value in given.items() if value is not None})


def _add_flag(group: Any, item: Flag, default: Any, shown: str) -> None:
    group.add_argument(
        "--" + item.name.replace("_", "-"),
        type=_parser_of(item.annotation, item.more.get("text"), item.more.get("example", ""), **_range_of(item.more)),
        default=default,
        choices=item.more.get("choices") or None,  # a table that is empty: who fills it has not been imported
        help=f"{item.help} (default: {shown})",
    )


def add_jobs(parser: argparse.ArgumentParser, help: str = "Processes", default: int = 2) -> None:
    parser.add_argument("--jobs", type=in_range(int, minimum=1), default=default, help=f"{help} (default: %(default)s)")


def from_args(config_class: type[Config], args: argparse.Namespace) -> Config:
    """Reads the flags of `config_class` back out of parsed arguments; those that are not there have their defaults."""
    names = [item.name for item in flags_of(config_class) if hasattr(args, item.name)]
    return with_settings(config_class(), **{name: getattr(args, name) for name in names})


def str2bool(text: str) -> bool:
    """0/1, true/false, yes/no, as icefall's flags take them."""
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "y", "t"):
        return True
    if lowered in ("0", "false", "no", "n", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or 1")


def names_in(text: str, needed_by: str = "") -> list[str]:
    """The names in a,b; blanks beside commas belong to none, and two commas have none between them.

    needed_by: a flag that must name something; UserError is raised where it does not.
    """
    names = [name for name in map(str.strip, text.split(",")) if name]
    if needed_by and not names:
        raise UserError("names nothing", flag=option(needed_by, text), fix="name one, or several with commas between")
    return names


def flag_value(value: Any) -> str:
    """A field as it is typed after its flag."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _shown(default: Any, unset: str | None) -> str:
    if isinstance(default, tuple):
        return flag_value(default) or unset or "none"
    return unset or "by preset" if default is None else str(default) or "empty"


def _parser_of(annotation: Any, text: re.Pattern[str] | None = None, example: str = "", /, **range_of: float) -> Any:
    """The argparse type for a field annotation: scalar, bool, X | None, int | str or tuple[X, ...]."""
    if text is not None:
        return _number_or_text(_parser_of(get_args(annotation)[0], **range_of), text, example)
    if get_origin(annotation) is UnionType:  # X | None
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is tuple:
        element = in_range(get_args(annotation)[0], **range_of)

        def parse_tuple(text: str) -> tuple[Any, ...]:
            return tuple(element(part.strip()) for part in text.split(",") if part.strip())

        parse_tuple.__name__ = f"comma-separated {element.__name__}"
        return parse_tuple
    return str2bool if annotation is bool else in_range(annotation, **range_of)


def _number_or_text(number: Any, pattern: re.Pattern[str], example: str) -> Any:
    def parse(text: str) -> Any:
        try:
            return text if pattern.fullmatch(text) else number(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: neither a number nor a text like {example}") from error

    parse.__name__ = number.__name__
    return parse


def in_range(number: Any, **range_of: float) -> Any:
    """The argparse type `number`, with the bounds of `range_fault`."""
    if number is str:
        return number

    def parse_number(text: str) -> Any:
        value = number(text)
        if fault := range_fault(value, **range_of):
            raise argparse.ArgumentTypeError(f"{text}: {fault}")
        return value

    parse_number.__name__ = number.__name__
    return parse_number
