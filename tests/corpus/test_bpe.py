"""The text that a tokenizer is trained on: all of it, whatever the cuts and the lines are like."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lhotse import CutSet, Recording, SupervisionSegment

from kdstream.corpus.bpe import MAX_SENTENCE_LENGTH, log_text, train_bpe_model, transcripts_of_cuts
from kdstream.data.tokenizer import Tokenizer
from support.data import WORDS
from support.decoding import run_script

TEXTS = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]


def manifest(path: Path, cuts: list[list[str | None]]) -> Path:
    """Cuts with the given texts, each of a second."""
    made = []
    for index, texts in enumerate(cuts):
        cut = Recording(f"r{index}", [], 16000, 16000 * len(texts), float(len(texts))).to_cut()
        cut.supervisions = [SupervisionSegment(f"s{n}", cut.id, n, 1.0, text=text) for n, text in enumerate(texts)]
        made.append(cut)
    CutSet.from_cuts(made).to_file(path)
    return path


def trained(texts: list[str], folder: Path, vocab_size: int = 30) -> Path:
    folder.mkdir()
    (folder / "text").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    train_bpe_model(folder / "text", folder, vocab_size)
    return folder / "bpe.model"


def test_every_supervision_of_a_cut_is_read(tmp_path, monkeypatch, caplog):
    assert transcripts_of_cuts(str(manifest(tmp_path / "a.jsonl.gz", [["A", None, " ", "B C "], [], ["D"]]))) == [
        "A", "B C", "D",
    ]  # fmt: skip
    flags = ("--vocab-size", 30, "--lang-dir")
    with caplog.at_level(logging.INFO):
        for name, cuts in (("one", [[text] for text in TEXTS]), ("whole", [TEXTS])):
            path = manifest(tmp_path / f"{name}.jsonl.gz", list(cuts))
            assert run_script(monkeypatch, "local/train_bpe_model.py", "--cuts", path, *flags, tmp_path / name) == ""
    assert (tmp_path / "one" / "tokens.txt").read_bytes() == (tmp_path / "whole" / "tokens.txt").read_bytes()
    lines = [record.getMessage() for record in caplog.records if "transcripts" in record.getMessage()]
    letters = sorted(set("".join(WORDS)))
    expected = f"{len(TEXTS)} transcripts, {len(TEXTS) * len(WORDS)} words, {len(TEXTS) * len(''.join(WORDS))} letters"
    assert len(lines) == 2
    assert all(expected in line and line.endswith(f"; 15 different ones: {''.join(letters)}") for line in lines)


@pytest.mark.parametrize("size", [MAX_SENTENCE_LENGTH, MAX_SENTENCE_LENGTH + 1, 100_000])
def test_long_lines_are_read(tmp_path, size):
    """Letters that stand in a long line alone have tokens."""
    line = "QUICK JUMPS " * (size // 12)
    tokenizer = Tokenizer(trained([*TEXTS, line + "X" * (size - len(line))], tmp_path / "lang"))
    ids = tokenizer.encode(["QUICK JUMPS"])[0]
    assert tokenizer.unk_id not in ids and tokenizer.decode(ids) == "QUICK JUMPS"


def test_letters_without_a_token_are_named(tmp_path, caplog):
    """Sentencepiece leaves out lines that hold what it uses itself."""
    spoilt = "QUACK \u2585"
    model = trained([*TEXTS, spoilt], tmp_path / "lang")
    with caplog.at_level(logging.INFO):
        log_text(TEXTS, model)
        assert not [record for record in caplog.records if record.levelno == logging.WARNING]
        log_text([*TEXTS, spoilt, "CAFE\u0301"], model)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "such as QUACK: " in warning and "Q" in warning.rsplit(": ", 1)[1]


def test_decomposed_letters_are_known_by_their_composed_form(tmp_path, caplog):
    texts = [*TEXTS, "CAFE\u0301 CAFE\u0301"]
    with caplog.at_level(logging.WARNING):
        log_text(texts, trained(texts, tmp_path / "lang"))
    assert not caplog.records
