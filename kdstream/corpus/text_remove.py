"""--text-remove: a regular expression of what is taken out of transcripts, such as [noise] and punctuation."""

from __future__ import annotations

import argparse
import re

from kdstream.errors import UserError, option


def add_text_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-remove", default="", help="A regular expression of what to take out of texts.")


def check_text_remove(text_remove: str) -> None:
    """Raises UserError where it is no regular expression."""
    try:
        re.compile(text_remove)
    except re.error as error:
        fix = r"for marks in brackets write '\[[^]]*\]', for punctuation '[.,?!]'"
        raise UserError(f"no regular expression ({error})", flag=option("text_remove", text_remove), fix=fix) from error


def removed(text: str, text_remove: str) -> str:
    """The text with a blank in place of what is taken out, and one blank between words.

    An expression such as [.,]* finds nothing between any two letters too: no blank comes there.
    """
    return " ".join((re.sub(text_remove, lambda found: " " * bool(found[0]), text) if text_remove else text).split())
