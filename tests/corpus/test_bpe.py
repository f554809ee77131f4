"""The text that a tokenizer is trained on: all of it, whatever the cuts and the lines are like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, Recording, SupervisionSegment

from kdstream.commands import train_bpe_model as train_bpe_model_command
from kdstream.corpus.bpe import MAX_SENTENCE_LENGTH, log_text, texts_for_tokens, train_bpe_model, transcripts_of_cuts
from kdstream.corpus.token_types import TEXT_CASES, TOKEN_TYPES
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.words import spell, split_words
from support.data import WORDS
from support.decoding import run_script

CHINESE = [
    "今天 天气 很好",
    "我 有 手机",
    "他说 英语",
    "你好 世界",
    "我 用 iPhone Plus 说话",
]  # blanks as AISHELL has them
STRANGE = ["naïve Ω", "魚🎉 ok", "\u0301", "a\u200bb", "㎏ ＡＢ", "مرحبا 你好 WORLD"]
TEXTS = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))]


def manifest(path: Path, cuts: Sequence[Sequence[str | None]]) -> Path:
    """Cuts with the given texts, each of a second."""
    made = []
    for index, texts in enumerate(cuts):
        cut = Recording(f"r{index}", [], 16000, 16000 * len(texts), float(len(texts))).to_cut()
        cut.supervisions = [SupervisionSegment(f"s{n}", cut.id, n, 1.0, text=text) for n, text in enumerate(texts)]
        made.append(cut)
    CutSet.from_cuts(made).to_file(path)
    return path


def trained(texts: list[str], folder: Path, vocab_size: int | None = 30, token_type: str = "bpe") -> Path:
    folder.mkdir()
    (folder / "text").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    train_bpe_model(folder / "text", folder, vocab_size, token_type)
    return folder / "bpe.model"


def test_a_text_with_the_name_of_a_token_is_refused(tmp_path):
    cuts = str(manifest(tmp_path / "a.jsonl.gz", [["A <unk>"], ["B"]]))
    with pytest.raises(UserError, match=f"^{cuts}: <unk> in 1 of 2 transcripts, .*; take it out of the texts"):
        train_bpe_model_command.main(["--cuts", cuts, "--lang-dir", str(tmp_path / "lang")])
    assert not (tmp_path / "lang").exists()


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_number_of_tokens_below_one_is_refused(tmp_path, capsys, size):
    with pytest.raises(SystemExit, match="2"):
        train_bpe_model_command.main(["--cuts", "x", "--vocab-size", size, "--lang-dir", str(tmp_path / "lang")])
    assert f"error: argument --vocab-size: {size}: must be at least 1; " in capsys.readouterr().err
    assert not (tmp_path / "lang").exists()


def test_every_supervision_of_a_cut_is_read(tmp_path, monkeypatch, caplog):
    assert transcripts_of_cuts(str(manifest(tmp_path / "a.jsonl.gz", [["A", None, " ", "B C "], [], ["D"]]))) == [
        "A", "B C", "D",
    ]  # fmt: skip
    flags = ("--vocab-size", 30, "--lang-dir")
    with caplog.at_level(logging.INFO):
        for name, cuts in (("one", [[text] for text in TEXTS]), ("whole", [TEXTS])):
            path = manifest(tmp_path / f"{name}.jsonl.gz", cuts)
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


def test_chars_are_the_letters_of_the_text_and_the_blank_between_words(tmp_path):
    tokenizer = Tokenizer(trained(TEXTS, tmp_path / "lang", None, "char"))
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert sorted(tokenizer.tokens[3:]) == sorted({*"".join(TEXTS).replace(" ", "\u2581")})
    assert [tokenizer.tokens[i] for i in tokenizer.encode(["ONE SIX"])[0]] == list("\u2581ONE\u2581SIX")
    few = Tokenizer(trained(TEXTS, tmp_path / "few", 10, "char"))
    assert few.vocab_size == 10 and set(few.tokens) < set(tokenizer.tokens)
    for token_type, least in ("char", 5), ("byte-bpe", 261):
        with pytest.raises(UserError, match=f"--vocab-size {least - 1}: leaves no token for a letter; give {least}"):
            trained(["A B"], tmp_path / token_type, least - 1, token_type)
        assert Tokenizer(trained(["A A"], tmp_path / f"{token_type}-least", least, token_type)).vocab_size == least


@pytest.mark.parametrize("token_type, size", [("char", None), ("byte-bpe", 280), ("bpe", 31)])
def test_chinese_has_no_blanks_but_between_latin_words(tmp_path, token_type, size):
    texts = texts_for_tokens(CHINESE)
    assert texts[0] == "今天天气很好" and texts[-1] == "我用iPhone Plus说话"
    tokenizer = Tokenizer(trained(texts, tmp_path / "lang", size, token_type))
    for text, joined in zip(CHINESE, texts, strict=True):
        ids = tokenizer.encode([text])[0]
        assert ids == tokenizer.encode([joined])[0] and tokenizer.decode(ids) == tokenizer.normalise(text) == joined
        assert not tokenizer.tokens[ids[0]].startswith("\u2581")
        for score_by in ("auto", "char", "word"):
            words = [word.word for word in tokenizer.words(ids, score_by)]
            assert words == split_words(tokenizer.normalise(text), score_by)
    assert texts_for_tokens([*TEXTS, "今天 天气"])[-1] == "今天 天气"  # most of this text is written with blanks


@pytest.mark.parametrize("texts, size", [(TEXTS, 280), (CHINESE, 265), (["Ⅷ naïve façade ÀÉ", "b"], 263)])
def test_byte_bpe_spells_every_text_and_reads_any_bytes(tmp_path, texts, size):
    """Few letters have a token of their own where there is no room for all."""
    tokenizer = Tokenizer(trained(texts_for_tokens(texts), tmp_path / "lang", size, "byte-bpe"))
    assert tokenizer.vocab_size == size and tokenizer.tokens[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    for text in [*texts, *STRANGE]:
        ids = tokenizer.encode([text])[0]
        assert tokenizer.unk_id not in ids and tokenizer.unknown_letters(text) == ""
        assert tokenizer.decode(ids).strip() == tokenizer.normalise(text)
        assert [word.word for word in tokenizer.words(ids)] == split_words(tokenizer.normalise(text))
    rng = np.random.default_rng(0)
    for _ in range(300):  # most of these bytes are no characters
        ids = rng.integers(2, size, rng.integers(1, 12)).tolist()
        words = [word.word for word in tokenizer.words(ids)]
        assert words == split_words(tokenizer.normalise(tokenizer.decode(ids)))


@pytest.mark.parametrize("token_type, size", [("bpe", 30), ("char", None), ("byte-bpe", 280)])
@pytest.mark.parametrize("case", TEXT_CASES)
def test_texts_have_the_case_of_the_tokens(tmp_path, token_type, size, case):
    mixed = [text.capitalize() for text in TEXTS]
    tokenizer = Tokenizer(trained(texts_for_tokens(mixed, case), tmp_path / "lang", size, token_type))
    spelt = {"upper": "ONE SIX", "lower": "one six"}.get(case, "One SIX")
    assert tokenizer.normalise("One SIX") == spelt
    assert tokenizer.normalisation == {"keep": "nmt_nfkc"}.get(case, f"nmt_nfkc, {case} case")
    if case != "keep":
        assert {tokenizer.decode(ids) for ids in tokenizer.encode(["One SIX", "ONE SIX", "one six"])} == {spelt}
        assert [word.word for word in tokenizer.words_of("One SIX")[1]] == spelt.split()


def test_bytes_of_the_other_case_count_as_the_letter(tmp_path):
    """A model may say them, though no text has them."""
    tokenizer = Tokenizer(trained(TEXTS, tmp_path / "lang", 280, "byte-bpe"))
    ids = [tokenizer.tokens.index(piece) for piece in ("<0x73>", "<0x69>", "<0xC3>", "<0x9F>")]  # siß
    assert [tuple(word) for word in tokenizer.words(ids)] == [("SISS", 0, 3)]


def test_each_type_is_a_flag_of_the_command(tmp_path, monkeypatch):
    cuts = manifest(tmp_path / "a.jsonl.gz", [[text.lower()] for text in TEXTS])
    flags = ("--cuts", cuts, "--text-case", "upper")
    for token_type, size in zip(TOKEN_TYPES, ("30", None, "280"), strict=True):
        folder = tmp_path / token_type
        more = ("--vocab-size", size) if size else ()
        more += ("--token-type", token_type, "--lang-dir", folder)
        assert run_script(monkeypatch, "local/train_bpe_model.py", *flags, *more) == ""
        pieces = [line.rsplit(" ", 1)[0] for line in (folder / "tokens.txt").read_text().splitlines()]
        assert pieces == Tokenizer(folder / "bpe.model").tokens
        assert (folder / "transcript_words.txt").read_text().splitlines() == TEXTS
        letters = {letter.character for letter in spell([piece for piece in pieces[3:] if "<" not in piece])}
        assert letters == {*"".join(TEXTS), " "}
