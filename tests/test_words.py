"""What counts as a word in each script, and which tokens spell it."""

from __future__ import annotations

import unicodedata

import pytest

from kdstream.transcription import Word, group_words
from kdstream.words import CHAR, MIXED, RATES, WORD, as_text, locate, spell, split_words, unit_of

NFD = "NFD"


@pytest.mark.parametrize(
    "text, words",
    [
        ("THE FIRST  DAY ", ["THE", "FIRST", "DAY"]),
        ("đường phố", ["đường", "phố"]),
        (unicodedata.normalize(NFD, "đường"), [unicodedata.normalize(NFD, "đường")]),
        ("안녕하세요 한국어", ["안녕하세요", "한국어"]),  # Hangul is written with blanks
        ("می\u200cروم خانه", ["می\u200cروم", "خانه"]),
        ("你好世界", ["你", "好", "世", "界"]),
        ("你好 世界", ["你", "好", "世", "界"]),
        ("我有iPhone手机 OK", ["我", "有", "iPhone", "手", "机", "OK"]),
        ("人々は〇〆\U00020000", ["人", "々", "は", "〇", "〆", "\U00020000"]),
        ("カメラーとｶﾒﾗ", list("カメラーとｶﾒﾗ")),
        (unicodedata.normalize(NFD, "がぎ"), [unicodedata.normalize(NFD, "が"), unicodedata.normalize(NFD, "ぎ")]),
        ("ลังผู้ ก็", ["ลั", "ง", "ผู้", "ก็"]),
        ("ສະບາຍດີ", ["ສ", "ະ", "ບ", "າ", "ຍ", "ດີ"]),
        ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ក\u200bខ", ["ក\u200b", "ខ"]),  # what has no width stays with the character before it
        ("* <unk> ⁇", ["*", "<unk>", "⁇"]),
        ("", []),
    ],
)
def test_words_are_what_blanks_part_and_characters_where_a_script_has_none(text, words):
    assert split_words(text) == words
    assert split_words(text, "word") == text.split()


def test_characters_are_words_where_that_is_asked_for():
    assert split_words("AB Ç你 ", "char") == ["A", "B", "Ç", "你"]
    assert split_words(unicodedata.normalize(NFD, "việt"), "char") == [
        unicodedata.normalize(NFD, letter) for letter in "việt"
    ]


@pytest.mark.parametrize(
    "text, unit",
    [
        ("THE FIRST DAY", WORD),
        ("안녕하세요", WORD),
        ("你好，世界。", CHAR),  # punctuation is no unit
        ("สวัสดี", CHAR),
        ("我有 iPhone", MIXED),
        ("年 2024", MIXED),
        ("...", WORD),
    ],
)
def test_the_unit_is_that_of_the_words(text, unit):
    assert unit_of(split_words(text)) == unit
    assert unit_of(split_words(text, "char"), "char") == CHAR and unit_of(text.split(), "word") == WORD
    assert RATES[unit] == {WORD: "WER", CHAR: "CER", MIXED: "MER"}[unit]


@pytest.mark.parametrize(
    "pieces, text, located",
    [
        (["▁THE", "▁F", "IR", "ST"], "THE FIRST", [("THE", 0, 0), ("FIRST", 1, 3)]),
        ([" THE", " F", "IR", "ST"], "THE FIRST", [("THE", 0, 0), ("FIRST", 1, 3)]),  # sherpa-onnx's spelling
        (["▁", "A", "▁", "▁B", "▁"], "A B", [("A", 0, 1), ("B", 3, 3)]),
        (["THE▁", "F", "IRST▁"], "THE FIRST", [("THE", 0, 0), ("FIRST", 1, 2)]),
        (["▁A▁B", "C"], "A BC", [("A", 0, 0), ("BC", 0, 1)]),
        (["▁你好", "世", "▁界"], "你好世 界", [("你", 0, 0), ("好", 0, 0), ("世", 1, 1), ("界", 2, 2)]),
        (["▁zo", "<0xC3>", "<0xAB>", "▁A"], "zoë A", [("zoë", 0, 2), ("A", 3, 3)]),
        (["<0xE4>", "<0xBD>", "<0xA0>", "<0x41>"], "你A", [("你", 0, 2), ("A", 3, 3)]),
        (["▁a", "<0xE4>", "<0xBD>", "b"], "a\ufffd\ufffdb", [("a\ufffd\ufffdb", 0, 3)]),
        (["▁A", "<0x20>", "B"], "A B", [("A", 0, 0), ("B", 1, 2)]),
        ([], "", []),
    ],
)
def test_words_are_found_in_the_pieces_that_spell_them(pieces, text, located):
    letters = spell(pieces)
    assert as_text(letters) == text
    assert locate(letters) == located


def test_every_character_of_a_script_without_blanks_has_its_time():
    letters = spell(["▁今天", "天", "<0xE6>", "<0xB0>", "<0x94>", "▁OK"])
    assert group_words(letters, [3, 5, 6, 7, 9, 20]) == [
        Word("今", 0.12, 0.16),
        Word("天", 0.12, 0.16),
        Word("天", 0.2, 0.24),
        Word("气", 0.24, 0.4),
        Word("OK", 0.8, 0.84),
    ]
