"""Tokens: icefall's ids, the ends of words, and models that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece
from lhotse import CutSet

from kdstream.data.module import AsrDataModule
from kdstream.data.tokenizer import Tokenizer
from support.data import (
    WORDS,
    batches_of,
    config_of,
    error_of,
    store,
    train_tokenizer,
)
from support.decoding import run_script


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
    assert tokenizer.word_ends([token for ids in per_word for token in ids]) == ends.tolist()
    assert tokenizer.word_ends([]) == []
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever a model says, <unk> and word boundaries in a row included
        ids = rng.integers(2, tokenizer.vocab_size, rng.integers(1, 12)).tolist()
        said = tokenizer.decode(ids).split()
        ends = tokenizer.word_ends(ids)
        assert len(ends) == len(said) and ends == sorted(ends)
        for place, (word, end) in enumerate(zip(said, ends, strict=True)):
            assert tokenizer.decode(ids[: end + 1]).split()[place] == word
            assert tokenizer.decode(ids[:end]).split()[place : place + 1] != [word]


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
            "damaged or not a manifest of cuts (SupervisionSegment instead of a cut); give one of cuts",
        ),
    ):
        assert message in run_script(monkeypatch, "local/train_bpe_model.py", "--cuts", path, *same, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_vocabulary_larger_than_the_text_allows(small):
    store(small, ("train",))
    assert "--vocab-size 5000" in error_of(lambda: train_tokenizer(small, 5000))


def test_missing_and_broken_bpe_models_name_themselves(corpus, tmp_path):
    assert "no such file" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))
    (tmp_path / "x").write_bytes(b"nothing")
    assert "not a sentencepiece" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))


def test_text_in_the_wrong_case_is_noticed(corpus, tmp_path):
    cuts = [
        cut.map_supervisions(lambda s: s.transform_text(str.lower))
        for cut in CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    message = error_of(lambda: batches_of(config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),))))
    assert "40 of 40 transcripts" in message and "case" in message


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
