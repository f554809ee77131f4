"""Training a language model: texts, batches, perplexity, and going on after an interruption."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdstream.checkpoints.store import load_checkpoint, load_weights, save_checkpoint
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.lm.bigram import load_bigram
from kdstream.lm.model import load_lm
from kdstream.lm.settings import LmConfig
from kdstream.lm.text import SOS_EOS_ID, read_text
from kdstream.lm.train import LmTrainer, perplexity
from support.models import tiny_test_model
from support.tokenizers import tiny_tokenizer

NOUNS, VERBS = "DOG CAT BIRD MAN".split(), "RUNS SLEEPS SINGS".split()


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"THE {rng.choice(NOUNS)} {rng.choice(VERBS)} AND THE {rng.choice(NOUNS)} WAITS" for _ in range(count)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> LmConfig:
    folder = tmp_path_factory.mktemp("lm")
    tiny_tokenizer(folder / "bpe.model", sentences(50, 0), model_type="char")
    (folder / "text").write_text("\n".join(sentences(120, 0)) + "\n\n")
    (folder / "dev").write_text("\n".join(sentences(20, 1)))
    return LmConfig(
        exp_dir=str(folder / "exp"), text=str(folder / "text"), dev_text=str(folder / "dev"),
        transcripts=str(folder / "text"), bpe_model=str(folder / "bpe.model"), embedding_dim=16, hidden_dim=24,
        num_layers=1, num_epochs=3, max_tokens=500, lr=1e-2, device="cpu",
    )  # fmt: skip


def tokens_of(config: LmConfig) -> Tokenizer:
    return Tokenizer(config.bpe_model)


def test_a_text_is_its_sentences_between_ends(config):
    tokenizer = tokens_of(config)
    text = read_text(Path(config.dev_text), tokenizer, 15, "--dev-text")
    pieces = [ids[n : n + 15] for ids in tokenizer.encode(sentences(20, 1)) for n in range(0, len(ids), 15)]
    assert text.stream.tolist() == [SOS_EOS_ID, *(token for piece in pieces for token in (*piece, SOS_EOS_ID))]
    x, lens = text.batch(np.arange(len(pieces)))
    assert [row[:size].tolist() for row, size in zip(x, lens, strict=True)] == pieces
    assert text.num_tokens == sum(map(len, pieces)) + len(pieces)
    assert text.stream.dtype == np.int32 and x.dtype == torch.int64
    marked = Path(config.dev_text).with_name("marked")
    marked.write_text(Path(config.dev_text).read_text(), encoding="utf-8-sig")
    assert read_text(marked, tokenizer, 15, "--dev-text").stream.tolist() == text.stream.tolist()


@pytest.mark.parametrize("seed", [None, 1])
def test_batches_hold_each_sentence_once_and_are_small_enough(config, seed):
    text = read_text(Path(config.text), tokens_of(config), 200, "--text")
    batches = text.batches(300, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(120))
    assert all(len(batch) * (text.lens[batch].max() + 1) <= 300 for batch in batches)
    assert len(batches) <= 1.3 * (text.num_tokens / 300)
    assert [len(batch) for batch in text.batches(1, seed)] == [1] * 120


def test_it_learns_writes_its_files_and_its_perplexity_is_of_the_best_epoch(config):
    exp_dir = Path(config.exp_dir)
    LmTrainer(config).run()
    names = {path.name for path in exp_dir.iterdir()}
    assert names >= {"epoch-1.pt", "epoch-3.pt", "pretrained.pt", "tokens.txt", "bigram.npz"}
    tokenizer = tokens_of(config)
    dev = read_text(Path(config.dev_text), tokenizer, 200, "--dev-text")
    best = load_checkpoint(exp_dir / "epoch-3.pt")["best_valid_loss"]
    found = perplexity(load_lm(exp_dir, tokenizer), dev, 500)
    assert found == pytest.approx(math.exp(best), rel=1e-5)
    assert found < 0.25 * tokenizer.vocab_size
    assert len(load_bigram(exp_dir, tokenizer.vocab_size).unigram) == tokenizer.vocab_size


def test_a_training_that_was_interrupted_takes_the_same_steps(config, tmp_path):
    whole = replace(config, exp_dir=str(tmp_path / "whole"), num_epochs=2, dropout=0.3)
    LmTrainer(whole).run()
    broken = replace(whole, exp_dir=str(tmp_path / "broken"), save_every_n=3)
    first = LmTrainer(broken)
    steps, step = [], first._step

    def interrupted(x, lens):
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(len(x))
        step(x, lens)

    first._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.run()
    with pytest.raises(UserError, match="holds a training already; go on with --resume 1"):
        LmTrainer(broken)
    LmTrainer(replace(broken, resume=True)).run()
    ours, theirs = (load_weights(tmp_path / name / "pretrained.pt") for name in ("broken", "whole"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_a_training_goes_on_with_the_settings_that_it_was_begun_with(config, tmp_path):
    begun = replace(config, exp_dir=str(tmp_path / "exp"), num_epochs=1)
    LmTrainer(begun).run()
    again = replace(begun, resume=True, num_epochs=2, save_every_n=7)
    for change, flags in (
        ({"hidden_dim": 32, "lr": 0.5}, "--hidden-dim 24 --lr 0.01"),
        ({"dev_text": ""}, f"--dev-text {config.dev_text}"),
        ({"text": config.dev_text}, f"--text {config.text}"),
    ):
        with pytest.raises(UserError, match=rf"epoch-1.pt: .* other settings; give {flags}, or use another --exp-dir"):
            LmTrainer(replace(again, **change))
    LmTrainer(again).run()
    assert (tmp_path / "exp" / "epoch-2.pt").is_file()


def test_a_training_goes_on_with_the_tokens_and_the_texts_that_it_was_begun_with(config, tmp_path):
    bpe_model, text, dev = tmp_path / "bpe.model", tmp_path / "text", tmp_path / "dev"
    for source, copy in ((config.bpe_model, bpe_model), (config.text, text), (config.dev_text, dev)):
        copy.write_bytes(Path(source).read_bytes())
    paths = {"exp_dir": str(tmp_path / "exp"), "bpe_model": str(bpe_model), "text": str(text), "dev_text": str(dev)}
    begun = replace(config, **paths, num_epochs=1)
    LmTrainer(begun).run()
    again, table = replace(begun, resume=True, num_epochs=2), tmp_path / "exp" / "tokens.txt"
    before = table.read_bytes()
    others = tiny_tokenizer(bpe_model, [*sentences(50, 0), *["WWWWWWWW"] * 50], model_type="char")
    assert sorted(others.tokens) == sorted(tokens_of(config).tokens)  # the same, in another order
    with pytest.raises(UserError, match=f"^--bpe-model: {bpe_model}: not the tokens in {table}, .* give the bpe.model"):
        LmTrainer(again)
    bpe_model.write_bytes(Path(config.bpe_model).read_bytes())
    for flag, path in (("--text", text), ("--dev-text", dev)):
        kept = path.read_text()
        path.write_text(kept.replace("DOG", "CAT", 1))
        with pytest.raises(UserError, match=f"^{flag}: {path}: has changed since this training began, .*as it was"):
            LmTrainer(again)
        path.write_text(kept)
    assert table.read_bytes() == before
    LmTrainer(replace(again, num_epochs=1))  # texts that nothing was changed of


def test_a_checkpoint_of_before_its_texts_were_kept_goes_on(config, tmp_path):
    begun = replace(config, exp_dir=str(tmp_path), num_epochs=1)
    LmTrainer(begun).run()
    checkpoint = torch.load(tmp_path / "epoch-1.pt", weights_only=True)
    del checkpoint["texts"]
    torch.save(checkpoint, tmp_path / "epoch-1.pt")
    LmTrainer(replace(begun, resume=True, num_epochs=2)).run()
    assert (tmp_path / "epoch-2.pt").is_file()


@pytest.mark.parametrize("symbols", [{"unk_id": 3}, {"unk_id": 3, "byte_fallback": True}])
def test_a_tokenizer_whose_token_1_spells_texts_is_refused(config, tmp_path, symbols):
    settings = {"user_defined_symbols": ["<blk>"], "model_type": "unigram", **symbols}
    tokenizer = tiny_tokenizer(tmp_path / "bpe.model", sentences(50, 0), **settings)
    problem = f"--bpe-model: {tmp_path / 'bpe.model'}: token 1 is {tokenizer.tokens[1]!r}, and not <sos/eos>"
    with pytest.raises(UserError, match=re.escape(problem)):
        LmTrainer(replace(config, exp_dir=str(tmp_path / "exp"), bpe_model=str(tmp_path / "bpe.model")))
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["pretrained.pt", "epoch-1.pt"])
def test_the_files_of_another_model_are_not_replaced(config, tmp_path, name, resume):
    other = tmp_path / name
    save_checkpoint(other, tiny_test_model(causal=True), params={"batch_idx_train": 1})
    before = other.read_bytes()
    with pytest.raises(UserError, match=rf"^--exp-dir: {other}: is of another model, .*; name another directory"):
        LmTrainer(replace(config, exp_dir=str(tmp_path), resume=resume)).run()
    assert [path.name for path in tmp_path.iterdir()] == [name] and other.read_bytes() == before


def test_weights_of_a_language_model_are_replaced_only_where_training_goes_on(config, tmp_path):
    of_a_kill = replace(config, exp_dir=str(tmp_path), num_epochs=1)  # between pretrained.pt and epoch-1.pt
    LmTrainer(of_a_kill).run()
    (tmp_path / "epoch-1.pt").unlink()
    with pytest.raises(UserError, match="holds a training already; go on with --resume 1"):
        LmTrainer(of_a_kill)
    LmTrainer(replace(of_a_kill, resume=True)).run()
    assert (tmp_path / "epoch-1.pt").is_file()


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "no such file"), ("\n \n", "holds no sentence"), (b"\xff\xfe", "cannot be read")]
)
def test_texts_that_do_not_serve_are_refused(config, tmp_path, content, problem):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"--text: .*{problem}"):
        LmTrainer(replace(config, exp_dir=str(tmp_path / "exp"), text=str(path)))
    with pytest.raises(UserError, match="--text: not given"):
        LmTrainer(replace(config, exp_dir=str(tmp_path / "exp"), text=""))


@pytest.mark.parametrize("lr", [30.0, 1e6, 1e30])
def test_a_training_that_diverges_is_refused_with_its_flag(config, tmp_path, lr):
    trainer = LmTrainer(replace(config, exp_dir=str(tmp_path), lr=lr, num_epochs=20))
    with pytest.raises(UserError, match="^--lr: the training diverges: a loss of .* per token; lower it"):
        trainer.run()


def test_letters_that_no_token_spells_are_warned_of(config, tmp_path, caplog):
    (tmp_path / "text").write_text("THE D\u00d6G RUNS\nthe cat\n")
    read_text(tmp_path / "text", tokens_of(config), 200, "--text")
    assert "1 of 2 transcripts have characters unknown to --bpe-model" in caplog.text
