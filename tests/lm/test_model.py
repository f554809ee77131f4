"""The LSTM language model: its losses, its state, and the files that it is read from."""

from __future__ import annotations

import pytest
import torch

from kdstream.checkpoints.store import save_pretrained
from kdstream.config.experiment import TOKENS_FILE
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.lm.model import RnnLm, load_lm, model_of
from kdstream.lm.text import SOS_EOS_ID
from support.lm import tiny_lm
from support.tokenizers import tiny_tokenizer

SENTENCES = ([3, 4, 5], [6], [7, 3])


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in SENTENCES], batch_first=True)
    return x, torch.tensor([len(s) for s in SENTENCES])


def test_the_loss_is_the_sum_of_steps_and_padding_counts_for_nothing():
    lm = tiny_lm(8)
    with torch.no_grad():
        losses = lm(*padded())
        for sentence, loss in zip(SENTENCES, losses, strict=True):
            state, total = lm.start(1), 0.0
            for heard, said in zip([SOS_EOS_ID, *sentence], [*sentence, SOS_EOS_ID], strict=True):
                hidden, state = lm.step(torch.tensor([[heard]]), state)
                total -= float(lm.log_probs(hidden)[0, 0, said])
            assert float(loss) == pytest.approx(total, abs=1e-5)


def test_parameters_are_named_as_in_icefall():
    names = {name.rstrip("01") for name in tiny_lm(8).state_dict()}
    parts = {f"rnn.{kind}_{which}_l" for kind in ("weight", "bias") for which in ("ih", "hh")}
    assert names == {"input_embedding.weight", "output_linear.weight", "output_linear.bias"} | parts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("bpe") / "bpe.model", ["A SECOND DAY", "NO MORE"])


def test_its_sizes_are_read_from_its_weights(tmp_path, tokenizer):
    lm = tiny_lm(tokenizer.vocab_size)
    save_pretrained(tmp_path, lm)
    read = load_lm(tmp_path, tokenizer)
    assert not read.training
    torch.testing.assert_close(read(*padded()), lm(*padded()), rtol=0, atol=0)


def test_a_model_of_other_tokens_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="pretrained.pt: no such file; train one"):
        load_lm(tmp_path, tokenizer)
    save_pretrained(tmp_path, tiny_lm(tokenizer.vocab_size + 1))
    with pytest.raises(UserError, match=f"it has {tokenizer.vocab_size + 1} tokens"):
        load_lm(tmp_path, tokenizer)
    save_pretrained(tmp_path, tiny_lm(tokenizer.vocab_size))
    tokens = [f"{piece} {n}" for n, piece in enumerate(reversed(tokenizer.tokens))]
    (tmp_path / TOKENS_FILE).write_text("\n".join(tokens))
    with pytest.raises(UserError, match="its token 0 is .* the student's '<blk>'"):
        load_lm(tmp_path, tokenizer)
    save_pretrained(tmp_path, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="not an RNN-LM: it has no 'input_embedding.weight'"):
        load_lm(tmp_path, tokenizer)


@pytest.mark.parametrize(
    "name, shape, problem",
    [
        ("input_embedding.weight", (18,), "its first weights are no matrices"),
        ("rnn.weight_hh_l0", (32,), "its first weights are no matrices"),
        ("rnn.weight_hh_l0", None, "it has no 'rnn.weight_hh_l0'"),
    ],
)
def test_weights_of_another_form_are_no_language_model(name, shape, problem):
    weights = {**tiny_lm(18).state_dict(), name: torch.zeros(shape or ())}
    if shape is None:
        del weights[name]
    with pytest.raises(UserError, match=f"^lm.pt: not an RNN-LM: {problem}; give what kdstream train-lm wrote"):
        model_of(weights, "lm.pt")


def test_dropout_is_for_training_alone():
    lm = RnnLm(8, 4, 4, 1, dropout=0.5)
    with torch.no_grad():
        assert not lm.train()(*padded()).equal(lm(*padded()))
        assert lm.eval()(*padded()).equal(lm(*padded()))
