"""Processes: one per GPU, or several on the CPU, by torchrun or by --world-size; and where each of them logs."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from tqdm import tqdm

from kdstream.config.command_line import LOG_FORMAT
from kdstream.config.experiment import ExperimentConfig
from kdstream.devices import find_device
from kdstream.errors import UserError, option
from kdstream.processes import end_with_parent

HANDLER_NAME = "kdstream"
LOG_DIR = "log"  # in an exp-dir
WAITING = timedelta(minutes=15)  # for the others: the first process may look at 20 million cuts meanwhile
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
Run = Callable[[ExperimentConfig, int, int], None]  # (config, rank, world_size)


class LostPartner(UserError):
    """Another process ended, so this one cannot go on."""


def launch(run: Run, config: ExperimentConfig, device: str = "") -> None:
    """Calls `run` once in this process, in each of --world-size new ones, or as a worker of torchrun.

    Args:
      device: --device of a command that has it; see `device_of`.
    Raises:
      UserError: that of any process, so that the user reads one line and no traceback.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun, on one machine or several
        run(config, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        return
    world_size = config.train.world_size
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and world_size > torch.cuda.device_count():
        problem = f"there are {torch.cuda.device_count()} GPUs"
        raise UserError(problem, flag=option("world_size", world_size), fix="lower it")
    if world_size == 1:
        run(config, 0, 1)
        return
    errors = get_context("spawn").SimpleQueue()
    try:
        spawn(_run_child, args=(run, config, world_size, on_gpus, errors), nprocs=world_size, join=True)
    except (ProcessExitedException, ProcessRaisedException) as ended:  # perhaps of one that lost its partner
        messages = {}  # by whether they are of a process that only lost another one
        while not errors.empty():
            messages.setdefault(*errors.get())
        if isinstance(ended, ProcessRaisedException) and False not in messages:
            raise  # with the traceback of what only we can mend
        signal = getattr(ended, "signal_name", None)
        if signal is not None:
            fix = f"look at the machine's memory; the same command with {option('resume', 1)} goes on"
            messages.setdefault(True, str(UserError(f"process {ended.error_index} was ended by {signal}", fix=fix)))
        if not messages:
            raise
        raise UserError(messages.get(False) or messages[True]) from None


def _run_child(rank: int, run: Run, config: ExperimentConfig, world_size: int, on_gpus: bool, errors: Any) -> None:
    end_with_parent()  # torch has it interrupted instead, which a training in the background of a script ignores
    if not on_gpus and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    try:
        run(config, rank, world_size)
    except UserError as error:
        errors.put((isinstance(error, LostPartner), str(error)))
        sys.exit(1)


def meet(rank: int, world_size: int, port: int) -> Any:
    """Prepares this process, and returns torch's store, through which several processes meet; None for a lone one.

    Raises:
      UserError: another program has the port.
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    if world_size == 1:
        return None
    # of depthwise kernels, whose gradients come in another order of memory: a few kilobytes are copied
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))
    try:
        return next(rendezvous("env://", rank, world_size, timeout=WAITING))[0]
    except RuntimeError as error:
        if "address already in use" not in str(error).lower():
            raise
        fix = "give another; each training on one machine needs its own"
        raise UserError(
            "another program has it", flag=option("master_port", os.environ["MASTER_PORT"]), fix=fix
        ) from error


def join(store: Any, rank: int, world_size: int) -> None:
    """Joins the process group (nccl on GPUs, gloo on CPUs) of those that met."""
    if store is not None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=WAITING)


def keep_freed_memory() -> None:
    """Stops glibc from handing large freed blocks back to the system, where there is glibc.

    Every activation is such a block, and fetching it anew, page by page, is a fifth of a training step on a CPU
    (tiny preset: 2.3 s instead of 2.9 s of processor time for 120 s of speech).  Costs some peak memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)):
        mallopt(parameter, value)


