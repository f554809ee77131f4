#!/usr/bin/env python3
"""Trains a sentencepiece unigram model on transcripts, and writes tokens.txt.

    python local/train_bpe_model.py --manifest-dir data/manifests --parts train-clean-5 --vocab-size 500 \
        --lang-dir data/lang_bpe_500

writes bpe.model, unigram_<V>.model, transcript_words.txt and tokens.txt ("piece id" a line; <blk> 0,
<sos/eos> 1, <unk> 2) into LANG_DIR, as icefall does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sentencepiece
from lhotse import SupervisionSet

from kdstream import cli
from kdstream.config import UserError
from kdstream.data import Tokenizer


def write_transcripts(manifest_dir: Path, parts: str, path: Path) -> None:
    """One transcript a line."""
    lines = []
    for part in parts.split(","):
        manifest = manifest_dir / f"librispeech_supervisions_{part}.jsonl.gz"
        if not manifest.is_file():
            raise UserError(f"{manifest}: no such manifest; run prepare.sh stage 1 for part {part}")
        lines += [supervision.text for supervision in SupervisionSet.from_file(manifest)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest-dir", type=Path, default=Path("data/manifests"))
    parser.add_argument("--parts", required=True, help="Parts whose transcripts to train on, separated by commas.")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--lang-dir", type=Path, required=True)
    args = parser.parse_args()
    args.lang_dir.mkdir(parents=True, exist_ok=True)
    transcripts = args.lang_dir / "transcript_words.txt"
    write_transcripts(args.manifest_dir, args.parts, transcripts)
    train(transcripts, args.lang_dir, args.vocab_size)
    Tokenizer(args.lang_dir / "bpe.model").save_tokens(args.lang_dir / "tokens.txt")


if __name__ == "__main__":
    cli.run(main)
