"""What a cell of an experiment is: one training and its decodings, as command lines in the directory of a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdstream.checkpoints.store import has_begun, has_ended, last_epoch
from kdstream.config.command_line import make_parser, read_flags
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import CONFIG_FILE, ExperimentConfig
from kdstream.config.flags import from_args
from kdstream.config.sections import TrainConfig
from kdstream.decoding.settings import build_search
from kdstream.errors import UserError, option
from kdstream.evaluation.records import RESULTS_JSON, Record, load_records, newest
from kdstream.experiments.train_flags import FLAGS_FILE, flags_begun_with, read_section, same_training
from kdstream.files import write_text

# The scripts of some commands, as seen from a recipe that has them.
SCRIPTS = {
    "train": "train.py",
    "decode": "decode.py",
    "streaming-decode": "streaming_decode.py",
    "cache-teacher": "../../local/cache_teacher.py",
}
COMPLETE_FILE = "complete"

Flags = tuple[str, ...]


@dataclass(frozen=True)
class CommandLine:
    """A command of kdstream with its flags, to be run in `recipe`.

    Where the recipe has a script for the command, the script is run, else `kdstream COMMAND`.
    """

    recipe: Path
    command: str
    flags: Flags

    @property
    def script(self) -> str:
        """The script as seen from the recipe; empty where it has none."""
        script = SCRIPTS[self.command]
        return script if (self.recipe / script).is_file() else ""

    @property
    def arguments(self) -> list[str]:
        """The arguments of the Python interpreter."""
        return [*([self.script] if self.script else ["-m", "kdstream", self.command]), *self.flags]

    @property
    def typed(self) -> str:
        """As a user types it in the recipe's directory, and as result records keep it."""
        program = ["python", self.script] if self.script else ["kdstream", self.command]
        return shlex.join([*program, *self.flags])


