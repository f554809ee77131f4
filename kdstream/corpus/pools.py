"""Work in the processes of a pool, whose errors reach the user as one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from kdstream.errors import UserError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def results_of(
    imap: Callable[..., Iterable], function: Callable[[Piece], Result], pieces: Iterable[Piece], chunksize: int = 1
) -> Iterator[Result]:
    """What `function` returns for each piece of work.

    Args:
      imap: of a pool, `imap` or `imap_unordered`.
      function: what pickle can send to another process.
      chunksize: pieces that a process gets at once.
    Raises:
      UserError: that of the first piece that raises one.
    """
    for result in imap(partial(_result_or_error, function), pieces, chunksize):
        if isinstance(result, UserError):
            raise result
        yield result


def _result_or_error(function: Callable[[Piece], Result], piece: Piece) -> Result | UserError:
    try:
        return function(piece)
    except UserError as error:  # returned, as an exception from a pool arrives with the worker's traceback
        return error
