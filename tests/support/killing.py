"""Commands that are killed, with every process of theirs, at random moments, and are started again.

The commands run in children of a server process that has imported kdstream once, so that a kill costs no more than
what it destroys.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdstream.checkpoints.store import load_checkpoint
from kdstream.commands import run_command
from support.comparing import WALL_CLOCK, different_values

KILLS = int(os.environ.get("KDSTREAM_KILLS", "0"))  # of each test, instead of its own small number
OF_A_PLACE = {"exp_dir", "teacher_exp_dir", "teacher_cache", "master_port"}  # settings in which two runs differ
FEWEST_SECONDS = 0.02  # before a kill
MOST_KILLS = 6  # of one training
COMMANDS = ("train", "cache_teacher", "decode")  # whose modules the server imports


@dataclass
class Killer:
    """Runs commands and kills them `kills` times in all, at moments that a seed makes.

    log: what the commands print.
    cwd: where they run.
    check: called after each kill.
    """

    kills: int
    log: Path
    seed: int = 0
    check: Callable[[], None] = lambda: None
    cwd: Path = field(default_factory=Path.cwd)
    killed: int = 0
    trainings: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def run(self, command: str, flags: Sequence[str], seconds: float = 0.0, world_size: int = 1) -> float:
        """Runs a command to its end, though it is killed up to MOST_KILLS times on the way.

        seconds: in which a kill comes; none where it is 0.
        Returns:
          The seconds of the last run.
        """
        last = self.killed + MOST_KILLS
        while True:
            process = start(run_flags, (command, list(flags)), self.log, self.cwd, world_size)
            begin = time.monotonic()
            may_kill = seconds > 0 and self.killed < min(last, self.kills)
            process.join(self.rng.uniform(FEWEST_SECONDS, seconds) if may_kill else 300)
            if process.exitcode is not None:
                assert process.exitcode == 0, self.log.read_text()[-3000:]
                self.trainings += 1
                return time.monotonic() - begin
            assert may_kill, f"{command} hangs\n{self.log.read_text()[-3000:]}"
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            self.killed += 1
            self.check()


def run_flags(command: str, flags: list[str]) -> None:
    """`kdstream COMMAND FLAGS`, in this process."""
    sys.argv = [f"kdstream {command}", *flags]
    run_command(command)


def start(function: Callable[..., None], args: tuple[Any, ...], log: Path, cwd: Path, world_size: int = 1) -> Any:
    """Runs a function of a module in a new process, or in as many as torchrun would start; they are one group."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["support.killing", *(f"kdstream.commands.{name}" for name in COMMANDS)])
    process = server.Process(target=_run, args=(function, args, str(log), str(cwd), world_size, free_port()))
    process.start()
    wait_for(lambda: process.exitcode is not None or os.getpgid(process.pid) == process.pid, 300)
    return process


def _run(function: Callable[..., None], args: tuple[Any, ...], log: str, cwd: str, world_size: int, port: int) -> None:
    os.setsid()
    os.chdir(cwd)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    children: list[int] = []
    for rank in range(world_size - 1, -1, -1):  # this process is the first one
        child = os.fork() if rank else 0
        if child:
            children.append(child)
            continue
        if world_size > 1:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_PORT=str(port))
        status = 1
        try:
            function(*args)
            status = max([0, *(os.waitpid(child, 0)[1] for child in children if rank == 0)])
        except SystemExit as end:
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(min(status, 1))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def alive(pid: int | str) -> bool:
    """Whether there is a process of this number, and not one that has ended and waits for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def check_checkpoints(exp_dir: Path) -> None:
    """Every checkpoint that is there can be read."""
    for path in exp_dir.glob("*.pt"):
        load_checkpoint(path)


def leftovers(folder: Path) -> list[str]:
    """Files that are not whole, at any depth."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp" in path.name)


def differences(ours: Path, theirs: Path, leave_out: Collection[str] = ()) -> list[str]:
    """What differs between two exp-dirs: the names of their files but `leave_out`, every entry of every checkpoint."""
    names = [{path.name for path in folder.iterdir()} - set(leave_out) for folder in (ours, theirs)]
    found = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        if name.endswith(".pt"):
            saved = [load_checkpoint(folder / name) for folder in (ours, theirs)]
            difference = different_values(*saved, leave_out=WALL_CLOCK | OF_A_PLACE)
            found += [f"{name}: {difference}"] if difference else []
    return found
