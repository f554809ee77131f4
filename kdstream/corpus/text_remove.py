"""--text-remove: a regular expression of what is taken out of transcripts, such as [noise] and punctuation."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable

from kdstream.corpus.token_types import SPECIAL
from kdstream.errors import UserError, option

REMOVE_THEM = f"take it out of texts: --text-remove '(?i){'|'.join(SPECIAL)}'"  # TED-LIUM's texts have <unk>


def add_text_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-remove", default="", help="A regular expression of what to take out of texts.")


def check_text_remove(text_remove: str) -> None:
    """Raises UserError where it is no regular expression."""
    try:
        re.compile(text_remove)
    except re.error as error:
        fix = r"for marks in brackets write '\[[^]]*\]', for punctuation '[.,?!]'"
        raise UserError(f"no regular expression ({error})", flag=option("text_remove", text_remove), fix=fix) from error


def check_no_special(texts: Iterable[str], what: str, fix: str) -> None:
    """Raises UserError where texts hold the name of a special token, in any case: it would be taken for that, or split.

    what: the texts are, e.g. "part train".
    """
    total, counts = 0, Counter[str]()
    for text in texts:
        total += 1
        counts.update(name for name in SPECIAL if name in text.lower())
    if counts:
        found = " and ".join(f"{name} in {times}" for name, times in counts.items())
        raise UserError(f"{what}: {found} of {total} transcripts, which is the name of a token and no word", fix=fix)


def removed(text: str, text_remove: str) -> str:
    """The text with a blank in place of what is taken out, and one blank between words.

    An expression such as [.,]* finds nothing between any two letters too: no blank comes there.
    """
    return " ".join((re.sub(text_remove, lambda found: " " * bool(found[0]), text) if text_remove else text).split())
