"""What a trained model is made of: its tokens are those that it was trained with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kdstream.checkpoints.trained import Trained, load_trained
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import TOKENS_FILE, ExperimentConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from support.decoding import make_experiment
from support.tokenizers import tiny_tokenizer


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory) -> Path:
    """It was trained with ../bpe.model; ../other.model has as many tokens, in another order."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_tokenizer(folder / "bpe.model", ["AAAA BBB CC D"], model_type="char")
    tiny_tokenizer(folder / "other.model", ["DDDD CCC BB A"], model_type="char")
    return make_experiment(folder, causal=True, bpe_model=folder / "bpe.model")


def load(exp_dir: Path, bpe_model: str) -> Trained:
    config = ExperimentConfig.load(exp_dir)
    data = replace(config.data, bpe_model=str(exp_dir.parent / bpe_model))
    return load_trained(replace(config, data=data), DecodeConfig(exp_dir=str(exp_dir)))


def test_as_many_tokens_that_are_not_the_trained_ones_are_refused(exp_dir):
    tokenizer = Tokenizer(exp_dir.parent / "bpe.model")
    tokenizer.save_tokens(exp_dir / TOKENS_FILE)
    assert load(exp_dir, "bpe.model").tokenizer.tokens == tokenizer.tokens
    others = Tokenizer(exp_dir.parent / "other.model").tokens
    assert len(others) == tokenizer.vocab_size and others != tokenizer.tokens
    token = next(n for n, piece in enumerate(others) if piece != tokenizer.tokens[n])
    said = (
        f"{exp_dir.parent / 'other.model'}: not the tokens in {exp_dir / TOKENS_FILE} "
        f"(its token {token} is {others[token]!r}, the model's {tokenizer.tokens[token]!r}); give the --bpe-model"
    )
    with pytest.raises(UserError, match="^" + re.escape(said)):
        load(exp_dir, "other.model")


def test_icefalls_symbols_and_files_of_other_tools_are_no_other_tokens(exp_dir, caplog):
    tokenizer, table = Tokenizer(exp_dir.parent / "bpe.model"), exp_dir / TOKENS_FILE
    tokenizer.save_tokens(table)
    table.write_text(f"{table.read_text()}#0 {tokenizer.vocab_size}\n")
    load(exp_dir, "bpe.model")
    assert "not compared" not in caplog.text
    table.write_text("\n".join(tokenizer.tokens))
    load(exp_dir, "bpe.model")
    assert f"{table}: line 1, '<blk>', is not a piece and its id; the tokens of" in caplog.text
    table.unlink()
    caplog.clear()
    load(exp_dir, "bpe.model")
    assert caplog.text == ""
