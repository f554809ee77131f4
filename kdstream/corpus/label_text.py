"""What a labeller writes, as a student's tokens can spell it."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

from kdstream.config.labels import LabelConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError, option
from kdstream.files import read_utf8
from kdstream.words import in_case

APOSTROPHE = "'"
APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\u00b4`", APOSTROPHE * 5)
SPOKEN = "%&@#*/"  # Unicode calls them punctuation, but they stand for words


class StudentText:
    """Spells texts with a student's tokens.

    Punctuation is left out, but for apostrophes within words, and with --keep-punctuation for what the tokens spell.  A
    letter with an accent that they lack becomes the letter without it.  Any other letter, digit or symbol that they
    lack stays, for the caller to drop the text: without it the text would have a hole.

    Raises UserError for a --spellings that cannot be read.
    """

    def __init__(self, tokenizer: Tokenizer, config: LabelConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._spellings = read_spellings(Path(config.spellings)) if config.spellings else {}
        self._is_known = functools.cache(lambda character: not tokenizer.unknown_letters(character))

    def spell(self, text: str) -> str:
        """The text as a transcript for the student; "" where nothing is left."""
        text = self.tokenizer.normalise(in_case(text, self.config.case)).translate(APOSTROPHES)
        padded = f" {text} "
        spelt = "".join(self._spell(*padded[place - 1 : place + 2]) for place in range(1, len(padded) - 1))
        words = (self._spellings.get(word.casefold(), word) for word in spelt.split())
        return self.tokenizer.normalise(in_case(" ".join(words), self.config.case))

    def _spell(self, before: str, character: str, after: str) -> str:
        """One character, between two others."""
        if character == APOSTROPHE and before.isalpha() and after.isalpha():
            return character if self._is_known(character) else ""
        if unicodedata.category(character).startswith("P") and character not in SPOKEN:
            return character if self.config.keep_punctuation and self._is_known(character) else " "
        plain = unicodedata.normalize("NFKD", character)[0]
        return plain if not self._is_known(character) and self._is_known(plain) else character


def read_spellings(path: Path) -> dict[str, str]:
    """By word, casefolded, what stands for it: one of each a line, the word first."""
    flag = option("spellings", path)
    spellings: dict[str, str] = {}
    for number, line in enumerate(read_utf8(path, flag).splitlines(), 1):
        word, _, instead = line.strip().partition(" ")
        if word and not instead.strip():
            raise UserError(f"line {number}: {word} has no other spelling", flag=flag, fix="write e.g. MR MISTER")
        if word:
            spellings[word.casefold()] = instead
    return spellings
