"""Tokens: icefall's ids, the ends of words, and models that do not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from lhotse import CutSet

from kdstream.data.module import AsrDataModule
from kdstream.data.tokenizer import Tokenizer, UnknownLetters, read_tokens
from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.scoring import Transcript
from kdstream.words import SCORE_BY, nfkc, split_words
from support.data import (
    WORDS,
    batches_of,
    config_of,
    error_of,
    store,
    train_tokenizer,
)
from support.decoding import run_script
from support.tokenizers import KINDS, LANGUAGES, texts_of, tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", ["", "#0 {0}\n", "#0 {0}\n#1 {1}\n#2 {2}\n"])
def test_tokens_are_read_as_written_without_the_symbols_that_icefall_adds(tmp_path, kind, added):
    tokenizer = tiny_tokenizer(
        tmp_path / "bpe.model", ["THE #0 DAY 1 2", *texts_of(LANGUAGES["Chinese"])], **KINDS[kind]
    )
    path = tmp_path / "tokens.txt"
    tokenizer.save_tokens(path)
    path.write_text(path.read_text(encoding="utf8") + added.format(*range(tokenizer.vocab_size, 9999)), encoding="utf8")
    assert read_tokens(path) == tokenizer.tokens


@pytest.mark.parametrize("line", ["<blk>", "a b", "7", " 7", "<blk> 0x0", "<blk> -1"])
def test_a_line_that_is_not_a_piece_and_its_id_is_named(tmp_path, line):
    path = tmp_path / "tokens.txt"
    path.write_text(f"<blk> 0\n{line}\n")
    with pytest.raises(UserError, match=re.escape(f"{path}: line 2, '{line.strip()}', is not a piece and its id; ")):
        read_tokens(path)


def test_tokens_have_icefalls_ids(corpus):
    tokenizer = Tokenizer(corpus / "lang_bpe_30" / "bpe.model")
    assert tokenizer.vocab_size == len(tokenizer.tokens) == 30
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    text = "ONE TWELVE SEVEN"
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text and min(ids) > 2
    assert tokenizer.encode([text, ""])[1] == []


def test_each_word_ends_with_the_token_that_completes_it(corpus):
    tokenizer = Tokenizer(corpus / "lang_bpe_30" / "bpe.model")
    words = ["ONE", "ON", "ONE", "TWELVE", "TWELVE"]
    per_word = tokenizer.encode(words)
    ends = np.cumsum([len(ids) for ids in per_word]) - 1
    found = tokenizer.words([token for ids in per_word for token in ids])
    assert [word.word for word in found] == words and [word.last for word in found] == ends.tolist()
    assert [word.first for word in found] == [0, *(ends[:-1] + 1)]
    assert tokenizer.words([]) == []
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever a model says, <unk> and word boundaries in a row included
        ids = rng.integers(2, tokenizer.vocab_size, rng.integers(1, 12)).tolist()
        said = tokenizer.normalise(tokenizer.decode(ids)).split()
        found = tokenizer.words(ids)
        ends = [word.last for word in found]
        assert [word.word for word in found] == said and ends == sorted(ends)
        for place, (word, end) in enumerate(zip(said, ends, strict=True)):
            assert tokenizer.normalise(tokenizer.decode(ids[: end + 1])).split()[place] == word
            assert tokenizer.normalise(tokenizer.decode(ids[:end])).split()[place : place + 1] != [word]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["unigram", "char", "byte fallback"])
def test_a_model_without_a_mistake_has_no_errors_in_any_spelling(tmp_path, language, kind):
    texts = texts_of(LANGUAGES[language])
    tokenizer = tiny_tokenizer(tmp_path / "m.model", texts, **KINDS[kind])
    for score_by in SCORE_BY:
        transcripts = [
            Transcript(
                str(n),
                split_words(tokenizer.normalise(text), score_by),
                [word.word for word in tokenizer.words(tokenizer.encode([text])[0], score_by)],
            )
            for n, text in enumerate(texts)
        ]
        assert scoring.score(scoring.align(transcripts)).errors == 0
        assert all(transcript.ref for transcript in transcripts)


def test_normalised_texts_are_what_sentencepiece_trains_on(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "m.model", ["A B"])
    assert tokenizer.normalisation == "nmt_nfkc, upper case"
    assert tokenizer.normalise("  việt   ＡＢ ㎏") == "VI\u1ec6T AB KG"
    assert tokenizer.normalise("می\u200cروم") == "می روم"
    assert tokenizer.normalise("THE FIRST DAY") == "THE FIRST DAY" and tokenizer.normalise(" \u200b ") == ""
    plain = tiny_tokenizer(tmp_path / "plain.model", ["A b"], normalization_rule_name="identity")
    assert plain.normalisation == "identity" and plain.normalise(" ＡＢ  a") == "ＡＢ a"


@pytest.mark.parametrize("text", [*map(" ".join, LANGUAGES.values()), "a\u061cb\u200e c\ufeff", "５～７", "\u200b"])
def test_without_sentencepiece_texts_are_normalised_as_it_does(tmp_path, text):
    assert nfkc(text) == tiny_tokenizer(tmp_path / "m.model", ["Ab"]).normalise(text)


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_tokens_are_those_of_their_text_whatever_a_model_says(tmp_path, kind):
    """The text as sentencepiece decodes it; and each word's tokens spell it."""
    texts = ["THE CAT ON A mat", *(word for words in LANGUAGES.values() for word in words)]
    tokenizer = tiny_tokenizer(tmp_path / "m.model", texts, **KINDS[kind])
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids = rng.integers(1, tokenizer.vocab_size, rng.integers(1, 12)).tolist()
        for score_by in SCORE_BY:
            words = tokenizer.words(ids, score_by)
            assert [word.word for word in words] == split_words(tokenizer.normalise(tokenizer.decode(ids)), score_by)
            assert all(word.first <= word.last for word in words)
            assert all(one.last <= other.last for one, other in zip(words, words[1:], strict=False))
    for text in texts:
        ids, words = tokenizer.words_of(text)
        assert ids == tokenizer.encode([text])[0]
        assert [word.word for word in words] == split_words(tokenizer.normalise(text))


