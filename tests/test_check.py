"""export.py and its check: torch, onnxruntime and sherpa-onnx on the same noise, to the last token."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import List

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

import kdstream.export.onnx
from decoding_helpers import make_experiment, run_script, write_noise
from kdstream.config import DecodeConfig, ExperimentConfig
from kdstream.data import Tokenizer, compute_fbank
from kdstream.decoding.audio import read_audio_file
from kdstream.decoding.search import Search
from kdstream.decoding.stream import StreamingDecoder, decode_streams
from kdstream.export.check import OnnxRecognizer, SherpaRecognizer, listen, with_tail
from kdstream.export.onnx import OnnxFiles
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks, padded_encoder_lens
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.trained import load_trained

SCRIPT = "egs/librispeech/export.py"
CHUNK = ChunkConfig(8, 32)
SECONDS = (1.5, 2.3, 0.4, 1.05, 3.15)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> List[Path]:
    folder = tmp_path_factory.mktemp("audio")
    return [write_noise(folder / f"noise{i}.wav", seconds, seed=i) for i, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory, audio) -> Path:
    """An experiment with a random model, exported."""
    exp_dir = make_experiment(tmp_path_factory.mktemp("exp"), causal=True)
    with pytest.MonkeyPatch.context() as patch:
        assert run_script(patch, SCRIPT, "--exp-dir", exp_dir) == ""
    return exp_dir


def files_in(exp_dir: Path) -> OnnxFiles:
    return OnnxFiles(*(exp_dir / f"{part}-pretrained-chunk-8-left-32.onnx" for part in OnnxFiles._fields))


def test_the_script_leaves_weights_onnx_files_and_tokens(exp_dir):
    names = {path.name for path in exp_dir.iterdir()} - {"config.json"}
    onnx_names = {path.name for path in files_in(exp_dir)}
    assert names == {
        "pretrained.pt",
        "pretrained.safetensors",
        "tokens.txt",
        *onnx_names,
        *(name.replace(".onnx", ".int8.onnx") for name in onnx_names),
    }
    tokens = [line.split() for line in (exp_dir / "tokens.txt").read_text().splitlines()]
    assert [int(number) for _, number in tokens] == list(range(len(tokens)))
    assert [piece for piece, _ in tokens][:3] == ["<blk>", "<sos/eos>", "<unk>"]


def test_both_weight_files_hold_the_model(exp_dir):
    config = ExperimentConfig.load(exp_dir)
    expected = load_trained(config, DecodeConfig(exp_dir=str(exp_dir))).model.state_dict()
    checkpoint = load_checkpoint(exp_dir / "pretrained.pt")
    assert list(checkpoint) == ["model"]
    for weights in (checkpoint["model"], load_file(exp_dir / "pretrained.safetensors")):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_all_runtimes_hear_what_streaming_decode_hears_to_the_last_token(exp_dir, audio):
    """On bare audio there, padded in features; with zeros after the audio in the others."""
    config = ExperimentConfig.load(exp_dir)
    model = load_trained(config, DecodeConfig(exp_dir=str(exp_dir))).model
    pieces = Tokenizer(config.data.bpe_model).tokens
    onnx_recognizer = OnnxRecognizer(files_in(exp_dir), pieces)
    sherpa = SherpaRecognizer(files_in(exp_dir), exp_dir / "tokens.txt")
    samples = {path.name: read_audio_file(path) for path in audio}
    utterances = [(name, compute_fbank(x)) for name, x in samples.items()]
    heard = dict(decode_streams(StreamingDecoder(model, CHUNK, Search()), utterances))
    for name, result in heard.items():
        expected = [pieces[token] for token in result.tokens]
        assert onnx_recognizer(with_tail(samples[name], CHUNK)) == expected
        assert sherpa(with_tail(samples[name], CHUNK)) == expected
    assert sum(len(set(result.tokens)) > 3 for result in heard.values()) >= 3


def test_utterances_are_padded_with_what_a_client_sends_zeros_for():
    padded, _ = pad_to_whole_chunks(torch.zeros(1, 20, 80), torch.tensor([20]), CHUNK.chunk)
    zeros = compute_fbank(torch.zeros((padded.size(1) - 20) * 160))
    torch.testing.assert_close(padded[0, 20:], zeros)


@pytest.mark.parametrize("chunk", [8, 16, 32])
def test_the_tail_gives_a_runtime_exactly_the_chunks_that_an_utterance_fills(chunk):
    config = ChunkConfig(chunk, chunk)
    for frames in range(9, 300):
        chunks = int(padded_encoder_lens(torch.tensor([frames]), chunk)) // chunk
        # sherpa-onnx decodes while more frames are there than the next chunk reads
        assert math.ceil((frames + config.tail - config.input_frames) / config.shift) == chunks


def test_the_check_passes_on_what_was_just_exported(exp_dir, audio, monkeypatch, capsys):
    monkeypatch.setattr(kdstream.export.onnx, "export_onnx", lambda *_: files_in(exp_dir))  # it takes long
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", *audio) == ""
    printed = capsys.readouterr().out
    assert "algorithmic latency: 255 ms" in printed and "tail padding: 210 ms" in printed
    for runtime in ("torch", "onnxruntime", "sherpa-onnx"):
        assert re.search(rf"^{runtime} +RTF \d+\.\d+ +the same tokens in 5 of 5$", printed, re.MULTILINE)
    assert re.search(r"^sherpa-onnx int8 +RTF .* of 5$", printed, re.MULTILINE)
    assert printed.count("noise0.wav: 1.50 s") == 1


def test_the_check_fails_on_a_spoiled_model(exp_dir, audio, monkeypatch, tmp_path, capsys):
    files = files_in(exp_dir)
    joiner = onnx.load(str(files.joiner))
    bias = next(item for item in joiner.graph.initializer if item.name.endswith("bias"))
    values = numpy_helper.to_array(bias).copy()
    values[5] += 3.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    spoiled = files._replace(joiner=tmp_path / "joiner.onnx")
    onnx.save(joiner, str(spoiled.joiner))
    monkeypatch.setattr(kdstream.export.onnx, "export_onnx", lambda *_: spoiled)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", audio[0])
    assert error.startswith("error: onnxruntime and sherpa-onnx: not the tokens of torch")
    assert re.search(r"differs from its token \d+ on", capsys.readouterr().out)


def test_the_first_difference_is_where_a_token_is_another_or_missing():
    says = {"first": "A B C", "same": "A B C", "other": "A X C", "shorter": "A B", "longer": "A B C D", "silent": ""}
    runtimes = {name: lambda _, pieces=pieces.split(): pieces for name, pieces in says.items()}
    differences = {name: heard.difference for name, heard in listen(runtimes, torch.zeros(1)).items()}
    assert differences == {"first": None, "same": None, "other": 1, "shorter": 2, "longer": 3, "silent": 0}


def test_of_a_full_context_model_the_weights_alone_are_exported(tmp_path, monkeypatch, audio):
    exp_dir = make_experiment(tmp_path, causal=False)
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir) == ""
    assert {path.name for path in exp_dir.iterdir()} == {"config.json", "pretrained.pt", "pretrained.safetensors"}
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", audio[0])
    assert error.startswith("error: --check") and "--chunk-size" in error


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--check", "nowhere.wav"), "nowhere.wav: no such file"),
        (("--chunk-size", "6", "--left-context-frames", "12"), "chunk 6: not a multiple of 4"),
        (("--left-context-frames", "-1"), "--left-context-frames"),
        (("--epoch", "5"), "epoch-5.pt"),
    ],
)
def test_bad_input_gets_one_line(exp_dir, monkeypatch, flags, named):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags)
    assert error.startswith("error: ") and named in error and "\n" not in error
