"""The kinds of tokens, and what each asks of sentencepiece's trainer.  Parsers read it: it needs no other package."""

from __future__ import annotations

from typing import Any

TOKEN_TYPES: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "unigram"},
    "char": {"model_type": "char", "hard_vocab_limit": False},  # there may be fewer letters than tokens asked for
    "byte-bpe": {"model_type": "unigram", "byte_fallback": True},
}
TEXT_CASES = ("keep", "upper", "lower")
SPECIAL = ("<blk>", "<sos/eos>", "<unk>")  # pieces that are no words, by their ids
