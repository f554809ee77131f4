"""Tables in which the project's parts stand, and to which others may add theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from kdstream.errors import UserError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name, in the order in which they were added.

    A registry serves as the `choices` of a flag: what is added before the flags are parsed may be chosen.

    Args:
      flag: whose value is one of the names, for messages, e.g. "decoding-method".
    """

    def __init__(self, flag: str) -> None:
        self.flag = flag
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Adds an entry and returns it.  Raises ValueError where the name is taken."""
        if name in self._entries:
            raise ValueError(f"--{self.flag} {name}: there is one of this name already")
        self._entries[name] = entry
        return entry

    def find(self, name: str) -> Entry:
        """The entry of this name.  Raises UserError, with the names that there are, if there is none."""
        if name not in self._entries:
            raise UserError(f"--{self.flag} {name}: unknown; use one of {', '.join(self._entries)}")
        return self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