@dataclass(frozen=True)
class Cell:
    """One training and its decodings.

    recipe: the directory in which every command runs; paths in flags are as seen from there.
    exp_dir: as seen from the recipe.
    train_flags: of train.py; None for an experiment that exists already and is only decoded.
    decodings: each the name of a command (decode or streaming-decode) and its flags.
    epoch: the epoch to decode; 0 for the last one.
    after: the cell that must be finished first, such as the teacher's.
    cache: where kdstream cache-teacher stores what this teacher computes, as seen from the recipe; empty for nowhere.
    cache_flags: more flags of kdstream cache-teacher.
    """

    recipe: Path
    exp_dir: str
    train_flags: Flags | None
    decodings: tuple[Flags, ...]
    epoch: int = 0
    after: Cell | None = None
    cache: str = ""
    cache_flags: Flags = ()

    @property
    def folder(self) -> Path:
        return Path(os.path.normpath(self.recipe / self.exp_dir))

    @property
    def log(self) -> Path:
        """What the commands print."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @cached_property
    def train_config(self) -> TrainConfig:
        return read_section(TrainConfig, self.train_flags or ())

    @property
    def last_epoch(self) -> int:
        """The epoch that ends the training; of an experiment that exists already the last one there is, or 0.

        The commands name it, so that an experiment that has been trained further is decoded again.
        """
        if self.train_flags is None:
            return last_epoch(self.folder)
        return self.train_config.num_epochs

    def train_command(self) -> CommandLine:
        return CommandLine(
            self.recipe, "train", ("--exp-dir", self.exp_dir, "--resume", "1", *(self.train_flags or ()))
        )

    def cache_command(self) -> CommandLine:
        flags = ("--teacher-exp-dir", self.exp_dir, "--output", self.cache, *self.cache_flags)
        return CommandLine(self.recipe, "cache-teacher", flags)

    def decode_commands(self) -> list[CommandLine]:
        """One for each decoding.  It names the epoch, unless the decoding has an --epoch of its own."""
        number = self.epoch or self.last_epoch
        last = ("--epoch", str(number)) if number else ()
        commands = []
        for command, *flags in self.decodings:
            epoch = () if any(flag.partition("=")[0] == "--epoch" for flag in flags) else last
            commands.append(CommandLine(self.recipe, command, ("--exp-dir", self.exp_dir, *epoch, *flags)))
        return commands

    @property
    def cache_mark(self) -> Path:
        """The file that exists once the cache is complete; it holds the command that wrote the cache."""
        return self.recipe / self.cache / COMPLETE_FILE

    def is_trained(self) -> bool:
        return self.train_flags is None or has_ended(self.folder, self.train_config.num_epochs)

    def is_cached(self) -> bool:
        mark = self.cache_mark
        return not self.cache or mark.is_file() and mark.read_text() == self.cache_command().typed

    def is_finished(self) -> bool:
        return self.is_trained() and self.is_cached() and all(map(self.records, self.decode_commands()))

    def results_json(self, command: CommandLine) -> Path:
        """Where a decoding adds its records."""
        return Path(os.path.normpath(self.recipe / (self._read(command)[1].results_json or self.folder / RESULTS_JSON)))

    def records(self, command: CommandLine) -> list[Record]:
        """The records that `command`, one of `decode_commands`, left; none before it has scored every test set."""
        if not self.is_trained():
            return []
        path, data = self.results_json(command), self._read(command)[0].data
        found = newest([r for r in load_records(path) if r.command == command.typed]) if path.is_file() else []
        return found if len(found) == len(data.test_cuts or data.test_parts) else []

    def all_records(self) -> list[Record]:
        """The records that all decodings have left so far."""
        return [record for command in self.decode_commands() for record in self.records(command)]

    def _read(self, command: CommandLine) -> tuple[ExperimentConfig, DecodeConfig]:
        return read_flags("", [*command.flags, "--exp-dir", str(self.folder)])

    def check_flags(self) -> None:
        """Raises UserError for flags with which the cell cannot be run to its end.

        These are a training that was begun with other flags or that ends before its last epoch, and decodings with
        flags that their command does not have.
        """
        if self.train_config.max_train_batches:
            raise UserError(
                "an experiment is trained to the end of an epoch", flag="--max-train-batches", fix="give --num-epochs"
            )
        for command in self.decode_commands():
            check_decode_flags(command, self.last_epoch)
        path = self.folder / FLAGS_FILE
        if self.train_flags is not None and path.is_file() and has_begun(self.folder):
            if not same_training(self.train_flags, flags_begun_with(self.folder)):
                raise UserError(f"{path}: this training was begun with other flags", fix="use another --exp-root")

    def note_flags(self) -> None:
        """Writes train-flags.txt.  What a start without a checkpoint left of its settings goes away."""
        if not has_begun(self.folder):
            (self.folder / CONFIG_FILE).unlink(missing_ok=True)
        write_text(self.folder / FLAGS_FILE, shlex.join(self.train_flags or ()) + "\n")


def check_decode_flags(command: CommandLine, last_epoch: int) -> None:
    """Raises UserError for flags with which decode.py would end at once.

    It does not have them, they name an epoch after the last one or more epochs than there are, or no search has them.
    """
    args, unknown = make_parser("").parse_known_args(command.flags)
    if not args.iter and args.epoch > last_epoch > 0:
        problem = f"there are {last_epoch} epochs"
        raise UserError(problem, flag=option("epoch", args.epoch), fix="lower it")
    if not args.iter and args.avg > args.epoch > 0:
        epochs = f"{option('epoch', args.epoch)} {option('avg', args.avg)}"
        raise UserError("averages more epochs than there are", flag=epochs, fix=f"lower {option('avg')}")
    if unknown:
        raise UserError(
            f"{command.command} has no such flag", flag=shlex.join(unknown), fix="see its --help; write flags in full"
        )
    build_search(from_args(DecodeConfig, args))


def seen_from(recipe: Path, path: Path) -> str:
    """A path of this process as the commands spell it, which run in the recipe's directory."""
    return os.path.relpath(path, recipe)


def all_records(cells: Sequence[Cell]) -> list[Record]:
    """The records that the decodings of all cells have left so far."""
    return [record for cell in cells for record in cell.all_records()]
