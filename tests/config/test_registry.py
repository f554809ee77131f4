"""Tables and flags that others add to."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import pytest

from kdstream.config.flags import Section, add_arguments, extend, flag, from_args, from_dict, to_dict, with_settings
from kdstream.config.registry import Registry
from kdstream.errors import UserError


@dataclass(frozen=True)
class Sweets(Section):
    """Sweets."""

    sugar: int = flag(3, "Spoons.")


extend(Sweets, honey=flag(0.5, "Drops.", minimum=0), kinds=flag(("plain",), "Kinds."))


def parse(*argv: str) -> Sweets:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Sweets)
    return from_args(Sweets, parser.parse_args(argv))


def test_an_added_flag_is_parsed_checked_and_read_like_a_field():
    assert (parse().honey, parse().kinds, parse().sugar) == (0.5, ("plain",), 3)
    sweets = parse("--honey", "2", "--sugar", "1", "--kinds", "a,b")
    assert (sweets.honey, sweets.kinds, sweets.sugar) == (2.0, ("a", "b"), 1)
    with pytest.raises(argparse.ArgumentError, match="must be at least 0"):
        parse("--honey", "-1")
    with pytest.raises(AttributeError, match="Sweets has no setting salt"):
        sweets.salt  # noqa: B018


def test_an_added_flag_survives_json_and_leaves_no_trace_where_it_is_not_set():
    sweets = with_settings(Sweets(), honey=4.0, kinds=("x", "y"), sugar=2)
    assert from_dict(Sweets, json.loads(json.dumps(to_dict(sweets)))) == sweets
    assert to_dict(Sweets()) == {"sugar": 3}


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="honey"):
        extend(Sweets, honey=flag(1.0, ""))
    with pytest.raises(ValueError, match="sugar"):
        extend(Sweets, sugar=flag(1.0, ""))
    registry: Registry[int] = Registry("sweet")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="--sweet one"):
        registry.add("one", 2)


def test_an_unknown_name_is_refused_with_the_known_ones():
    registry: Registry[int] = Registry("sweet")
    registry.add("one", 1)
    registry.add("two", 2)
    assert list(registry) == ["one", "two"] and registry.find("two") == 2
    with pytest.raises(UserError, match="--sweet three: unknown; use one of one, two"):
        registry.find("three")
