"""Makes Lhotse manifests of a corpus in LibriSpeech's layout.

    kdstream prepare-manifests --corpus-dir download/LibriSpeech --parts train-clean-5,dev-clean-2 \
        --output-dir data/manifests

reads CORPUS_DIR/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt with the audio (.flac or .wav) beside it and
writes librispeech_{recordings,supervisions}_<part>.jsonl.gz.  Parts may have any names.
An utterance that --text-remove leaves no text is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.config.command_line import log_to_stderr
from kdstream.config.flags import names_in, parser_of
from kdstream.corpus.text_remove import add_text_remove, check_text_remove


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--corpus-dir", type=Path, required=True, help="The directory that holds the parts.")
    parser.add_argument("--parts", required=True, help="Names of parts, separated by commas.")
    parser.add_argument("--output-dir", type=Path, default=Path("data/manifests"), help="Directory to write.")
    add_text_remove(parser)
    args = parser.parse_args(argv)
    check_text_remove(args.text_remove)
    parts = names_in(args.parts, "parts")

    from kdstream.corpus.manifests import prepare_part

    log_to_stderr()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for part in parts:
        prepare_part(args.corpus_dir.resolve(), part, args.output_dir, args.text_remove)
