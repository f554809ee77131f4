"""Writes down what is said in audio files, in all files of a directory, in a stream, or into the microphone.

    python transcribe.py --exp-dir exp/distilled --epoch 30 --avg 9 talk.mp3 recordings/
    ffmpeg -i talk.mp4 -f s16le -ar 16000 -ac 1 - | python transcribe.py --exp-dir exp/distilled --epoch 30 --avg 9 -

Takes what libsndfile reads (wav, flac, mp3, ogg, opus, aiff, au and others) of any sampling rate and number of
channels; a directory's other sound files are named.  A streaming model decodes many files at once,
chunk by chunk, and on a terminal the text grows meanwhile; a full-context model decodes whole files.  Prints the text
of each file as it ends, and below it the time of each word in seconds; --format has other forms, and --output-dir takes
a file for each.  Streaming text is cut into segments where the speaker pauses.  Where files cannot be read, it names
them, transcribes the others, and exits with status 1.  --microphone 1 listens until Ctrl-C, and - to raw samples on
standard input (16 kHz, 16 bits, one channel), as they come, until they end.  Ctrl-C loses nothing: what was heard of
each file is printed.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import unicodedata
from argparse import ArgumentParser, Namespace
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from kdstream.config.command_line import make_parser, read_experiment
from kdstream.config.decoding import DECODE_SECTIONS, ScoringConfig
from kdstream.config.flags import add_arguments, from_args, str2bool, warn_of_unread
from kdstream.endpoints import EndpointConfig
from kdstream.errors import UserError, option, printable
from kdstream.files import replacing
from kdstream.formats import BY_RECORDING, FORMATS, OF_ONE_FILE, recording
from kdstream.transcription import Transcription
from kdstream.words import ATTACHED


class GrowingLine:
    """One line of a terminal (standard error) whose text is replaced; nothing at all elsewhere."""

    def __init__(self) -> None:
        self.visible = sys.stderr.isatty()
        self._kept, self._rows = -1, 0  # the number of the last line that stays, and what it takes of the screen

    def show(self, text: str) -> None:
        self._write(fitted(printable(text), shutil.get_terminal_size().columns - 1) + "\r")

    def clear(self) -> None:
        self.show("")

    def keep(self, number: int, text: str) -> None:
        """A line that stays, above the one that grows; in place of the last such where that has the same number."""
        self.clear()
        text = printable(text)
        above = f"\x1b[{self._rows}A\x1b[J" if number == self._kept else ""  # so many rows up; clear what is below
        self._kept, self._rows = number, rows_of(text, shutil.get_terminal_size().columns)
        self._write(f"{above}{text}\n")

    def _write(self, text: str) -> None:
        if self.visible:
            sys.stderr.write(text)
            sys.stderr.flush()


def fitted(text: str, columns: int) -> str:
    """The end of a text that fits into so many columns of a terminal, and blanks up to them."""
    begin, left = len(text), columns
    for place in reversed(range(len(text))):
        taken = columns_of(text[place])
        if taken > left:
            break
        begin, left = place, left - taken
    return text[begin:] + " " * left


def rows_of(text: str, columns: int) -> int:
    """How many rows of a terminal a text takes."""
    rows, left = 1, columns
    for character in text:
        taken = columns_of(character)
        if taken > left:
            rows, left = rows + 1, columns
        left -= taken
    return rows


def columns_of(character: str) -> int:
    """What it takes of a terminal: two columns of Chinese and the like, none of a combining mark."""
    if unicodedata.category(character) in ATTACHED:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def show(transcription: Transcription, form: str) -> None:
    text = FORMATS[form](transcription)
    if form == "json" and not can_write(text):
        # a name that is not UTF-8 cannot be written as it is: json.loads gives it back, for os.fsencode
        text = json.dumps(transcription.to_json())
    if text:
        write(text)


def deliver(transcription: Transcription, form: str, folder: Path | None) -> None:
    """Prints it, or writes it into a folder and prints where."""
    if folder is None:
        show(transcription, form)
        return
    text = FORMATS[form](transcription)
    path = output_path(transcription.audio, form, folder)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf8", errors="surrogateescape") as file:
        file.write(text + "\n" if text else "")
    write(str(path))


def output_path(audio: str, form: str, folder: Path) -> Path:
    """talk.srt of /recordings/talk.mp3."""
    return folder / f"{Path(audio).stem}.{form}"


def check_output(paths: Sequence[Path], form: str, folder: Path | None) -> None:
    """Raises UserError where two files would have one output, or what is printed could not be told apart."""
    if form in BY_RECORDING:
        check_names({path: recording(str(path)) for path in paths}, option("format", form))
    if folder is None:
        if form in OF_ONE_FILE and len(paths) > 1:
            fix = "give --output-dir DIR, which takes a file for each"
            raise UserError(f"{len(paths)} files: {form} is of one", flag=option("format", form), fix=fix)
        return
    check_names({path: output_path(str(path), form, folder).name for path in paths}, option("output_dir", folder))
    folder.mkdir(parents=True, exist_ok=True)


def check_names(names: Mapping[Path, str], flag: str) -> None:
    """Raises UserError where two files have one name."""
    first: dict[str, Path] = {}
    for path, name in names.items():
        other = first.setdefault(name, path)
        if other != path:
            problem = f"{other} and {path} would both be {name}"
            raise UserError(problem, flag=flag, fix="give each its own --output-dir")


def can_write(text: str) -> bool:
    """Whether standard output has all its characters."""
    try:
        text.encode(encoding())
    except UnicodeEncodeError:
        return False
    return True


def write(text: str) -> None:
    """Prints lines; characters that standard output lacks become escapes."""
    print(text.encode(encoding(), "backslashreplace").decode(encoding()), flush=True)


def encoding() -> str:
    return sys.stdout.encoding or "utf-8"


def flags() -> ArgumentParser:
    sections = [section for section in DECODE_SECTIONS if section is not ScoringConfig]
    parser = make_parser(__doc__, sections, data_flags=("bpe_model", "max_duration"))
    parser.add_argument("audio", nargs="*", help="Audio files, and directories of such; -: standard input.")
    parser.add_argument("--microphone", type=str2bool, default=False, help="Listen to the microphone (default: 0).")
    parser.add_argument("--format", choices=list(FORMATS), help="What is written (default: txt).")
    parser.add_argument("--json", type=str2bool, default=False, help="The same as --format json (default: 0).")
    parser.add_argument("--output-dir", type=Path, help="Write NAME.FORMAT of each file there, instead of printing it.")
    add_arguments(parser, EndpointConfig)
    return parser


def format_of(args: Namespace) -> str:
    """--format, of which --json 1 is one.  Raises UserError where they contradict each other."""
    if args.json and args.format not in (None, "json"):
        flags = f"{option('format', args.format)} {option('json', 1)}"
        raise UserError("name two formats", flag=flags, fix="give one of them")
    return "json" if args.json else args.format or "txt"


def live_sound(args: Namespace) -> tuple[Generator[Any, None, None], str, str] | None:
    """What `Transcriber.live` takes: blocks of the microphone or of standard input, name and flag; None for files.

    Raises UserError where nothing is asked for, or several of them at once.
    """
    from kdstream.decoding.audio import MICROPHONE, STDIN, microphone, standard_input

    if bool(args.audio) == args.microphone:
        fix = "name audio files or directories, - for standard input, or give --microphone 1"
        raise UserError("no audio, or files and the microphone at once", fix=fix)
    if args.microphone:
        return microphone(), "microphone", MICROPHONE
    if STDIN not in args.audio:
        return None
    if len(args.audio) > 1:
        fix = "transcribe it alone; a file of this name is ./-"
        raise UserError("standard input and files at once", flag=STDIN, fix=fix)
    return standard_input(), "stdin", STDIN


def main(argv: Sequence[str] | None = None) -> None:
    args = flags().parse_args(argv)

    from kdstream.audio.find import find_audio
    from kdstream.checkpoints.trained import load_trained
    from kdstream.decoding.settings import choose_chunk, choose_search
    from kdstream.decoding.transcribe import Transcriber, interruption
    from kdstream.devices import to_device

    logging.basicConfig(format="%(levelname)s %(message)s")
    live = live_sound(args)
    form = format_of(args)
    paths = [] if live else find_audio(args.audio)
    check_output(paths, form, args.output_dir)
    config, decode = read_experiment(args)
    chunk = choose_chunk(config.model, decode)
    if chunk is None:
        warn_of_unread(decode, ("num_decode_streams", "engine"), "in full context")
    trained = load_trained(config, decode)
    line = GrowingLine()
    transcriber = Transcriber(
        to_device(trained.model, decode.device),
        trained.tokenizer,
        choose_search(decode).for_tokens(trained.tokenizer),
        chunk,
        min(decode.num_decode_streams, len(paths) or 1),
        config.data.max_duration,
        decode.engine,
        line.show if line.visible else None,
        from_args(EndpointConfig, args),
        lambda number, segment: line.keep(number, segment.text),
    )

    def tell(transcription: Transcription) -> None:
        line.clear()
        deliver(transcription, form, args.output_dir)

    if live:
        with closing(live[0]):
            tell(transcriber.live(*live))
        return
    failed: list[Path] = []

    def report(path: Path, error: UserError) -> None:
        line.clear()
        failed.append(path)
        print(f"error: {error}", file=sys.stderr)

    with interruption() as interrupted:
        for transcription in transcriber.files(paths, report, interrupted.is_set):
            tell(transcription)
    if interrupted.is_set():
        print("stopped by Ctrl-C: what was heard of each file until then is written", file=sys.stderr)
        raise KeyboardInterrupt
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} files could not be transcribed: {', '.join(map(str, failed))}")
