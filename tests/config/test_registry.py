"""Tables and flags that others add to."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest

from kdstream.config.decoding import SEARCHES
from kdstream.config.distillation import TEACHERS
from kdstream.config.flags import (
    EXTENSIONS,
    Section,
    add_arguments,
    extend,
    flag,
    from_args,
    from_dict,
    settings_of,
    to_dict,
    with_settings,
)
from kdstream.config.registry import Registry
from kdstream.config.sections import ENCODERS
from kdstream.errors import UserError


@dataclass(frozen=True)
class Sweets(Section):
    """Sweets."""

    sugar: int = flag(3, "Spoons.")


extend(Sweets, honey=flag(0.5, "Drops.", minimum=0), kinds=flag(("plain",), "Kinds."))


SWEETS: Registry[int] = Registry("sweet")


@dataclass(frozen=True)
class Drinks(Section):
    """Drinks."""

    sweet: str = flag("one", "Its sweet.", choices=SWEETS)


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
    assert settings_of(Sweets()) == {"sugar": 3, "honey": 0.5, "kinds": ("plain",)}
    assert settings_of(sweets) == {"sugar": 2, "honey": 4.0, "kinds": ("x", "y")}


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="honey"):
        extend(Sweets, honey=flag(1.0, ""))
    with pytest.raises(ValueError, match="sugar"):
        extend(Sweets, sugar=flag(1.0, ""))
    registry: Registry[int] = Registry("sweet")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="--sweet one"):
        registry.add("one", 2)


def test_an_entry_brings_its_flags_along():
    registry: Registry[int] = Registry("sweet", lambda: Sweets)
    registry.add("plain", 1)
    registry.add("salted", 2, salt=flag(1, "Grains."))
    assert registry.settings == {"plain": (), "salted": ("salt",)} and parse("--salt", "4").salt == 4
    del EXTENSIONS[Sweets]["salt"]
    with pytest.raises(ValueError, match="--sweet three: entries of this table cannot bring flags"):
        Registry("sweet").add("three", 3, pepper=flag(1, ""))


def test_what_stands_in_config_json_is_read_where_nobody_has_added_it():
    sweets = from_dict(Sweets, {"sugar": 1, "extensions": {"cloves": 7}})
    assert sweets.cloves == 7


def test_an_empty_table_refuses_no_choice():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Drinks)
    assert parser.parse_args(["--sweet", "any"]).sweet == "any"
    SWEETS.add("one", 1)
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Drinks)
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'any'"):
        parser.parse_args(["--sweet", "any"])


def test_an_unknown_name_is_refused_with_the_known_ones():
    registry: Registry[int] = Registry("sweet")
    registry.add("one", 1)
    registry.add("two", 2)
    assert list(registry) == ["one", "two"] and registry.find("two") == 2
    fix = "use one of one, two, or import the module that adds it"
    with pytest.raises(UserError, match=f"^--sweet three: unknown; {fix}$"):
        registry.find("three")


@pytest.mark.parametrize("table", [SEARCHES, ENCODERS, TEACHERS], ids=lambda table: table.flag)
def test_the_entries_that_are_named_before_their_module_is_imported_are_those_that_it_adds(table):
    own = list(table._own)
    assert own and [name for name in table if name in own] == own
    table[own[0]]  # imports the module
    assert [name for name in table._entries if name in own] == own


def test_a_search_reads_the_settings_that_are_named_with_it():
    for name in SEARCHES._own:
        assert tuple(item.name for item in fields(SEARCHES[name]) if item.init) == SEARCHES.settings[name]


def test_an_entry_is_imported_when_it_is_looked_up(tmp_path, monkeypatch):
    (tmp_path / "filling.py").write_text("from tables import SWEETS\nSWEETS.add('honey', 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[int] = Registry("sweet", filled_by="filling", own={"honey": ()})
    monkeypatch.setitem(sys.modules, "tables", SimpleNamespace(SWEETS=registry))
    assert "honey" in registry and list(registry) == ["honey"] and len(registry) == 1
    assert "filling" not in sys.modules
    assert registry.find("honey") == 3 and "filling" in sys.modules
    monkeypatch.delitem(sys.modules, "filling")