def cleanup() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def first_error(error: Exception | None, world_size: int, device: torch.device) -> Exception | None:
    """The error of this process or, if it has none, that of another one; None if no process has any.

    All processes call it at the same place, so that they stop together, and none waits for one that has stopped.
    """
    if world_size == 1:
        return error
    has_error = torch.tensor(float(error is not None), device=device)
    dist.all_reduce(has_error)
    if not has_error.item():
        return None
    others: list[tuple[bool, str] | None] = [None] * world_size
    dist.all_gather_object(others, error and (isinstance(error, UserError), str(error)))
    if error is not None:
        return error
    rank, (of_user, message) = next((rank, other) for rank, other in enumerate(others) if other is not None)
    return UserError(message) if of_user else RuntimeError(f"process {rank} failed: {message}")


def raise_together(error: Exception | None, world_size: int, device: torch.device) -> None:
    """Raises `first_error`, if there is one."""
    error = first_error(error, world_size, device)
    if error is not None:
        raise error


def first_in_rank_0(work: Callable[[], object], rank: int, world_size: int, device: torch.device) -> None:
    """Runs `work` in process 0 while the others wait, and then in the first process of each other machine.

    What it keeps on disk the others find there, whether the machines share the disk or not.  Its error all raise.
    """
    for is_mine in (rank == 0, rank > 0 and local_rank(rank) == 0):
        error = None
        try:
            if is_mine:
                work()
        except Exception as raised:
            error = raised
        raise_together(error, world_size, device)


def check_shared(path: Path, flag: str, world_size: int, device: torch.device) -> None:
    """Raises UserError, in all processes, unless each sees the file `path` of process 0.

    Args:
      flag: what `path` lies under, as it was typed.
    """
    paths = [path]
    if world_size > 1:
        dist.broadcast_object_list(paths, src=0)
    error = None
    if not paths[0].exists():
        problem = f"{socket.gethostname()} does not see what the first process wrote there"
        error = UserError(problem, flag=flag, fix="use a directory that all machines share")
    raise_together(error, world_size, device)


def local_rank(rank: int) -> int:
    """The number of this process on its machine, as torchrun says it; without torchrun there is one machine."""
    return int(os.environ.get("LOCAL_RANK", rank))


def device_of(rank: int, named: str = "") -> torch.device:
    """The GPU of this process, by its number on its machine, or the CPU.

    Args:
      named: --device of a command that has it: cpu or cuda; "" is a GPU if there is one.
    Raises:
      UserError: there is no such device, or it is one GPU for several processes.
    """
    if rank > 0 and named.startswith("cuda:"):
        problem, fix = (
            "is one GPU for several processes",
            f"give {option('device', 'cuda')}, of which each takes its own",
        )
        raise UserError(problem, flag=option("device", named), fix=fix)
    if named not in ("", "cuda") or not torch.cuda.is_available():
        return find_device(named)
    index, count = local_rank(rank), torch.cuda.device_count()
    if index >= count:
        raise UserError(f"process {rank} has no GPU: {socket.gethostname()} has {count}", fix="start fewer processes")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


class _LogFile(logging.FileHandler):
    """On a full disk it says once on stderr that the log ends, and training goes on until it must save."""

    is_whole = True

    def handleError(self, record: logging.LogRecord) -> None:
        if self.is_whole:
            print(f"{self.baseFilename}: the log ends here ({sys.exc_info()[1]})", file=sys.stderr)
        self.is_whole = False

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Console(logging.StreamHandler):
    """Writes above a progress bar instead of through it.  Where nobody reads stderr any more, training goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(exp_dir: Path, rank: int, world_size: int) -> Path:
    """Logs to EXP_DIR/log/log-train-<date>[-rank] in icefall's format, and for rank 0 to stderr too, as it does."""
    where = f" ({rank}/{world_size})" if world_size > 1 else ""
    formatter = logging.Formatter(LOG_FORMAT.replace("]", f"]{where}"))
    suffix = f"-{rank}" if world_size > 1 else ""
    path = exp_dir / LOG_DIR / f"log-train-{datetime.now():%Y-%m-%d-%H-%M-%S}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [_LogFile(path)]
    if rank == 0:
        handlers.append(_Console())
    for handler in handlers:
        handler.setFormatter(formatter)
    close_logging()
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.set_name(HANDLER_NAME)
        root.addHandler(handler)
    return path


def close_logging() -> None:
    """Takes back what setup_logging added: a process may train more than once."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == HANDLER_NAME]:
        root.removeHandler(handler)
        handler.close()
