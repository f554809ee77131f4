"""Runs the cells of an experiment, several at a time, by commands in processes of their own.

What is finished is skipped, what was killed goes on, and a cell that fails does not stop the others.  What the commands
print stands in EXP_DIR.log, beside each experiment directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from tqdm import tqdm

from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.experiments.cells import Cell, CommandLine
from kdstream.files import write_text
from kdstream.processes import end_with_parent

TAIL_LINES = 15  # of a log, shown where a command failed


def run_cells(cells: Sequence[Cell], jobs: int) -> dict[Cell, str]:
    """Trains and decodes what is not finished, `jobs` cells at a time.

    Each cell gets its share of the cores as OMP_NUM_THREADS, unless that is set already, and one of several GPUs as
    CUDA_VISIBLE_DEVICES, unless it trains with several processes.  Where this process is told to end (Ctrl-C, SIGTERM),
    the commands end too.

    Returns:
      The cells that failed, and why.
    Raises:
      UserError: as `Cell.check_flags`; nothing has been run then.
    """
    for cell in cells:
        cell.check_flags()
    try:
        return asyncio.run(_run_all(cells, jobs))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def outcome(cell: Cell, failed: bool) -> str:
    """A finished cell in one line: its word error rates, or the log that says why there are none."""
    if failed:
        return f"{cell.folder.name}: failed, see {os.path.relpath(cell.log)}"
    wers = (f"{record.test_set} {record.wer:.2f} %" for record in cell.all_records())
    return f"{cell.folder.name}: " + ", ".join(wers)


def report_failures(failures: dict[Cell, str]) -> None:
    """Shows why cells failed.  Raises UserError if any did."""
    for cell, reason in failures.items():
        print(f"\n--- {os.path.relpath(cell.log)}\n{reason}", file=sys.stderr)
    if failures:
        names = ", ".join(cell.folder.name for cell in failures)
        raise UserError(
            f"failed: {names}", fix="correct what the logs above say, then the same command does what is missing"
        )


def gpu_of(place: int) -> dict[str, str]:
    """The environment that makes a command use one of several GPUs, by turns; empty where there is one or none."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[place % count]}


class _CommandFailed(Exception):
    """A command did not do its work; the message is the end of its log."""


async def _run_all(cells: Sequence[Cell], jobs: int) -> dict[Cell, str]:
    _cancel_on_signals()
    missing = [cell for cell in cells if not cell.is_finished()]
    places: asyncio.Queue[dict[str, str]] = asyncio.Queue()  # each with the environment of its GPU
    for place in range(jobs):
        places.put_nowait(gpu_of(place))
    env = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs)), **os.environ}
    failures: dict[Cell, str] = {}
    tasks: dict[Cell, asyncio.Task[None]] = {}
    bar = tqdm(total=len(cells), initial=len(cells) - len(missing), desc="cells", unit="cell", disable=None)

    async def run(cell: Cell, master_port: int) -> None:
        if cell.after in tasks:
            await tasks[cell.after]
        try:
            if cell.after in failures:
                raise _CommandFailed(f"needs {cell.after.exp_dir}, which failed")
            gpu = await places.get()
            try:
                await _run_cell(cell, master_port, {**env, **(gpu if cell.train_config.world_size == 1 else {})})
            finally:
                places.put_nowait(gpu)
        except (_CommandFailed, UserError) as error:
            failures[cell] = str(error)
        bar.write(outcome(cell, cell in failures), file=sys.stderr)
        bar.update()

    with bar:
        for number, cell in enumerate(missing):
            tasks[cell] = asyncio.create_task(run(cell, TrainConfig.master_port + number))
        await asyncio.gather(*tasks.values())
    return failures


def _cancel_on_signals() -> None:
    """Makes signals that end a process cancel the current task, whose commands then end with it."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _run_cell(cell: Cell, master_port: int, env: dict[str, str]) -> None:
    if not cell.is_trained():
        cell.note_flags()
        port = ["--master-port", str(master_port)] if cell.train_config.world_size > 1 else []
        await _run_command(cell, cell.train_command(), env, port)
    if not cell.is_cached():
        await _run_command(cell, cell.cache_command(), env)
        write_text(cell.cache_mark, cell.cache_command().typed)
    for command in cell.decode_commands():
        if not cell.records(command):
            await _run_command(cell, command, env)
            if not cell.records(command):
                raise _CommandFailed(f"{command.typed}: left no record of it in {cell.results_json(command)}")


async def _run_command(cell: Cell, command: CommandLine, env: dict[str, str], port: Sequence[str] = ()) -> None:
    """Runs a command to its end.

    Its processes are a group of their own, which outlives neither this call nor this process.
    """
    with open(cell.log, "a", encoding="utf8") as log:
        print(f"$ {' '.join([command.typed, *port])}", file=log, flush=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command.arguments,
            *port,
            cwd=cell.recipe,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            status = await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a checkpoint is written whole or not at all
    if status:
        lines = cell.log.read_text(encoding="utf8", errors="replace").splitlines()[-TAIL_LINES:]
        raise _CommandFailed("\n".join([*lines, f"exit status {status}"]))
