"""Runs many experiments, some at a time: what sweep.py and compare_methods.py share.

A cell is one training and its decodings, by the recipe's own scripts in processes of their own.  What is finished is
not done again, what was killed goes on, and a cell that fails does not stop the others.  EXP_DIR.log, beside each
experiment directory, is what its scripts said.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from kdstream.checkpoints.store import last_epoch
from kdstream.config.command_line import read_flags
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import Config, add_arguments, from_args, parser_of
from kdstream.config.sections import DecodeConfig, TrainConfig
from kdstream.errors import UserError
from kdstream.evaluation.records import Record, load_records

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "librispeech"
RESULTS_JSON = "results.json"
FLAGS_FILE = "train-flags.txt"
CACHE_SCRIPT = "../../local/cache_teacher.py"  # as seen from the recipe
COMPLETE_FILE = "complete"
TAIL_LINES = 15

Flags = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One training and its decodings.

    recipe: directory of train.py and decode.py.  Every command runs there; paths in flags are as seen from there.
    exp_dir: as seen from the recipe.
    train_flags: of train.py; None for an experiment that is there already and is only decoded.
    decodings: each a script and its flags.
    after: the cell that must have been finished before, such as the teacher's.
    cache: for a teacher, where cache_teacher.py stores what it hears once it is trained, as seen from the recipe; empty
      for nowhere.
    cache_flags: more flags of cache_teacher.py.
    """

    recipe: Path
    exp_dir: str
    train_flags: Flags | None
    decodings: tuple[Flags, ...]
    after: Cell | None = None
    cache: str = ""
    cache_flags: Flags = ()

    @property
    def folder(self) -> Path:
        return Path(os.path.normpath(self.recipe / self.exp_dir))

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def train_config(self) -> TrainConfig:
        return read_config(TrainConfig, self.train_flags or ())

    def train_command(self) -> list[str]:
        return ["train.py", "--exp-dir", self.exp_dir, "--resume", "1", *(self.train_flags or ())]

    def decode_commands(self) -> list[list[str]]:
        """One per decoding.  A flag --epoch of the decoding goes before the last epoch."""
        epoch = ("--epoch", str(self.last_epoch)) if self.last_epoch else ()
        return [[script, "--exp-dir", self.exp_dir, *epoch, *flags] for script, *flags in self.decodings]

    @property
    def last_epoch(self) -> int:
        """The one that ends its training; of an experiment that is there already the last there is, 0 if there is none.

        Named in the commands, so that one that has been trained further since is decoded again.
        """
        if self.train_flags is None:
            return last_epoch(self.folder)
        return self.train_config.num_epochs

    def cache_command(self) -> list[str]:
        return [CACHE_SCRIPT, "--teacher-exp-dir", self.exp_dir, "--output", self.cache, *self.cache_flags]

    @property
    def cache_mark(self) -> Path:
        """Is there when the cache is complete; holds the command that wrote it."""
        return self.recipe / self.cache / COMPLETE_FILE

    def is_cached(self) -> bool:
        mark = self.cache_mark
        return not self.cache or mark.is_file() and mark.read_text() == as_typed(self.cache_command())

    def is_trained(self) -> bool:
        return self.train_flags is None or (self.folder / f"epoch-{self.train_config.num_epochs}.pt").is_file()

    def results_json(self, command: Sequence[str]) -> Path:
        return Path(os.path.normpath(self.recipe / (self._read(command)[1].results_json or self.folder / RESULTS_JSON)))

    def records(self, command: Sequence[str]) -> list[Record]:
        """What `command`, one of `decode_commands`, left; nothing before it has scored every test set."""
        if not self.is_trained():
            return []
        path, data = self.results_json(command), self._read(command)[0].data
        left = [r for r in load_records(path) if r.command == as_typed(command)] if path.is_file() else []
        return left if len(left) == len(data.test_cuts or data.test_parts) else []

    def all_records(self) -> list[Record]:
        """What its decodings left so far."""
        return [record for command in self.decode_commands() for record in self.records(command)]

    def _read(self, command: Sequence[str]) -> tuple[ExperimentConfig, DecodeConfig]:
        return read_flags("", [*command[1:], "--exp-dir", str(self.folder)])

    def is_finished(self) -> bool:
        return self.is_trained() and self.is_cached() and all(map(self.records, self.decode_commands()))

    def check_flags(self) -> None:
        """Raises UserError if the training was begun with other flags, or if its flags end it before its last epoch."""
        path = self.folder / FLAGS_FILE
        if self.train_config.max_train_batches:
            raise UserError("--max-train-batches: experiments are trained to the end of an epoch; give --num-epochs")
        if self.train_flags is not None and path.is_file() and path.read_text() != self.flags_text():
            raise UserError(f"{path}: this training was begun with other flags; use another --exp-root")

    def note_flags(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / FLAGS_FILE).write_text(self.flags_text())

    def flags_text(self) -> str:
        return shlex.join(self.train_flags or ()) + "\n"