def test_letters_that_no_token_spells_are_counted(tmp_path, caplog):
    tokenizer = tiny_tokenizer(tmp_path / "m.model", ["THE CAT IS HERE"])
    assert tokenizer.unknown_letters("The dog: HERE") == "DOG:"
    unknown = UnknownLetters(tokenizer)
    for text in ("THE CAT", "HERE, THE, CAT", "the cow"):
        unknown.add(text)
    with caplog.at_level(logging.WARNING):
        unknown.warn("test set cased")
    letters = "',' (2), 'O' (1), 'W' (1)"
    assert [record.message for record in caplog.records] == [
        f"test set cased: 2 of 3 transcripts have characters unknown to --bpe-model: {letters}; train tokens on such "
        "text, or take these characters out of it"
    ]
    spelling = tiny_tokenizer(tmp_path / "bytes.model", ["THE CAT"], **KINDS["byte fallback"])
    assert spelling.unknown_letters("the cat") == ""


@pytest.mark.parametrize(
    "kind, phrase, pieces",
    [
        ("char", "今天", ["▁今天", "今天"]),
        ("char", "OK 今天", ["▁OK▁今天"]),
        ("char", "", [""]),
        ("no blank first", "今天", ["今天"]),
        ("no blank first", "OK", ["OK"]),  # its blank within a sentence is a token of its own
        ("blank last", "今天", ["今天▁", "今天"]),
    ],
)
def test_a_phrase_is_spelt_as_it_stands_at_the_beginning_and_within_a_sentence(tmp_path, kind, phrase, pieces):
    settings = {**KINDS[kind], "model_type": "char"}
    tokenizer = tiny_tokenizer(tmp_path / "m.model", ["OK 今天 好的", "今天天气 OK OK"], **settings)
    spelt = ["".join(tokenizer.tokens[token] for token in ids) for ids in tokenizer.spellings(phrase)]
    assert spelt == pieces


def test_the_unknown_token_has_the_name_by_which_runtimes_know_it(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "m.model", ["A B"], **KINDS["other names"])
    tokenizer.save_tokens(tmp_path / "tokens.txt")
    assert tokenizer.unk_id == 1
    assert (tmp_path / "tokens.txt").read_text().splitlines()[:2] == ["<blk> 0", "<unk> 1"]


def respelt(corpus: Path, path: Path, change: Callable[[str], str], count: int = 40) -> Path:
    """The training cuts with other texts."""
    cuts = [
        cut.map_supervisions(lambda s: s.transform_text(change))
        for cut in CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")
    ]
    CutSet.from_cuts(cuts[:count]).to_file(path)
    return path


