"""Tables in which the project's parts stand, and to which others may add theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from kdstream.config.flags import extend
from kdstream.errors import UserError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name, in the order in which they were added.

    A registry serves as the `choices` of a flag: what is added before the flags are parsed may be chosen.

    Args:
      flag: whose value is one of the names, for messages, e.g. "decoding-method".
      section: gives the dataclass of settings to which entries may add flags of their own.
      filled_by: the module that adds kdstream's own entries.  It is imported when one of them is first looked up: flags
        can be parsed without torch.
      own: the names of these entries, each with the settings that it alone reads.

    settings: by entry, the names of the settings that it brought along.
    """

    def __init__(
        self,
        flag: str,
        section: Callable[[], type] | None = None,
        filled_by: str = "",
        own: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.flag, self.section, self.filled_by = flag, section, filled_by
        self.settings: dict[str, tuple[str, ...]] = dict(own or {})
        self._own = tuple(self.settings)
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry, **flags: Any) -> Entry:
        """Adds an entry and returns it.

        Args:
          flags: settings that the entry brings along, as `extend` takes them: kd_my_scale=flag(0.0, "Weight.").
        Raises:
          ValueError: the name of the entry or of a setting is taken, or the registry is of no section.
        """
        if name in self._entries:
            raise ValueError(f"--{self.flag} {name}: there is one of this name already")
        if flags and self.section is None:
            raise ValueError(f"--{self.flag} {name}: entries of this table cannot bring flags")
        if self.section is not None:
            extend(self.section(), **flags)
        self._entries[name] = entry
        self.settings.setdefault(name, tuple(flags))
        return entry

    def find(self, name: str) -> Entry:
        """The entry of this name.  Raises UserError, with the names that there are, if there is none."""
        self.check(name)
        return self[name]

    def check(self, name: str) -> None:
        """Raises UserError as `find` does, and imports nothing."""
        if name not in self:
            fix = f"use one of {', '.join(self)}, or import the module that adds it"
            raise UserError("unknown", flag=f"--{self.flag} {name}", fix=fix)

    def __getitem__(self, name: str) -> Entry:
        if name in self._own and name not in self._entries:
            importlib.import_module(self.filled_by)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._own, *self._entries)))

    def __len__(self) -> int:
        return len(list(iter(self)))


class ListsOf:
    """Lists of names of a table, a,b: `choices` of a flag."""

    def __init__(self, table: Registry[Any]) -> None:
        self.table = table

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and all(name.strip() in self.table for name in text.split(","))

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)