def read_config(config_class: type[Config], flags: Sequence[str]) -> Config:
    """A part of the settings that `flags`, of train.py, make."""
    parser = parser_of(None, add_help=False)
    add_arguments(parser, config_class)
    return from_args(config_class, parser.parse_known_args(flags)[0])


def as_typed(command: Sequence[str]) -> str:
    """A command as a user types it in the recipe's directory, and as result records keep it."""
    return shlex.join(["python", *command])


def run_cells(cells: Sequence[Cell], jobs: int) -> dict[Cell, str]:
    """Trains and decodes what is not finished, `jobs` cells at a time.

    Each has its share of the cores as OMP_NUM_THREADS, unless that is set already, and one of several GPUs as
    CUDA_VISIBLE_DEVICES, unless it trains with several processes.  A process that is told to end (Ctrl-C, SIGTERM) ends
    its scripts too.

    Returns:
      The cells that failed, and why.
    Raises:
      UserError: as `Cell.check_flags`; nothing has been run then.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: must be at least 1")
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
        raise UserError(f"failed: {names}; mend what the logs above say, the same command does what is missing")


async def _run_all(cells: Sequence[Cell], jobs: int) -> dict[Cell, str]:
    this = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    missing = [cell for cell in cells if not cell.is_finished()]
    places: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    for place in range(jobs):
        places.put_nowait(gpu_of(place))
    env = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs)), **os.environ}
    failures: dict[Cell, str] = {}
    tasks: dict[Cell, asyncio.Task] = {}
    bar = tqdm(total=len(cells), initial=len(cells) - len(missing), desc="cells", unit="cell", disable=None)

    async def run(cell: Cell, master_port: int) -> None:
        if cell.after in tasks:
            await tasks[cell.after]
        try:
            if cell.after in failures:
                raise _StepFailed(f"needs {cell.after.exp_dir}, which failed")
            gpu = await places.get()
            try:
                await _run_cell(cell, master_port, {**env, **(gpu if cell.train_config.world_size == 1 else {})})
            finally:
                places.put_nowait(gpu)
        except (_StepFailed, UserError) as error:
            failures[cell] = str(error)
        bar.write(outcome(cell, cell in failures), file=sys.stderr)
        bar.update()

    with bar:
        for place, cell in enumerate(missing):
            tasks[cell] = asyncio.create_task(run(cell, TrainConfig.master_port + place))
        await asyncio.gather(*tasks.values())
    return failures


def gpu_of(place: int) -> dict[str, str]:
    """What tells a script to use one of several GPUs, by turns; empty where there is one or none."""
    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[place % count]}


class _StepFailed(Exception):
    """A script that did not do its work; the message is what its log ends with."""


async def _run_cell(cell: Cell, master_port: int, env: dict[str, str]) -> None:
    if not cell.is_trained():
        cell.note_flags()
        port = ["--master-port", str(master_port)] if cell.train_config.world_size > 1 else []
        await _run_step(cell, [*cell.train_command(), *port], env)
    if not cell.is_cached():
        await _run_step(cell, cell.cache_command(), env)
        cell.cache_mark.write_text(as_typed(cell.cache_command()))
    for command in cell.decode_commands():
        if not cell.records(command):
            await _run_step(cell, command, env)
            if not cell.records(command):
                raise _StepFailed(f"{as_typed(command)}: left no record of it in {cell.results_json(command)}")


async def _run_step(cell: Cell, command: Sequence[str], env: dict[str, str]) -> None:
    """Runs a script to its end.  Its processes are a group of their own, which does not outlive this call."""
    with open(cell.log, "a", encoding="utf8") as log:
        print(f"$ {as_typed(command)}", file=log, flush=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=cell.recipe,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a checkpoint is written at once or not at all
    if status:
        lines = cell.log.read_text(encoding="utf8", errors="replace").splitlines()[-TAIL_LINES:]
        raise _StepFailed("\n".join([*lines, f"exit status {status}"]))


def add_runner_flags(parser: argparse.ArgumentParser, seeds: str) -> None:
    """The flags of every script that runs cells; `seeds` is the default of --seeds."""
    add = parser.add_argument
    add("--exp-root", type=Path, required=True, help="Where experiment directories, logs and the outcome go.")
    add("--seeds", type=integers, default=seeds, help="Seeds of training (default: %(default)s)")
    add("--jobs", type=int, default=1, help="Cells that run at a time (default: %(default)s)")
    for name, what in (("--train-flags", "Of every train.py"), ("--decode-flags", "Of every decoding")):
        add(name, type=shlex.split, default=(), help=f"{what}; paths as seen from --recipe (default: none)")
    add("--recipe", type=resolved, default=RECIPE, help="Where train.py and decode.py are (default: egs/librispeech)")


def resolved(path: str) -> Path:
    return Path(path).resolve()


def integers(text: str) -> tuple[int, ...]:
    """1,2,3; each counts once."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def seen_from(recipe: Path, path: Path) -> str:
    """A path of this process as the commands spell it, which run in the recipe's directory."""
    return os.path.relpath(path, recipe)
