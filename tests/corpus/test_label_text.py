"""Texts as a student's tokens can spell them."""

from __future__ import annotations

import pytest
import sentencepiece

from kdstream.config.labels import LabelConfig
from kdstream.corpus.label_text import StudentText, read_spellings
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from support.tokenizers import ICEFALLS

UPPER = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND DOESN'T STOP"
ALPHABETS = {
    "upper": UPPER,
    "lower": UPPER.lower(),
    "cased": f"{UPPER} {UPPER.lower()} , . ? - 0 1 9 é",
    "no apostrophe": UPPER.replace("'", ""),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokens")
    for name, text in ALPHABETS.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 3), model_prefix=str(folder / name), vocab_size=90, minloglevel=3,
            hard_vocab_limit=False, model_type="char", character_coverage=1.0, **ICEFALLS,
        )  # fmt: skip
    return {name: Tokenizer(folder / f"{name}.model") for name in ALPHABETS}


@pytest.mark.parametrize(
    "alphabet, given, spelt",
    [
        ("upper", " Well-known, isn\u2019t it?  He said: \u2018Yes\u2019\u2026", "WELL KNOWN ISN'T IT HE SAID YES"),
        ("upper", "Ten o'clock, 'twas rock 'n' roll", "TEN O'CLOCK TWAS ROCK N ROLL"),
        ("upper", "A na\u00efve caf\u00e9 \u2014 \u201cHi\u201d", "A NAIVE CAFE HI"),
        ("lower", "Mr. DARCY", "mr darcy"),
        ("cased", "Caf\u00e9 No. 9", "Caf\u00e9 No 9"),
        ("no apostrophe", "Don't", "DONT"),
        ("upper", "...", ""),
    ],
)
def test_case_punctuation_and_accents_follow_the_tokens(tokenizers, alphabet, given, spelt):
    tokenizer = tokenizers[alphabet]
    assert StudentText(tokenizer, LabelConfig()).spell(given) == spelt
    assert tokenizer.unknown_letters(spelt) == ""


@pytest.mark.parametrize("given, unknown", [("50% of it", "50%"), ("R&D", "&"), ("Привет", "ПРИВЕТ"), ("$7", "$7")])
def test_what_stands_for_a_word_or_a_letter_is_never_left_out_silently(tokenizers, given, unknown):
    text = StudentText(tokenizers["upper"], LabelConfig()).spell(given)
    assert tokenizers["upper"].unknown_letters(text) == unknown


def test_flags_keep_case_and_punctuation(tokenizers):
    config = LabelConfig(case="lower", keep_punctuation=True)
    assert StudentText(tokenizers["cased"], config).spell("Well-known, isn't it!") == "well-known, isn't it"
    assert StudentText(tokenizers["upper"], config).spell("Yes, OK") == "YES OK"


def test_words_are_replaced_in_any_case(tokenizers, tmp_path):
    path = tmp_path / "spellings.txt"
    path.write_text("mr Mister\nOK  O K\n\nCOLOR colour\n")
    config = LabelConfig(spellings=str(path))
    assert StudentText(tokenizers["upper"], config).spell("Ok, Mr. Color colors") == "O K MISTER COLOUR COLORS"
    path.write_text("mr Mister\nmrs\n")
    with pytest.raises(UserError, match=f"--spellings {path}: line 2: mrs has no other spelling"):
        StudentText(tokenizers["upper"], config)


def test_spellings_in_another_encoding_are_refused(tokenizers, tmp_path):
    path = tmp_path / "spellings.txt"
    path.write_bytes("café CAFE\n".encode("latin-1"))
    with pytest.raises(UserError, match=f"--spellings {path}: is not in UTF-8 .*; convert it, say with iconv"):
        StudentText(tokenizers["upper"], LabelConfig(spellings=str(path)))


def test_the_mark_of_utf8_is_no_part_of_the_first_spelling(tmp_path):
    path = tmp_path / "spellings.txt"
    path.write_bytes("MR MISTER\n".encode("utf-8-sig"))
    assert read_spellings(path) == {"mr": "MISTER"}


def test_no_such_file_of_spellings(tokenizers):
    config = LabelConfig(spellings="nowhere.txt")
    with pytest.raises(UserError, match="--spellings nowhere.txt: no such file"):
        StudentText(tokenizers["upper"], config)
