"""Transcripts, and the sentencepiece model that is trained on them."""

from __future__ import annotations

import logging
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from lhotse import SupervisionSegment, SupervisionSet

from kdstream.config.experiment import BPE_MODEL_FILE
from kdstream.config.flags import names_in
from kdstream.config.sections import LIBRISPEECH
from kdstream.corpus.manifests import manifests_of
from kdstream.corpus.token_types import SPECIAL, TOKEN_TYPES
from kdstream.data.cuts import iterate, read_manifest
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option
from kdstream.files import replacing
from kdstream.words import WORD_START, in_case, mostly_unspaced, without_blanks_beside_unspaced

MAX_SENTENCE_LENGTH = 4192  # bytes: sentencepiece's default; it drops longer lines, and says so to nobody
LETTERS_SHOWN = 80
VOCAB_SIZE = 500
NUM_BYTES = 256


def transcripts_of_parts(manifest_dir: Path, parts: str, corpus: str = LIBRISPEECH) -> list[str]:
    """The transcripts of parts, separated by commas, whose manifests prepare.sh stage 1 wrote."""
    manifests = [manifests_of(manifest_dir, part, corpus)[1] for part in names_in(parts, "parts")]
    return [text for manifest in manifests for text in _texts_of(SupervisionSet.from_file(manifest))]


def transcripts_of_cuts(paths: str) -> list[str]:
    """The transcripts of the cuts in manifests, whose paths are separated by commas; all that a cut has.

    Raises UserError if a manifest is missing, is not of cuts, or has no transcript.
    """
    texts: list[str] = []
    for path in names_in(paths, "cuts"):
        found = [text.strip() for cut in iterate(read_manifest(Path(path))) for text in _texts_of(cut.supervisions)]
        if not found:
            raise UserError("none of its cuts has a transcript", flag=f"--cuts {path}", fix="name cuts with texts")
        texts += found
    return texts


def _texts_of(supervisions: Iterable[SupervisionSegment]) -> list[str]:
    texts = (supervision.text or "" for supervision in supervisions)
    return [text for text in texts if text.strip()]


def texts_for_tokens(texts: Sequence[str], case: str = "keep") -> list[str]:
    """The texts in one of TEXT_CASES; of a script that needs no blanks, without those that its corpus has."""
    if case != "keep":  # of signs too that become letters in NFKC, and so in sentencepiece
        texts = [in_case(unicodedata.normalize("NFKC", text), case) for text in texts]
    return list(map(without_blanks_beside_unspaced, texts)) if mostly_unspaced(texts) else list(texts)


def train_bpe_model(transcripts: Path, lang_dir: Path, vocab_size: int | None = None, token_type: str = "bpe") -> None:
    """Trains the model on a file of transcripts, and writes it as bpe.model and as <sentencepiece's type>_<V>.model.

    Of a script without blanks between words, such as Chinese, the model puts no blank before a text; see `Tokenizer`.

    Args:
      transcripts: what `texts_for_tokens` gives, one a line.
      vocab_size: how many tokens.  By default VOCAB_SIZE; of the type char one for each letter.
      token_type: one of TOKEN_TYPES.  Byte-bpe has a token for each byte, and they spell the letters that lack one.
    Raises:
      UserError: a size that does not fit the text.
    """
    lines = transcripts.read_text(encoding="utf-8").split("\n")
    letters = [letter for letter, _ in Counter(unicodedata.normalize("NFKC", "".join(lines))).most_common()]
    others = len(SPECIAL) + 1  # the blank
    size = vocab_size or (len(letters) + others if token_type == "char" else VOCAB_SIZE)
    least = others + NUM_BYTES * (token_type == "byte-bpe") + 1
    if token_type != "bpe" and size < least:
        raise UserError("leaves no token for a letter", flag=option("vocab_size", size), fix=f"give {least} or more")
    settings: dict[str, Any] = {"input": str(transcripts), **TOKEN_TYPES[token_type]}
    if mostly_unspaced(lines):
        settings.update(add_dummy_prefix=False, required_chars=WORD_START)  # Latin words among them are parted
    if token_type == "byte-bpe" and (in_bytes := _letters_without_token(letters, size - others - NUM_BYTES)):
        logging.info(
            f"{len(letters) - len(in_bytes)} letters have tokens; {len(in_bytes)} rare ones are spelt in bytes"
        )
        parted = re.compile(f"[{re.escape(in_bytes)}]")  # sentencepiece would want a token for each of them
        settings["sentence_iterator"] = (part for line in lines for part in parted.split(line) if part)
        del settings["input"]
    prefix = lang_dir / "_".join([settings["model_type"], *([str(size)] if vocab_size or token_type != "char" else [])])
    try:
        sentencepiece.SentencePieceTrainer.train(
            **settings,
            vocab_size=size,
            model_prefix=str(prefix),
            character_coverage=1.0,
            user_defined_symbols=[*SPECIAL[:-1]],
            unk_id=len(SPECIAL) - 1,
            bos_id=-1,
            eos_id=-1,
            input_sentence_size=100_000_000,
            max_sentence_length=max(MAX_SENTENCE_LENGTH, *(len(line.encode()) for line in lines)),
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rsplit("] ", 1)[-1].rstrip(".")
        raise UserError(
            reason or "refused", flag=option("vocab_size", size), fix=f"the text is {transcripts}"
        ) from error
    Path(f"{prefix}.vocab").unlink()
    with replacing(lang_dir / BPE_MODEL_FILE) as temporary:
        shutil.copyfile(f"{prefix}.model", temporary)


def _letters_without_token(letters: Sequence[str], room: int) -> str:
    """The rarest of the letters, which stand in the order of their number, so that `room` are left.

    One of either case is left, or `Tokenizer` would think that the text has one case alone.
    """
    cases = [next((letter for letter in letters if of_case(letter)), "") for of_case in (str.isupper, str.islower)]
    return "".join(sorted(letters, key=lambda letter: letter not in cases)[max(room, 1) :])


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
