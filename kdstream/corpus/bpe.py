"""Transcripts, and the sentencepiece model that is trained on them."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from lhotse import SupervisionSegment, SupervisionSet

from kdstream.config.experiment import BPE_MODEL_FILE
from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option
from kdstream.files import replacing

MAX_SENTENCE_LENGTH = 4192  # bytes: sentencepiece's default; it drops longer lines, and says so to nobody
LETTERS_SHOWN = 80


def transcripts_of_parts(manifest_dir: Path, parts: str) -> list[str]:
    """The transcripts of parts, separated by commas, whose manifests prepare.sh stage 1 wrote."""
    texts = []
    for part in parts.split(","):
        manifest = manifest_dir / f"librispeech_supervisions_{part}.jsonl.gz"
        if not manifest.is_file():
            raise UserError(f"{manifest}: no such manifest", fix=f"run prepare.sh stage 1 for part {part}")
        texts += _texts_of(SupervisionSet.from_file(manifest))
    return texts


def transcripts_of_cuts(paths: str) -> list[str]:
    """The transcripts of the cuts in manifests, whose paths are separated by commas; all that a cut has.

    Raises UserError if a manifest is missing, is not of cuts, or has no transcript.
    """
    texts: list[str] = []
    for path in paths.split(","):
        found = [text.strip() for cut in iterate(read_manifest(Path(path))) for text in _texts_of(cut.supervisions)]
        if not found:
            raise UserError("none of its cuts has a transcript", flag=f"--cuts {path}", fix="name cuts with texts")
        texts += found
    return texts


def _texts_of(supervisions: Iterable[SupervisionSegment]) -> list[str]:
    texts = (supervision.text or "" for supervision in supervisions)
    return [text for text in texts if text.strip()]


def train_bpe_model(transcripts: Path, lang_dir: Path, vocab_size: int) -> None:
    """Trains the model on a file of transcripts, and writes it as bpe.model and as unigram_<V>.model."""
    prefix = lang_dir / f"unigram_{vocab_size}"
    longest = max(map(len, transcripts.read_bytes().split(b"\n")))
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
            max_sentence_length=max(MAX_SENTENCE_LENGTH, longest),
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rsplit("] ", 1)[-1].rstrip(".")
        raise UserError(
            reason or "refused", flag=option("vocab_size", vocab_size), fix=f"the text is {transcripts}"
        ) from error
    Path(f"{prefix}.vocab").unlink()
    with replacing(lang_dir / BPE_MODEL_FILE) as temporary:
        shutil.copyfile(f"{prefix}.model", temporary)


def log_text(texts: Sequence[str], bpe_model: Path) -> None:
    """Logs how much text the model was trained on, and warns of letters in it that no token spells.

    Raises UserError for what `Tokenizer` refuses.
    """
    tokenizer = Tokenizer(bpe_model)
    words = Counter(word for text in texts for word in text.split())
    letters = Counter[str]()
    for word, times in words.items():
        letters.update({letter: times * count for letter, count in Counter(word).items()})
    logging.info(
        f"{bpe_model}: {tokenizer.vocab_size} tokens of {len(texts)} transcripts, {words.total()} words, "
        f"{letters.total()} letters; {len(letters)} different ones: {_shown(sorted(letters))}"
    )
    spelled = (tokenizer.encode(list(words)), words)
    unknown = [word for ids, word in zip(*spelled, strict=True) if tokenizer.unk_id in ids]
    if unknown:
        missing = {letter for letter in set("".join(unknown)) if tokenizer.unk_id in tokenizer.encode([letter])[0]}
        logging.warning(
            f"{bpe_model}: {sum(words[word] for word in unknown)} words of its text have letters that no token spells, "
            f"such as {unknown[0]}: {_shown(sorted(missing))}"
        )


def _shown(letters: Sequence[str]) -> str:
    return "".join(letters[:LETTERS_SHOWN]) + ("..." if len(letters) > LETTERS_SHOWN else "")
