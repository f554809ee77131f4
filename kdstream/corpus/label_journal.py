"""What a labeller has heard so far, in a file from which a killed command continues."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.cut.data import DataCut

from kdstream.errors import UserError
from kdstream.files import try_lock, writing

FIX = "delete it to label all cuts again, or give another --output"


class Heard(NamedTuple):
    """What was heard in a cut, or in a piece of it, before any rule or spelling.

    cut: its id.  start: of the piece in its cut, in seconds.  duration: of the piece, in seconds.
    seconds: of the cut that are done with this piece, the silence before it among them.
    is_last: whether no other piece of the cut comes after it.
      avg_logprob, compression_ratio, no_speech: as Whisper measures them.
    """

    cut: str
    start: float
    duration: float
    seconds: float
    is_last: bool
    text: str = ""
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech: float = 0.0


class Journal:
    """A file of JSON lines: the settings, and then what was heard, a line for each batch.

    A line that a kill has cut short is taken away: its batch is heard again.

    Args:
      path: of the file.
      settings: on which the labels depend; with others the file is refused.
    heard: all of it, in the order in which it was heard.  seconds: of speech that is done.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.heard: list[Heard] = []
        self.seconds = 0.0

    def __enter__(self) -> Journal:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        if try_lock(self._file.fileno()) is False:
            raise UserError(f"{self.path}: another command writes it", fix="wait for it, or give another --output")
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        try:
            settings, *batches = [json.loads(line) for line in whole] or [None]
            self._keep([Heard(*piece) for batch in batches for piece in batch])
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path}: damaged", fix=FIX) from error
        if settings is None:
            self._file.truncate(0)
            self._append(self.settings)
        elif settings != self.settings:
            names = ", ".join(name for name, value in self.settings.items() if settings.get(name) != value)
            raise UserError(f"{self.path}: holds labels of other settings ({names})", fix=FIX)
        else:
            self._file.truncate(sum(map(len, whole)))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: Sequence[Heard]) -> None:
        """Keeps what was heard in a batch, whole or not at all."""
        self._append(batch)
        self._keep(batch)

    def missing(self, cuts: Sequence[DataCut]) -> Iterator[tuple[DataCut, int]]:
        """The cuts that are not done, and how many pieces of each are."""
        finished = {heard.cut for heard in self.heard if heard.is_last}
        begun = Counter(heard.cut for heard in self.heard)
        for cut in cuts:
            if cut.id not in finished:
                yield cut, begun[cut.id]

    def _keep(self, batch: Sequence[Heard]) -> None:
        self.heard += batch
        self.seconds += sum(heard.seconds for heard in batch)

    def _append(self, line: Any) -> None:
        with writing(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
