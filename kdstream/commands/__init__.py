"""The console command `kdstream COMMAND`: one module a command, imported when it is run.

A command's module imports at its top what its flags need.  What it runs, torch above all, its functions import once the
flags have been read, so that --help and a mistyped flag are answered at once.

How commands end: one clear line for what the user can mend, a traceback for what only we can.  Where nobody reads what
a command writes any more, as behind `| head`, it ends without a word.
"""

from __future__ import annotations

import importlib
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdstream import __version__
from kdstream.errors import UserError, packages_of
from kdstream.files import MENDED_BY_USER

UNREAD = 141  # the status of a command whose output nobody reads any more: 128 and SIGPIPE, as shells count


class Command(NamedTuple):
    """module: has `main(argv)`.  extra: `pip install kdstream[EXTRA]` brings what it needs.  summary: for --help."""

    module: str
    extra: str
    summary: str


COMMANDS = {
    "train": Command("commands.train", "train", "train a teacher, a streaming baseline or a distilled student"),
    "decode": Command("commands.decode", "decode", "decode whole utterances, in full context or simulated streaming"),
    "streaming-decode": Command("commands.streaming_decode", "decode", "decode chunk by chunk, many streams at once"),
    "transcribe": Command("commands.transcribe", "decode", "write down what audio files, a stream or a microphone say"),
    "export": Command("commands.export", "export", "write weights and ONNX files for sherpa-onnx, and check them"),
    "serve": Command("commands.serve", "serve", "serve a web page that transcribes as it hears"),
    "align": Command("commands.align", "train", "find when words end, with a model's CTC head"),
    "pseudo-label": Command("commands.pseudo_label", "report", "transcribe unlabelled cuts with a teacher or Whisper"),
    "cache-teacher": Command("commands.cache_teacher", "train", "store what a teacher computes, for its students"),
    "layer-similarity": Command("commands.layer_similarity", "report", "measure how similar two models' layers are"),
    "report": Command("commands.report", "report", "compare trained systems on one page"),
    "render-results": Command("commands.render_results", "report", "fill the tables of Markdown files from JSON files"),
    "compare-icefall": Command("commands.compare_icefall", "report", "print error rates beside icefall's"),
    "compare-methods": Command("commands.compare_methods", "report", "train every method with several seeds"),
    "sweep": Command("commands.sweep", "report", "run a grid of flags and draw the error rates"),
    "plan": Command("commands.plan", "train", "say what a training on GPUs will take, before they are rented"),
    "bench-train-step": Command("commands.bench_train_step", "train", "measure what distillation costs in training"),
    "bench-streaming": Command("commands.bench_streaming", "all", "measure streaming speed in three runtimes"),
    "make-mini-corpus": Command("commands.make_mini_corpus", "corpus", "speak the embedded corpus"),
    "prepare-manifests": Command("commands.prepare_manifests", "train", "make manifests of LibriSpeech's layout"),
    "prepare-recipe": Command("commands.prepare_recipe", "train", "make manifests of any corpus that Lhotse knows"),
    "compute-fbank": Command("commands.compute_fbank", "train", "compute and store features"),
    "augment-cuts": Command("commands.augment_cuts", "train", "copy cuts as through telephone lines, codecs and rooms"),
    "train-bpe-model": Command("commands.train_bpe_model", "train", "train a sentencepiece model"),
    "train-lm": Command("commands.train_lm", "train", "train a language model for modified_beam_search"),
    "validate-manifest": Command("commands.validate_manifest", "train", "look through a manifest of cuts"),
    "doctor": Command("commands.doctor", "", "say what is installed, and what will be used"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that `argv` (by default the command line) begins with."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        return run(lambda: print(usage()))
    if name == "--version":
        return run(lambda: print(f"kdstream {__version__}"))
    if name not in COMMANDS:
        sys.exit(f"error: {name}: no such command; kdstream --help lists them")
    sys.argv = [f"kdstream {name}", *rest]
    run_command(name)


def run_command(name: str) -> None:
    """Runs a command on sys.argv; scripts that bear icefall's names call it too."""
    command = COMMANDS[name]

    def import_and_run() -> int | None:
        with packages_of(command.extra, f"kdstream {name}"):
            return importlib.import_module(f"kdstream.{command.module}").main()

    run(import_and_run)


def run(command: Callable[[], int | None]) -> None:
    """Runs a command's `main`; a UserError, or a file that the system refuses, becomes one line and status 1."""
    try:
        status = command()
        print(end="", flush=True)  # or an error would come after the last line of ours
    except UserError as error:
        logging.shutdown()
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        if not drop_unread():  # another pipe broke
            raise
        sys.exit(UNREAD)
    except OSError as error:
        if error.errno not in MENDED_BY_USER:
            raise
        logging.shutdown()
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror}; {MENDED_BY_USER[error.errno]}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        drop_unread()
    if status:
        sys.exit(status)


def drop_unread() -> bool:
    """Whether nobody reads standard output any more; at its end Python then does not complain of what is left."""
    try:
        file, poll = sys.stdout.fileno(), select.poll()
    except (AttributeError, OSError, ValueError):  # no standard output, one of a notebook, or Windows
        return False
    poll.register(file, 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return True


def usage() -> str:
    """What `kdstream --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    usages = ["usage: kdstream COMMAND [flags]; kdstream COMMAND --help lists its flags", "       kdstream --version"]
    return "\n".join([*usages, "", *lines])
