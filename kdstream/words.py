"""What counts as a word in any script, and which tokens spell it.  Needs no other package.

One rule for scores, delays, alignments and transcriptions: words are what blanks part, and every character of a script
that is written without blanks between words is a word of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SCORE_BY = ("auto", "word", "char")
WORD, CHAR, MIXED = "word", "char", "mixed"
RATES = {WORD: "WER", CHAR: "CER", MIXED: "MER"}  # the word, character and mixed error rate
WORD_START = "\u2581"  # how sentencepiece writes a blank in a piece
NO_CHARACTER = "\ufffd"  # what stands for a byte that is part of none
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a piece that is one byte of a character in UTF-8
NO_WIDTH = re.compile("[\u061c\u200b\u200c\u200e\u200f\ufeff]")
WIDE_TILDE = "\uff5e"
ATTACHED = ("Mn", "Mc", "Me", "Cf")  # combining marks and joiners belong to the character before them
UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\U000116d0-\U000116ff"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # Han
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # Hiragana, Katakana
    "]"
)
BLANKS_BESIDE_UNSPACED = re.compile(rf"(?<={UNSPACED.pattern})\s+|\s+(?={UNSPACED.pattern})")


class Letter(NamedTuple):
    """A character, and the places of the first and the last token that spell it."""

    character: str
    first: int
    last: int


class Located(NamedTuple):
    """A word, and the places of the first and the last token that spell it."""

    word: str
    first: int
    last: int


def split_words(text: str, score_by: str = "auto") -> list[str]:
    """The words of a text.

    Args:
      score_by: "word": what blanks part.  "char": every character but blanks.  "auto": what blanks part, and in it each
        character of Han, Hiragana, Katakana, Thai, Lao, Khmer and Myanmar.  Combining marks stay with their character.
    """
    return [text[begin:end] for begin, end in _spans(text, score_by)]


def unit_of(words: Iterable[str], score_by: str = "auto") -> str:
    """What the words of `split_words` are: WORD, CHAR, or MIXED, which is both.  Punctuation does not count."""
    if score_by != "auto":
        return score_by
    kinds = {UNSPACED.match(word) is not None for word in words if any(map(str.isalnum, word))}
    return MIXED if len(kinds) == 2 else CHAR if kinds == {True} else WORD


def is_symbol(piece: str) -> bool:
    """Whether a piece stands for no letters of its own, as <blk> and bytes."""
    return piece.startswith("<") and piece.endswith(">")


def case_of(tokens: Sequence[str]) -> str:
    """The one case of the letters in tokens, "upper" or "lower"; "" where they have both, or none."""
    letters = "".join(token for token in tokens if not is_symbol(token))
    upper, lower = (any(map(is_of_case, letters)) for is_of_case in (str.isupper, str.islower))
    return "" if upper == lower else "upper" if upper else "lower"


def in_case(text: str, case: str) -> str:
    """The text in upper or lower case; as it is where the case is neither."""
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text


def nfkc(text: str) -> str:
    """The text as sentencepiece has it by default: NFKC but for a wide tilde, and blanks for what has no width."""
    parts = NO_WIDTH.sub(" ", text).split(WIDE_TILDE)
    return " ".join(WIDE_TILDE.join(unicodedata.normalize("NFKC", part) for part in parts).split())


def mostly_unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters are of scripts that are written without blanks between words."""
    counts = [(len(UNSPACED.findall(text)), len("".join(text.split()))) for text in texts]
    return 2 * sum(unspaced for unspaced, _ in counts) > sum(letters for _, letters in counts)


def without_blanks_beside_unspaced(text: str) -> str:
    """The text without the blanks beside characters of such scripts: corpora put them where they like."""
    return BLANKS_BESIDE_UNSPACED.sub("", text)


def _spans(text: str, score_by: str) -> Iterator[tuple[int, int]]:
    """Where each word begins, and where it ends."""
    for match in re.finditer(r"\S+", text):
        begin, stop = match.span()
        if score_by == WORD or (score_by == "auto" and not UNSPACED.search(match[0])):
            yield begin, stop
            continue
        alone = _stands_alone(text[begin], score_by)
        for place in range(begin + 1, stop):
            if unicodedata.category(text[place]) in ATTACHED:
                continue
            before, alone = alone, _stands_alone(text[place], score_by)
            if before or alone:
                yield begin, place
                begin = place
        yield begin, stop


def _stands_alone(character: str, score_by: str) -> bool:
    return score_by == CHAR or UNSPACED.match(character) is not None


def spell(pieces: Sequence[str]) -> list[Letter]:
    """The characters that pieces make, as sentencepiece or sherpa-onnx write them.

    A blank is WORD_START or a blank.  Pieces of bytes in a row become characters; a byte that is none is NO_CHARACTER.
    """
    letters: list[Letter] = []
    run, begin = bytearray(), 0  # bytes so far, and the place of the first one
    for place, piece in enumerate([*pieces, ""]):
        if byte := BYTE_PIECE.fullmatch(piece):
            begin = begin if run else place
            run.append(int(byte[1], 16))
            continue
        for character, first, last in _characters(bytes(run)):
            letters.append(Letter(character, begin + first, begin + last))
        run.clear()
        letters += (Letter(character, place, place) for character in piece.replace(WORD_START, " "))
    return letters


def _characters(run: bytes) -> Iterator[tuple[str, int, int]]:
    """Each character of UTF-8, and the places of its first and its last byte."""
    place = 0
    while place < len(run):
        for size in range(1, 5):
            try:
                character = run[place : place + size].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            character, size = NO_CHARACTER, 1
        yield character, place, place + size - 1
        place += size


def as_text(letters: Sequence[Letter]) -> str:
    """Their text, with one blank where there are several."""
    return " ".join("".join(letter.character for letter in letters).split())


def locate(letters: Sequence[Letter], score_by: str = "auto") -> list[Located]:
    """The words of a text, and the tokens that spell each: from the one with the blank before it, if it begins so."""
    text = "".join(letter.character for letter in letters)
    located = []
    for begin, end in _spans(text, score_by):
        first = letters[begin].first
        if begin and text[begin - 1].isspace():
            before = letters[begin - 1].first
            if begin == 1 or letters[begin - 2].last < before:  # not the blank at the end of another word's token
                first = before
        located.append(Located(text[begin:end], first, letters[end - 1].last))
    return located
