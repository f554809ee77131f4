"""What becomes of a training of several processes when one of them ends: which one, and why.

A process that fails alone leaves its reason in the store through which the processes met.  The others learn of it when
they next talk to it, as an error of communication that names nobody.  So each then says in the store that it is still
there, and reads what the others said.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from kdstream.errors import UserError, option
from kdstream.training import dist
from kdstream.training.dist import LostPartner

ANSWER_SECONDS = 5  # in which the others must say that they are still there
# In messages of torch's RuntimeErrors that have no type of their own: gloo's begin with a place in its sources.
OF_COMMUNICATION = re.compile(
    r"\[[^\]]*\bgloo/[^\]]*:\d+\]|NCCL (error|communicator)|TCPStore|Connection (reset|closed) by peer|Broken pipe"
)
STILL_THERE = "-"


@contextmanager
def in_company(rank: int, world_size: int, port: int) -> Iterator[None]:
    """Joins the other processes.  An error goes to this process's log, and the others are told of it.

    Raises:
      LostPartner: in place of an error of communication, naming the process that ended.
    """
    store = dist.meet(rank, world_size, port)
    try:
        dist.join(store, rank, world_size)
        yield
        dist.cleanup()  # not after an error: the others may be waiting for this process, which now ends
    except Exception as error:
        if store is None:
            raise
        failure = _explained(error, rank, world_size, store)
        is_ours_to_mend = not isinstance(failure, UserError)
        logging.error(f"process {rank} of {world_size} ends: {_line(failure)}", exc_info=is_ours_to_mend)
        if failure is error:
            raise
        raise failure from error
    finally:
        dist.close_logging()


def is_of_communication(error: BaseException) -> bool:
    """Whether an error came of talking to another process, and not of what this one did."""
    is_torchs = isinstance(error, RuntimeError) and OF_COMMUNICATION.search(str(error)) is not None
    return is_torchs or isinstance(error, torch.distributed.DistError)


def _explained(error: Exception, rank: int, world_size: int, store: Any) -> Exception:
    is_own = isinstance(error, UserError) or not is_of_communication(error)
    try:
        store.set(_key(rank), _line(error) if is_own else STILL_THERE)
        if is_own:
            return error
        end = time.monotonic() + ANSWER_SECONDS
        answers = {other: _answer(store, other, end) for other in range(world_size)}
        store.set(_key(rank), STILL_THERE)
    except RuntimeError:
        if is_own:
            return error
        answers = {0: None}  # with it, or with torchrun on its machine, went the store
    reasons = {other: answer for other, answer in answers.items() if answer not in (None, STILL_THERE)}
    if reasons:
        first = min(reasons)
        return LostPartner(f"process {first} of {world_size} failed: {reasons[first]}")
    lost = ", ".join(str(other) for other, answer in answers.items() if answer is None) or "(all answer)"
    return LostPartner(
        f"process {lost} of {world_size} was killed, or is out of reach",
        fix=f"look at its log and its machine; the same command with {option('resume', 1)} goes on",
    )


def _key(rank: int) -> str:
    return f"end of process {rank} after {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} restarts"


def _answer(store: Any, rank: int, end: float) -> str | None:
    """What a process said of its end; None if it has said nothing when time.monotonic() is `end`."""
    try:
        store.wait([_key(rank)], timedelta(seconds=max(0.05, end - time.monotonic())))
        return store.get(_key(rank)).decode()
    except RuntimeError:
        return None


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
