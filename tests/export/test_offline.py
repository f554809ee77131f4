"""Models of whole utterances: exported in full context, they say in every runtime what they say in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import kdstream
from kdstream.config.experiment import ExperimentConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.audio import read_audio_file
from kdstream.decoding.ctc import CtcGreedySearch, ctc_log_probs
from kdstream.decoding.stream import encode_whole
from kdstream.errors import UserError
from kdstream.export.onnx import WholeEncoder, export_ctc, export_onnx
from kdstream.export.runtimes import OnnxCtc, SherpaOfflineCtc, load, run, torch_runtime
from kdstream.models.encoders import ENCODERS
from kdstream.models.transducer import Transducer
from kdstream.serving.runtime import find_model
from support.decoding import make_experiment, run_script, talkative_model, write_noise

pytestmark = pytest.mark.slow

SCRIPT = "egs/librispeech/export.py"
TOLERANCE = 1e-4
SECONDS = (1.5, 0.4, 3.15)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    return [write_noise(folder / f"noise{i}.wav", seconds, seed=i) for i, seconds in enumerate(SECONDS)]


@pytest.fixture(
    scope="module",
    params=[(encoder, causal) for encoder in ENCODERS for causal in (True, False)],
    ids=lambda param: f"{param[0]} {'student' if param[1] else 'teacher'}",
)
def exported(request, tmp_path_factory) -> tuple[Transducer, Path, Path]:
    """A model, its encoder and its CTC head."""
    encoder, causal = request.param
    model, folder = talkative_model(causal, encoder=encoder, use_ctc=True), tmp_path_factory.mktemp("onnx")
    files, ctc = export_onnx(model, None, folder, "random"), export_ctc(model, None, folder, "random")
    assert ctc is not None and files.encoder.name == "encoder-random-offline.onnx"
    return model, files.encoder, ctc


def test_utterances_of_any_length_and_number_equal_torch(exported):
    model, *paths = exported
    whole, (session, head) = WholeEncoder(model, ""), map(load, paths)
    generator = torch.Generator().manual_seed(0)
    for lens in ([9], [58], [301, 250], [700, 401, 33]):
        features = 3 * torch.randn(len(lens), max(lens), 80, generator=generator) - 6
        inputs = {"x": features.numpy(), "x_lens": np.array(lens)}
        (out, out_lens), (log_probs, log_lens) = run(session, inputs), run(head, inputs)
        with torch.no_grad():
            expected, expected_lens = whole(features, torch.tensor(lens))
        assert out_lens.tolist() == log_lens.tolist() == expected_lens.tolist()
        assert np.abs(out - expected.numpy()).max() < TOLERANCE
        if model.config.causal and len(lens) > 1:
            continue  # a streaming Zipformer hears where its batch ends
        alone, alone_lens = encode_whole(model, features, torch.tensor(lens), None)  # what decode.py hears
        assert alone_lens.tolist() == out_lens.tolist()
        with torch.no_grad():
            heard = (model.joiner.encoder_proj(alone), out), (ctc_log_probs(model, alone), log_probs)
        for theirs, ours in heard:
            for n, frames in enumerate(out_lens):
                assert np.abs(ours[n, :frames] - theirs[n, :frames].numpy()).max() < TOLERANCE


def test_metadata_and_names_are_icefalls(exported):
    model, encoder, ctc = exported
    kind = {"zipformer": "zipformer2", "conformer": "conformer"}[model.config.encoder]
    for path, model_type, outputs in (
        (encoder, kind, ["encoder_out", "encoder_out_lens"]),
        (ctc, f"{kind}_ctc", ["log_probs", "log_probs_len"]),
    ):
        graph = onnx.load(str(path))
        assert [item.name for item in graph.graph.input] == ["x", "x_lens"]
        assert [item.name for item in graph.graph.output] == outputs
        metadata = {item.key: item.value for item in graph.metadata_props}
        assert metadata == {
            "model_type": model_type, "version": "1", "model_author": "kdstream", "comment": f"non-streaming {kind}",
        }  # fmt: skip


@pytest.mark.parametrize("causal", [True, False], ids=["student", "teacher"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_runtime_says_what_torch_says(tmp_path, monkeypatch, capsys, audio, encoder, causal):
    exp_dir = make_experiment(tmp_path, causal, encoder)
    chunk = ["--chunk-size", "-1"] if causal else ["--blank-penalty", "1"]
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *chunk, "--check", *audio) == ""
    printed = capsys.readouterr().out
    assert printed.count("the same tokens in 3 of 3") >= 3 and "algorithmic latency" not in printed
    spoken = [line.split("  ")[-1] for line in printed.splitlines() if line.strip().startswith("torch ")][:3]
    assert len(set(spoken)) == 3
    with pytest.raises(UserError, match="encoder of whole utterances, which cannot stream"):
        find_model(next(exp_dir.glob("encoder-*offline.onnx")))
    for weights in exp_dir.glob("pretrained.*"):
        weights.unlink()
    with pytest.raises(UserError, match=r"no export fits; there are: encoder-.*-offline.onnx; write a streaming one"):
        kdstream.load(exp_dir, runtime="sherpa-onnx")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_ctc_head_says_what_it_says_in_torch(tmp_path, audio, encoder):
    exp_dir = make_experiment(tmp_path, False, encoder)
    tokenizer = Tokenizer(ExperimentConfig.load(exp_dir).data.bpe_model)
    model = talkative_model(False, encoder=encoder, vocab_size=tokenizer.vocab_size, use_ctc=True)
    with torch.no_grad():
        model.ctc_output[1].weight.mul_(4.0)
    path = export_ctc(model, None, tmp_path, "random")
    tokenizer.save_tokens(tmp_path / "tokens.txt")
    in_torch = torch_runtime(model, None, tokenizer.tokens, CtcGreedySearch())
    in_onnx, in_sherpa = OnnxCtc(path, tokenizer.tokens), SherpaOfflineCtc(path, tmp_path / "tokens.txt")
    for samples in map(read_audio_file, audio):
        expected = in_torch(samples)
        assert expected == in_onnx(samples) == in_sherpa(samples) and expected


def test_what_is_too_short_for_an_exported_encoder_is_refused_before_the_export(tmp_path, monkeypatch):
    exp_dir, short = make_experiment(tmp_path, causal=False), write_noise(tmp_path / "short.wav", 0.05)
    before = sorted(exp_dir.iterdir())
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", short)
    assert error == f"error: --check: {short}: only 5 frames (10 ms each), and an utterance needs 9; leave it out"
    assert sorted(exp_dir.iterdir()) == before
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", write_noise(short, 0.1)) == ""


def test_a_language_model_goes_with_streams_alone(tmp_path, monkeypatch):
    exp_dir = make_experiment(tmp_path, False)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--lm-exp-dir", tmp_path)
    assert error == "error: --lm-exp-dir: goes with a streaming model alone; leave it out"
