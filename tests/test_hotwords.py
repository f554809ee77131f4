"""What a file of hotwords may hold."""

from __future__ import annotations

import re

import pytest

from kdstream.errors import UserError
from kdstream.hotwords import LONGEST, Hotword, read_hotwords


def outside(text: str) -> str:
    """The letters of a text that a model of upper-case English lacks."""
    return "".join(letter for letter in text if not ("A" <= letter <= "Z" or letter in "' "))


def read(tmp_path, text: str) -> list[Hotword]:
    path = tmp_path / "hotwords.txt"
    path.write_text(text, encoding="utf8")
    return read_hotwords(path, 1.5, outside)


def test_a_phrase_a_line_perhaps_with_its_own_score(tmp_path):
    assert read(tmp_path, "O'NEILL\n\n  NEW   YORK :2.5\n") == [Hotword("O'NEILL", 1.5), Hotword("NEW YORK", 2.5)]


@pytest.mark.parametrize("text", ["\ufeffNEW YORK\n", "\ufeff\n\nNEW YORK\n"])
def test_the_mark_of_an_encoding_is_no_part_of_a_phrase(tmp_path, text):
    assert read(tmp_path, text) == [Hotword("NEW YORK", 1.5)]


def test_a_phrase_takes_the_case_of_the_model(tmp_path):
    assert read(tmp_path, "New York\n") == [Hotword("NEW YORK", 1.5)]


def test_a_phrase_may_have_200_letters_and_a_score_besides(tmp_path):
    phrase = "A " * 99 + "AB"
    assert len(phrase) == LONGEST == 200
    assert read(tmp_path, f"{phrase} :2.5\n") == [Hotword(phrase, 2.5)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("GOOD\nNaïve\n", "line 2, 'Naïve': the model has no token for 'Ï'; correct these lines"),
        ("ZÖË ÖZ\n", "line 1, 'ZÖË ÖZ': the model has no token for 'Ö', 'Ë'; correct these lines"),
        ("éèêëïî\n", "the model has no token for 'é', 'è', 'ê', 'ë', 'ï', ...; correct these lines"),
        ("GOOD :high\n", "line 1, ':high': not a score such as :2.5"),
        ("GOOD :nan\n", "line 1, ':nan': not a score such as :2.5"),
        ("GOOD :1e999\n", "line 1, ':1e999': not a score such as :2.5"),
        ("GOOD :100\nBAD :100.1\n", "line 2, ':100.1': not a score such as :2.5, from -100 to 100; correct"),
        ("GOOD :-100\nBAD :-1e300\n", "line 2, ':-1e300': not a score such as :2.5, from -100 to 100; correct"),
        ("GOOD\n:2.5\n", "line 2 has a score and no phrase"),
        ("A :1 B\n", "line 1, 'A :1 B': the model has no token for ':', '1'"),
        ("GOOD\n" + "A" * 201, f"line 2, '{'A' * 40}...': 201 letters are more than 200; correct these lines"),
        ("GOOD :" + "9" * 40 + "high", f"line 1, ':{'9' * 39}...': not a score such as :2.5"),
        ("\n \n", "holds no phrase; write one phrase a line"),
        ("é\n" * 7, "line 5, 'é': the model has no token for 'é'; and 2 more;"),
    ],
)
def test_what_no_path_could_say_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert message in str(error.value) and "--hotwords-file" in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^--hotwords-file .*gone\.txt: no such file; name a text file$"):
        read_hotwords(tmp_path / "gone.txt", 1.5, outside)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="bytes: is not in UTF-8 .* can't decode"):
        read_hotwords(tmp_path / "bytes", 1.5, outside)


@pytest.mark.parametrize("score", [1e300, -100.5, float("nan")])
def test_a_score_of_all_phrases_is_in_the_same_range(tmp_path, score):
    (tmp_path / "hotwords.txt").write_text("GOOD\n")
    with pytest.raises(
        UserError, match=rf"^--hotwords-score {re.escape(str(score))}: must be from -100 to 100; try 0.5$"
    ):
        read_hotwords(tmp_path / "hotwords.txt", score, outside)
