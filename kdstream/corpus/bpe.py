"""Trains a sentencepiece unigram model on transcripts, and writes tokens.txt.

    python local/train_bpe_model.py --manifest-dir data/manifests --parts train-clean-5 --vocab-size 500 \
        --lang-dir data/lang_bpe_500
    python local/train_bpe_model.py --cuts a.jsonl.gz,b.jsonl.gz --vocab-size 500 --lang-dir data-mine/lang_bpe_500

writes bpe.model, unigram_<V>.model, transcript_words.txt and tokens.txt ("piece id" a line; <blk> 0,
<sos/eos> 1, <unk> 2) into LANG_DIR, as icefall does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from lhotse import SupervisionSet

from kdstream.config.flags import parser_of
from kdstream.data.cuts import read_manifest, text_of
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError


def of_parts(manifest_dir: Path, parts: str) -> list[str]:
    """The transcripts of prepare.sh's supervisions."""
    texts = []
    for part in parts.split(","):
        manifest = manifest_dir / f"librispeech_supervisions_{part}.jsonl.gz"
        if not manifest.is_file():
            raise UserError(f"{manifest}: no such manifest; run prepare.sh stage 1 for part {part}")
        texts += [supervision.text for supervision in SupervisionSet.from_file(manifest)]
    return texts


def of_cuts(paths: str) -> list[str]:
    """The transcripts of Lhotse cuts.  Raises UserError if a manifest is missing, is not of cuts, or has none."""
    texts: list[str] = []
    for path in paths.split(","):
        found = [text for text in map(text_of, read_manifest(Path(path))) if text]
        if not found:
            raise UserError(f"--cuts {path}: none of its cuts has a transcript")
        texts += found
    return texts


def train(transcripts: Path, lang_dir: Path, vocab_size: int) -> None:
    """Trains the model and writes it under both of its names."""
    prefix = lang_dir / f"unigram_{vocab_size}"
    try:
        sentencepiece.SentencePieceTrainer.train(
            input=str(transcripts),
            vocab_size=vocab_size,
            model_type="unigram",
            model_prefix=str(prefix),
            character_coverage=1.0,
            user_defined_symbols=["<blk>", "<sos/eos>"],
            unk_id=2,
            bos_id=-1,
            eos_id=-1,
            input_sentence_size=100_000_000,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rsplit("] ", 1)[-1]
        raise UserError(f"--vocab-size {vocab_size}: {reason or 'refused'}; the text is {transcripts}") from error
    Path(f"{prefix}.vocab").unlink()
    shutil.copyfile(f"{prefix}.model", lang_dir / "bpe.model")


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    texts_of = parser.add_mutually_exclusive_group(required=True)
    texts_of.add_argument("--parts", help="Parts whose transcripts to train on, separated by commas.")
    texts_of.add_argument("--cuts", help="Cut manifests whose transcripts to train on instead, separated by commas.")
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/manifests"), help="Where --parts are.")
    parser.add_argument("--vocab-size", type=int, default=500, help="Pieces (default: %(default)s)")
    parser.add_argument("--lang-dir", type=Path, required=True, help="Directory to write.")
    args = parser.parse_args(argv)
    texts = of_cuts(args.cuts) if args.cuts else of_parts(args.manifest_dir, args.parts)
    args.lang_dir.mkdir(parents=True, exist_ok=True)
    transcripts = args.lang_dir / "transcript_words.txt"
    transcripts.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    train(transcripts, args.lang_dir, args.vocab_size)
    Tokenizer(args.lang_dir / "bpe.model").save_tokens(args.lang_dir / "tokens.txt")
