"""Transcripts, and the sentencepiece model that is trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import sentencepiece
from lhotse import SupervisionSet

from kdstream.config.experiment import BPE_MODEL_FILE
from kdstream.data.cuts import iterate, read_manifest, text_of
from kdstream.errors import UserError, option
from kdstream.files import replacing


def transcripts_of_parts(manifest_dir: Path, parts: str) -> list[str]:
    """The transcripts of parts, separated by commas, whose manifests prepare.sh stage 1 wrote."""
    texts = []
    for part in parts.split(","):
        manifest = manifest_dir / f"librispeech_supervisions_{part}.jsonl.gz"
        if not manifest.is_file():
            raise UserError(f"{manifest}: no such manifest", fix=f"run prepare.sh stage 1 for part {part}")
        texts += [supervision.text for supervision in SupervisionSet.from_file(manifest)]
    return texts


def transcripts_of_cuts(paths: str) -> list[str]:
    """The transcripts of the cuts in manifests, whose paths are separated by commas.

    Raises UserError if a manifest is missing, is not of cuts, or has no transcript.
    """
    texts: list[str] = []
    for path in paths.split(","):
        found = [text for text in map(text_of, iterate(read_manifest(Path(path)))) if text]
        if not found:
            raise UserError("none of its cuts has a transcript", flag=f"--cuts {path}", fix="name cuts with texts")
        texts += found
    return texts


def train_bpe_model(transcripts: Path, lang_dir: Path, vocab_size: int) -> None:
    """Trains the model on a file of transcripts, and writes it as bpe.model and as unigram_<V>.model."""
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
        raise UserError(
            reason or "refused", flag=option("vocab_size", vocab_size), fix=f"the text is {transcripts}"
        ) from error
    Path(f"{prefix}.vocab").unlink()
    with replacing(lang_dir / BPE_MODEL_FILE) as temporary:
        shutil.copyfile(f"{prefix}.model", temporary)
