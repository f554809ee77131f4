"""Weights that a model begins with: from which files, into which parts, and what does not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdstream.checkpoints.initial import begin_with, read_source
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import TrainConfig
from kdstream.errors import UserError
from kdstream.models.transducer import Transducer
from support.models import random_batch, tiny_test_config, tiny_test_model

TOKENS = ["<blk>", "<sos/eos>", "<unk>", *(f"\u2581{n}" for n in range(27))]
PARTS = ["encoder_embed", "encoder", "decoder", "joiner", "simple_am_proj", "simple_lm_proj"]
SAVE = {
    "pretrained.pt": lambda weights, path: torch.save({"model": weights}, path),
    "epoch-3.pt": lambda weights, path: torch.save(
        {"model": weights, "optimizer": {"state": [1.0]}, "exp_dir": Path("zipformer/exp"), "batch_idx_train": 7}, path
    ),
    "state_dict.pt": torch.save,
    "weights.safetensors": save_file,
}


def write(path: Path, model: Transducer, tokens=TOKENS) -> Path:
    """A checkpoint of a model, and the tokens that it writes beside it."""
    SAVE[path.name]({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    if tokens:
        path.with_name("tokens.txt").write_text("".join(f"{token} {i}\n" for i, token in enumerate(tokens)))
    return path


def begin(model: Transducer, path: Path, *modules: str, tokens=TOKENS, **train) -> None:
    begin_with(model, read_source(TrainConfig(init_checkpoint=str(path), **train)), modules, tokens)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], name: str) -> bool:
    return torch.equal(a[name], b[name])


@pytest.mark.parametrize("name", SAVE)
def test_every_kind_of_file_gives_all_its_weights(tmp_path, name):
    source, model = tiny_test_model(True, seed=3), tiny_test_model(True)
    begin(model, write(tmp_path / name, source))
    theirs, ours = source.state_dict(), model.state_dict()
    assert all(same(theirs, ours, parameter) for parameter in theirs)


def test_a_file_that_holds_no_weights_is_refused_with_the_flag_and_what_to_give(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("not weights")
    with pytest.raises(UserError, match=r"^--init-checkpoint: .*notes\.pt.*; give an exp-dir, or a file of weights"):
        begin(tiny_test_model(True), path)


def test_a_full_context_checkpoint_starts_a_streaming_model(tmp_path):
    source, model = tiny_test_model(False, seed=3), tiny_test_model(True)
    features, lens, _ = random_batch()
    expected = source.encode(features, lens)[0]
    assert (model.encode(features, lens)[0] - expected).abs().max() > 0.1
    begin(model, write(tmp_path / "pretrained.pt", source))
    torch.testing.assert_close(model.encode(features, lens)[0], expected, rtol=0, atol=2e-5)


def test_a_streaming_checkpoint_starts_no_full_context_model(tmp_path):
    path = write(tmp_path / "pretrained.pt", tiny_test_model(True))
    with pytest.raises(UserError, match="pretrained.pt: a --causal 0 student cannot start from a streaming model's"):
        begin(tiny_test_model(False), path)


@pytest.mark.parametrize("encoder", ["zipformer", "conformer"])
def test_parts_that_are_alike_in_both_modes_pass_between_them(tmp_path, encoder):
    source, model = tiny_test_model(True, seed=3, encoder=encoder), tiny_test_model(False, encoder=encoder)
    path = write(tmp_path / "pretrained.pt", source)
    begin(model, path, "encoder_embed", "decoder")
    theirs, ours = source.state_dict(), model.state_dict()
    assert all(same(theirs, ours, name) for name in ours if name.startswith(("encoder_embed.", "decoder.")))
    with pytest.raises(UserError, match="start from a streaming model's|whether it is of a streaming model"):
        begin(model, path, "encoder.layers.0" if encoder == "conformer" else "encoder.encoders.0")


@pytest.mark.parametrize("causal", [False, True])
def test_config_json_tells_whether_a_conformer_streams(tmp_path, causal):
    source, model = tiny_test_model(causal, seed=3, encoder="conformer"), tiny_test_model(True, encoder="conformer")
    path, kernel = write(tmp_path / "pretrained.pt", source), "encoder.layers.0.conv_module.depthwise_conv.weight"
    with pytest.raises(UserError, match="nothing says whether it is of a streaming model; put the config.json"):
        begin(model, path)
    ExperimentConfig(model=tiny_test_config(causal, encoder="conformer")).save(tmp_path)
    begin(model, path)
    assert same(source.state_dict(), model.state_dict(), kernel) == causal


def test_an_exp_dir_gives_the_mean_of_the_epochs_that_the_flags_name(tmp_path):
    epochs = [tiny_test_model(True, seed=seed) for seed in (1, 2, 3)]
    for epoch, source in enumerate(epochs, start=1):
        torch.save({"model": source.state_dict()}, tmp_path / f"epoch-{epoch}.pt")
    model = tiny_test_model(True)
    begin(model, tmp_path, init_epoch=2, init_avg=2, init_use_averaged_model=False)
    first, second = (source.joiner.output_linear.weight for source in epochs[:2])
    torch.testing.assert_close(model.joiner.output_linear.weight, (first + second) / 2)
    with pytest.raises(UserError, match="--init-epoch 3 --init-avg 4: averages more epochs than there were"):
        begin(model, tmp_path, init_avg=4)
    with pytest.raises(UserError, match="--init-avg 2: .*epoch-2.pt is a file, and no exp-dir; drop it"):
        begin(model, tmp_path / "epoch-2.pt", init_avg=2)


def test_only_the_named_parts_begin_with_the_weights_and_the_log_tells_them_from_the_others(tmp_path, caplog):
    source, model = tiny_test_model(True, seed=3), tiny_test_model(True, use_ctc=True)
    path, before = write(tmp_path / "pretrained.pt", source), {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        begin(model, path, "encoder_embed", "encoder", "joiner.encoder_proj")
    theirs, ours = source.state_dict(), model.state_dict()
    taken = [name for name in ours if name.startswith(("encoder_embed.", "encoder.", "joiner.encoder_proj."))]
    assert all(same(theirs, ours, name) for name in taken)
    assert all(same(before, ours, name) for name in set(ours) - set(taken))
    assert (
        f"Begins with the weights in {path}: encoder_embed, encoder, joiner.encoder_proj ({len(taken)} of {len(ours)} "
        "tensors); at random: decoder, 4 of 6 in joiner, simple_am_proj, simple_lm_proj, ctc_output; left out of the "
        "file: decoder, 4 of 6 in joiner, simple_am_proj, simple_lm_proj\n"
    ) in caplog.text


def test_heads_that_the_model_lacks_are_left_out(tmp_path, caplog):
    source, model = tiny_test_model(True, seed=3, use_ctc=True), tiny_test_model(True)
    with caplog.at_level(logging.INFO):
        begin(model, write(tmp_path / "pretrained.pt", source))
    assert same(source.state_dict(), model.state_dict(), "joiner.output_linear.bias")
    assert "at random: nothing; left out of the file: ctc_output\n" in caplog.text


@pytest.mark.parametrize(
    "settings, fault, fitting",
    [
        (
            dict(encoder_dim=(32, 64, 48)),
            "its encoder.encoders.1.encoder.layers.0.bypass_scale is (48,), that of the model (64,)",
            "encoder_embed,decoder,simple_lm_proj",
        ),
        (dict(decoder_dim=32), "its decoder.embedding.weight is (30, 64), that of the model (30, 32)", ""),
        (dict(use_ctc=True), "it has no ctc_output.1.weight (30, 48)", ",".join(PARTS)),
        (dict(num_encoder_layers=(1, 1, 1)), "the model has no encoder.encoders.1.encoder.layers.1.", ""),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named_with_both_shapes_and_the_parts_that_do(
    tmp_path, settings, fault, fitting
):
    path, model = write(tmp_path / "pretrained.pt", tiny_test_model(True)), tiny_test_model(True, **settings)
    with pytest.raises(UserError) as error:
        begin(model, path)
    assert str(error.value).startswith(f"--init-checkpoint {path}: {fault}")
    assert f"or --init-modules {fitting}" in str(error.value)
    modules = str(error.value).split("--init-modules ")[1].split()[0].split(",")
    begin(model, path, *modules)


def test_an_unknown_part_is_an_error_that_lists_those_that_exist(tmp_path):
    path = write(tmp_path / "pretrained.pt", tiny_test_model(True))
    with pytest.raises(UserError) as error:
        begin(tiny_test_model(True), path, "encoder", "predictor")
    assert str(error.value) == f"--init-modules: predictor is no part of the model; name some of {', '.join(PARTS)}"
    begin(tiny_test_model(True), path, "encoder.encoders.0")


OTHER = [*TOKENS[:3], *reversed(TOKENS[3:])]


@pytest.mark.parametrize("tokens, difference", [(OTHER, "its token 3 is '▁0'"), (TOKENS[:20], "it has 30 tokens")])
def test_weights_of_other_tokens_start_only_what_knows_of_no_tokens(tmp_path, tokens, difference):
    source = tiny_test_model(True, seed=3)
    path, model = write(tmp_path / "pretrained.pt", source), tiny_test_model(True, vocab_size=len(tokens))
    with pytest.raises(UserError) as error:
        begin(model, path, tokens=tokens)
    assert f"it was trained with other tokens ({difference}, the student" in str(error.value)
    assert "give its --bpe-model, or --init-modules encoder_embed,encoder" in str(error.value)
    with pytest.raises(UserError, match="other tokens"):
        begin(model, path, "encoder", "simple_lm_proj", tokens=tokens)
    begin(model, path, "encoder_embed", "encoder", tokens=tokens)
    assert same(source.state_dict(), model.state_dict(), "encoder_embed.conv.0.weight")


@pytest.mark.parametrize("modules, warned", [((), True), (("encoder_embed", "encoder"), False)])
def test_tokens_that_nobody_knows_are_pointed_out_where_they_matter(tmp_path, caplog, modules, warned):
    begin(tiny_test_model(True), write(tmp_path / "pretrained.pt", tiny_test_model(True), tokens=()), *modules)
    assert ("its tokens are not compared with those of --bpe-model" in caplog.text) == warned


def test_what_is_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="nowhere/pretrained.pt: no such checkpoint"):
        begin(tiny_test_model(True), tmp_path / "nowhere" / "pretrained.pt")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.safetensors: cannot be read as safetensors"):
        begin(tiny_test_model(True), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="^--init-checkpoint: .*: no epoch-N.pt"):
        begin(tiny_test_model(True), tmp_path)
    source = tiny_test_model(True)
    source.joiner.output_linear.bias.data[3] = torch.nan
    with pytest.raises(UserError, match="joiner.output_linear.bias holds NaN or infinity"):
        begin(tiny_test_model(True), write(tmp_path / "pretrained.pt", source))