def test_a_test_set_with_letters_that_the_tokens_lack_is_a_warning_with_their_counts(corpus, tmp_path, caplog):
    dotted = respelt(corpus, tmp_path / "dotted.jsonl.gz", lambda text: text.capitalize() + ".", count=5)
    module = AsrDataModule(config_of(corpus, test_cuts=(str(dotted),)), 0)
    with caplog.at_level(logging.WARNING):
        module.test_sets()
        module.test_sets()
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("test set dotted: 5 of 5 transcripts have characters unknown to --bpe-model: '.' (5); ")


def test_tokens_of_cuts_are_those_of_their_supervisions(corpus, tmp_path, monkeypatch):
    same = ("--vocab-size", 30, "--lang-dir")
    cuts = corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"
    parts = ("--parts", "train", "--manifest-dir", corpus / "manifests")
    for name, flags in (("cuts", ("--cuts", cuts)), ("parts", parts)):
        assert run_script(monkeypatch, "local/train_bpe_model.py", *flags, *same, tmp_path / name) == ""
    assert (tmp_path / "cuts" / "tokens.txt").read_text() == (tmp_path / "parts" / "tokens.txt").read_text()
    for path, message in (
        (tmp_path / "none.jsonl.gz", "none.jsonl.gz: no such manifest"),
        (
            corpus / "manifests" / "librispeech_supervisions_train.jsonl.gz",
            "damaged or not a manifest of cuts (line 1: SupervisionSegment instead of a cut); give one of cuts",
        ),
    ):
        assert message in run_script(monkeypatch, "local/train_bpe_model.py", "--cuts", path, *same, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_vocabulary_larger_than_the_text_allows(small):
    store(small, ("train",))
    assert "--vocab-size 5000" in error_of(lambda: train_tokenizer(small, 5000))


def test_missing_and_broken_bpe_models_name_themselves(corpus, tmp_path):
    assert "no such file" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))
    message = error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(corpus / "lang_bpe_30")), 0))
    assert message == f"--bpe-model {corpus}/lang_bpe_30: a directory; give {corpus}/lang_bpe_30/bpe.model"
    (tmp_path / "x").write_bytes(b"nothing")
    assert "not a sentencepiece" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))


def test_text_in_another_case_gives_the_same_tokens_and_text_of_other_letters_is_refused(corpus, tmp_path):
    lower = respelt(corpus, tmp_path / "lower.jsonl.gz", str.lower)
    same = [batches_of(config_of(corpus, **cuts)) for cuts in ({}, {"train_cuts": (str(lower),)})]
    assert all(torch.equal(one.tokens, two.tokens) for one, two in zip(*same, strict=True)) and same[0]
    other = respelt(corpus, tmp_path / "other.jsonl.gz", lambda text: text.replace("E", "\u0416"))
    message = error_of(lambda: batches_of(config_of(corpus, train_cuts=(str(other),))))
    assert re.search(
        r"training cuts: \d+ of 40 transcripts have characters unknown to --bpe-model: '\u0416' \(\d+\)", message
    )


@pytest.mark.parametrize("settings", [{}, dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3)])
def test_a_model_whose_token_0_is_not_blank_is_refused(tmp_path, settings):
    train = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(WORDS * 5), model_prefix=str(tmp_path / "bpe"), vocab_size=24, **settings)
    message = error_of(lambda: Tokenizer(tmp_path / "bpe.model"))
    assert f"{tmp_path}/bpe.model: token 0 is {'<pad>' if settings else '<unk>'}, and not <blk>" in message
    assert "kdstream train-bpe-model" in message


def test_a_model_trained_as_icefall_trains_it_is_taken(tmp_path):
    """local/train_bpe_model.py of its librispeech recipe, all but the size."""
    symbols = ["<blk>", "<sos/eos>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 5),
        vocab_size=24,
        model_type="unigram",
        model_prefix=str(tmp_path / "bpe"),
        input_sentence_size=100000000,
        character_coverage=1.0,
        user_defined_symbols=symbols,
        unk_id=len(symbols),
        bos_id=-1,
        eos_id=-1,
    )
    assert Tokenizer(tmp_path / "bpe.model").tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
