"""Writes down what is said in audio files, in all files of a directory, or into the microphone.

    python transcribe.py --exp-dir exp/distilled --epoch 30 --avg 9 talk.mp3 recordings/

Takes what libsndfile reads (wav, flac, mp3, ogg, opus, aiff, au and others) of any sampling rate and number of
channels; a directory's other sound files are named.  A streaming model decodes many files at once,
chunk by chunk, and on a terminal the text grows meanwhile; a full-context model decodes whole files.  Prints the text
of each file as it ends, and below it the time of each word in seconds; with --json 1, one JSON object a line instead.
Where files cannot be read, it names them, transcribes the others, and exits with status 1.  --microphone 1 listens
until Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kdstream.config.command_line import RECORD_FLAGS, make_parser, read_experiment
from kdstream.config.flags import str2bool
from kdstream.errors import UserError, printable
from kdstream.transcription import Transcription


class GrowingLine:
    """One line of a terminal (standard error) whose text is replaced; nothing at all elsewhere."""

    def __init__(self) -> None:
        self.visible = sys.stderr.isatty()

    def show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._write(printable(text)[-width:].ljust(width) + "\r")

    def clear(self) -> None:
        self.show("")

    def _write(self, text: str) -> None:
        if self.visible:
            sys.stderr.write(text)
            sys.stderr.flush()


def show(transcription: Transcription, as_json: bool) -> None:
    if as_json:
        fields = transcription.to_json()
        line = json.dumps(fields, ensure_ascii=False)
        # a name that is not UTF-8 cannot be written as it is: json.loads gives it back, for os.fsencode
        write(line if can_write(line) else json.dumps(fields))
        return
    lines = [f"{printable(transcription.audio)}: {transcription.text}"]
    if transcription.words:
        lines.append("    " + "  ".join(f"{word.start:.2f} {word.text}" for word in transcription.words))
    write("\n".join(lines))


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, leave_out=RECORD_FLAGS, data_flags=("bpe_model", "max_duration"))
    parser.add_argument("audio", nargs="*", help="Audio files, and directories that are searched for them.")
    parser.add_argument("--microphone", type=str2bool, default=False, help="Listen to the microphone (default: 0).")
    parser.add_argument("--json", type=str2bool, default=False, help="Print JSON, an object a line (default: 0).")
    args = parser.parse_args(argv)

    from kdstream.audio.find import find_audio
    from kdstream.checkpoints.trained import load_trained
    from kdstream.data.tokenizer import Tokenizer
    from kdstream.decoding.audio import microphone
    from kdstream.decoding.settings import choose_chunk, choose_search, fit_tokenizer
    from kdstream.decoding.transcribe import Transcriber
    from kdstream.devices import to_device

    logging.basicConfig(format="%(levelname)s %(message)s")
    if bool(args.audio) == args.microphone:
        fix = "name audio files or directories, or give --microphone 1"
        raise UserError("no audio, or files and the microphone at once", fix=fix)
    paths = find_audio(args.audio)
    config, decode = read_experiment(args)
    tokenizer = Tokenizer(config.data.bpe_model)
    model = load_trained(config, decode).model
    fit_tokenizer(model, tokenizer, config, decode)
    line = GrowingLine()
    transcriber = Transcriber(
        to_device(model, decode.device),
        tokenizer,
        choose_search(decode).for_tokens(tokenizer),
        choose_chunk(config.model, decode),
        min(decode.num_decode_streams, len(paths) or 1),
        config.data.max_duration,
        decode.engine,
        line.show if line.visible else None,
    )
    if args.microphone:
        with closing(microphone()) as blocks:
            transcription = transcriber.live(blocks)
        line.clear()
        show(transcription, args.json)
        return
    failed: list[Path] = []

    def report(path: Path, error: UserError) -> None:
        line.clear()
        failed.append(path)
        print(f"error: {error}", file=sys.stderr)

    for transcription in transcriber.files(paths, report):
        line.clear()
        show(transcription, args.json)
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} files could not be transcribed: {', '.join(map(str, failed))}")
