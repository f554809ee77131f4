"""export.py and its check: torch, onnxruntime and sherpa-onnx on the same noise, to the last token."""

from __future__ import annotations

import math
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sherpa_onnx
import torch
from lhotse import CutSet
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor

from kdstream.checkpoints.store import load_checkpoint
from kdstream.checkpoints.trained import load_trained
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import ModelConfig
from kdstream.data.features import compute_fbank
from kdstream.data.tokenizer import WORD_START, Tokenizer
from kdstream.decoding.audio import read_audio_file
from kdstream.decoding.greedy import GreedySearch
from kdstream.decoding.stream import StreamingDecoder, decode_streams
from kdstream.errors import UserError
from kdstream.export import check
from kdstream.export.check import compare_runtimes, read_speech, run_all, with_tail
from kdstream.export.onnx import OnnxFiles, export_onnx
from kdstream.export.runtimes import OnnxRecognizer, SherpaRecognizer, torch_runtime
from kdstream.models.encoders import ENCODERS
from kdstream.models.presets import resolve
from kdstream.models.streaming import SHORTEST, ChunkConfig, pad_to_whole_chunks, padded_encoder_lens
from kdstream.models.transducer import build_model
from kdstream.recognizer import load
from kdstream.units import SAMPLE_RATE
from kdstream.words import as_text, spell
from support.decoding import NOISE_CUTS, TEXTS, make_experiment, noise_test_set, run_script, write_noise
from support.tokenizers import KINDS, tiny_tokenizer

pytestmark = pytest.mark.slow

SCRIPT = "egs/librispeech/export.py"
CHUNK = ChunkConfig(8, 32)
SECONDS = (1.5, 2.3, 0.4, 1.05, 3.15)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    return [write_noise(folder / f"noise{i}.wav", seconds, seed=i) for i, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def exp_dirs(tmp_path_factory) -> dict[str, Path]:
    """Experiments with random models, exported, by encoder."""
    folders = {}
    for encoder in ENCODERS:
        folders[encoder] = make_experiment(tmp_path_factory.mktemp(encoder), causal=True, encoder=encoder)
        with pytest.MonkeyPatch.context() as patch:
            assert run_script(patch, SCRIPT, "--exp-dir", folders[encoder]) == ""
    return folders


@pytest.fixture(scope="module", params=ENCODERS)
def each_exp_dir(request, exp_dirs) -> Path:
    return exp_dirs[request.param]


@pytest.fixture(scope="module")
def exp_dir(exp_dirs) -> Path:
    return exp_dirs["zipformer"]


def files_in(exp_dir: Path) -> OnnxFiles:
    return OnnxFiles(*(exp_dir / f"{part}-pretrained-chunk-8-left-32.onnx" for part in OnnxFiles._fields))


def heard_by_streaming_decode(exp_dir: Path, samples: dict[str, Tensor], chunk: ChunkConfig) -> dict[str, list[str]]:
    """Pieces, on bare audio, padded in features."""
    config = ExperimentConfig.load(exp_dir)
    pieces = Tokenizer(config.data.bpe_model).tokens
    model = load_trained(config, DecodeConfig(exp_dir=str(exp_dir))).model
    utterances = [(name, compute_fbank(x)) for name, x in samples.items()]
    results = decode_streams(StreamingDecoder(model, chunk, GreedySearch()), utterances)
    heard = {name: [pieces[token] for token in result.tokens] for name, result in results}
    assert sum(len(set(tokens)) > 3 for tokens in heard.values()) >= len(samples) // 2
    return heard


def test_the_script_leaves_weights_onnx_files_and_tokens(each_exp_dir):
    exp_dir = each_exp_dir
    names = {path.name for path in exp_dir.iterdir()} - {"config.json"}
    onnx_names = {path.name for path in files_in(exp_dir)}
    assert names == {
        "pretrained.pt",
        "pretrained.safetensors",
        "tokens.txt",
        "bpe.vocab",
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


def test_all_runtimes_hear_what_streaming_decode_hears_to_the_last_token(each_exp_dir, audio):
    """On bare audio there, padded in features; with zeros after the audio in the others."""
    files = files_in(each_exp_dir)
    onnx_recognizer = OnnxRecognizer(files, Tokenizer(ExperimentConfig.load(each_exp_dir).data.bpe_model).tokens)
    sherpa = SherpaRecognizer(files, each_exp_dir / "tokens.txt")
    samples = {path.name: read_audio_file(path) for path in audio}
    for name, expected in heard_by_streaming_decode(each_exp_dir, samples, CHUNK).items():
        assert onnx_recognizer(with_tail(samples[name], CHUNK)) == expected
        assert sherpa(with_tail(samples[name], CHUNK)) == expected


def test_streams_together_in_onnxruntime_say_what_each_says_alone(exp_dir):
    recognizer = OnnxRecognizer(files_in(exp_dir), Tokenizer(ExperimentConfig.load(exp_dir).data.bpe_model).tokens)
    features = np.random.default_rng(0).normal(-6, 3, (3, 200, 80)).astype(np.float32)

    def tokens(rows: np.ndarray) -> list[list[int]]:
        streams = recognizer.open(len(rows))
        for start in range(0, 200 - recognizer.window + 1, recognizer.shift):
            recognizer.step(rows[:, start : start + recognizer.window], streams)
        return streams.tokens

    together = tokens(features)
    assert together == [tokens(row[None])[0] for row in features]
    assert len(set(map(tuple, together))) == 3


@pytest.mark.parametrize(
    "encoder, chunk",
    [
        ("conformer", ChunkConfig(16, 16)),
        ("conformer", ChunkConfig(32, 128)),
        *((encoder, ChunkConfig(8, 32, right)) for encoder in ENCODERS for right in (8, 16)),
    ],
)
def test_sherpa_onnx_runs_other_chunks_too(exp_dirs, audio, encoder, chunk, tmp_path):
    exp_dir, samples = exp_dirs[encoder], {path.name: read_audio_file(path) for path in audio}
    model = load_trained(ExperimentConfig.load(exp_dir), DecodeConfig(exp_dir=str(exp_dir))).model
    sherpa = SherpaRecognizer(export_onnx(model, chunk, tmp_path, "random"), exp_dir / "tokens.txt")
    for name, expected in heard_by_streaming_decode(exp_dir, samples, chunk).items():
        assert sherpa(with_tail(samples[name], chunk)) == expected


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_small_model_gives_in_every_runtime_what_it_gives_in_torch(encoder, tmp_path):
    torch.manual_seed(0)
    model = build_model(resolve(ModelConfig(encoder=encoder, preset="small", causal=True, vocab_size=500))).eval()
    for parameter in model.parameters():  # whose initial weights say nothing
        parameter.mul_(2.0 if parameter.ndim >= 2 else 1.0)
    pieces = ["<blk>", *(f"t{number}" for number in range(1, 500))]
    (tmp_path / "tokens.txt").write_text("".join(f"{piece} {number}\n" for number, piece in enumerate(pieces)))
    files = export_onnx(model, CHUNK, tmp_path, "random")
    recognizer = OnnxRecognizer(files, pieces)
    samples = read_audio_file(write_noise(tmp_path / "noise.wav", 3.4))
    features = compute_fbank(samples).unsqueeze(0)
    state, caches = model.init_state(1, CHUNK), recognizer.fresh_caches()
    for start in range(0, 20 * CHUNK.shift, CHUNK.shift):
        x = features[:, start : start + CHUNK.input_frames]
        expected, _, state = model.encode(x, torch.tensor([CHUNK.input_frames]), CHUNK, state)
        ours, caches = recognizer.encode(x.numpy(), caches)
        torch.testing.assert_close(torch.from_numpy(ours), model.joiner.encoder_proj(expected), atol=1e-4, rtol=0)
    heard = SherpaRecognizer(files, tmp_path / "tokens.txt")(samples)
    assert heard == recognizer(samples)
    assert len(set(heard)) > 3


def opened(recognizer: sherpa_onnx.OnlineRecognizer, samples: Tensor) -> sherpa_onnx.OnlineStream:
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, with_tail(samples, CHUNK).numpy())
    stream.input_finished()
    return stream


def test_streams_of_different_ages_share_a_batch_in_sherpa_onnx(each_exp_dir, audio):
    recognizer = SherpaRecognizer(files_in(each_exp_dir), each_exp_dir / "tokens.txt").recognizer
    samples = {name: read_audio_file(audio[n]) for name, n in (("older", 4), ("newer", 1))}
    streams = {name: opened(recognizer, x) for name, x in samples.items()}
    for _ in range(3):
        recognizer.decode_stream(streams["older"])
    together = 0
    while ready := [stream for stream in streams.values() if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
        together += len(ready) == 2
    assert together > 5
    for name, expected in heard_by_streaming_decode(each_exp_dir, samples, CHUNK).items():
        assert [piece.replace(" ", WORD_START) for piece in recognizer.tokens(streams[name])] == expected


def test_sherpa_onnx_forgets_nothing_where_a_segment_ends(each_exp_dir, audio):
    """There it keeps the caches, but counts frames from 0 again."""
    recognizer = SherpaRecognizer(files_in(each_exp_dir), each_exp_dir / "tokens.txt").recognizer
    samples = read_audio_file(audio[4])
    stream, heard, steps = opened(recognizer, samples), [], 0
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        steps += 1
        if steps % 4 == 0:
            heard += recognizer.tokens(stream)
            recognizer.reset(stream)
    heard += recognizer.tokens(stream)
    assert steps > 12
    expected = heard_by_streaming_decode(each_exp_dir, {"whole": samples}, CHUNK)["whole"]
    assert [piece.replace(" ", WORD_START) for piece in heard] == expected


def test_utterances_are_padded_with_what_a_client_sends_zeros_for():
    padded, _ = pad_to_whole_chunks(torch.zeros(1, 20, 80), torch.tensor([20]), CHUNK.chunk)
    zeros = compute_fbank(torch.zeros((padded.size(1) - 20) * 160))
    torch.testing.assert_close(padded[0, 20:], zeros)


@pytest.mark.parametrize("chunk, right", [(8, 0), (16, 0), (32, 0), (8, 8), (8, 16)])
def test_the_tail_gives_a_runtime_exactly_the_chunks_that_an_utterance_fills(chunk, right):
    config = ChunkConfig(chunk, chunk, right)
    for frames in range(9, 300):
        chunks = int(padded_encoder_lens(torch.tensor([frames]), chunk)) // chunk
        # sherpa-onnx decodes while more frames are there than the next chunk reads
        assert math.ceil((frames + config.tail - config.input_frames) / config.shift) == chunks


@pytest.mark.parametrize("chunk, right", [(8, 0), (32, 16)])
def test_of_what_fills_no_encoder_frame_torch_alone_decodes_a_chunk(chunk, right):
    config = ChunkConfig(chunk, chunk, right)
    for frames in range(1, SHORTEST):
        padded, _ = pad_to_whole_chunks(torch.zeros(1, frames, 80), torch.tensor([frames]), chunk, right)
        assert padded.size(1) == config.input_frames
        assert frames + config.tail <= config.input_frames  # sherpa-onnx waits for one frame more than this


def test_the_check_passes_on_what_was_just_exported(each_exp_dir, audio, monkeypatch, capsys):
    exp_dir = each_exp_dir
    monkeypatch.setattr("kdstream.export.onnx.export_onnx", lambda *_: files_in(exp_dir))  # it takes long
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", *audio) == ""
    printed = capsys.readouterr().out
    assert "algorithmic latency: 255 ms" in printed and "tail padding: 210 ms" in printed
    for runtime in ("torch", "onnxruntime", "sherpa-onnx"):
        assert re.search(rf"^{runtime} +RTF \d+\.\d+ +the same tokens in 5 of 5$", printed, re.MULTILINE)
    assert re.search(r"^sherpa-onnx int8 +RTF .* of 5$", printed, re.MULTILINE)
    assert printed.count("noise0.wav: 1.50 s") == 1


def test_the_check_takes_a_blank_penalty_to_every_runtime(exp_dir, audio, monkeypatch, capsys, caplog):
    monkeypatch.setattr("kdstream.export.onnx.export_onnx", lambda *_: files_in(exp_dir))  # it takes long
    heard = []
    for flags in ((), ("--blank-penalty", 2)):
        assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags, "--check", audio[4]) == ""
        printed = capsys.readouterr().out
        assert printed.count("the same tokens in 1 of 1") >= 3
        heard += re.findall(r"^  torch +RTF \S+ +(.*)$", printed, re.MULTILINE)
    assert len(heard[1].split()) > len(heard[0].split()) > 3 and not caplog.messages
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags) == ""
    assert caplog.messages == ["--blank-penalty 2.0: has no effect without --check"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz"])
def test_a_manifest_of_any_kind_is_one_of_cuts_to_check_with(tmp_path, suffix):
    noise_test_set(tmp_path)
    path = tmp_path / f"same{suffix}"
    CutSet.from_file(tmp_path / NOISE_CUTS).to_eager().to_file(path)
    assert [text for _, text in read_speech([str(path)]).values()] == [*TEXTS]
    with pytest.raises(UserError, match=f"--check {tmp_path / f'none{suffix}'}: no such file"):
        read_speech([str(tmp_path / f"none{suffix}")])


def test_speech_to_check_with_is_looked_at_first_and_then_read_one_by_one(tmp_path, monkeypatch):
    held: list[weakref.ref[Tensor]] = []

    def noted(source: Any) -> Tensor:
        assert sum(each() is not None for each in held) <= 1
        samples = torch.zeros(SAMPLE_RATE)
        held.append(weakref.ref(samples))
        return samples

    for name in ("read_audio", "read_audio_file"):
        monkeypatch.setattr(check, name, noted)
    noise_test_set(tmp_path)
    speech = read_speech([str(tmp_path / NOISE_CUTS), str(write_noise(tmp_path / "other.wav", 0.5))])
    assert len(held) == len(speech) == 5
    assert compare_runtimes({"first": lambda _: [], "other": lambda _: []}, speech, CHUNK) == {"first": 0, "other": 0}
    assert len(held) == 10


def test_the_check_of_cuts_ends_with_word_error_rates_beside_the_first_runtimes(tmp_path, capsys):
    noise_test_set(tmp_path)
    speech = read_speech([str(tmp_path / NOISE_CUTS), str(write_noise(tmp_path / "other.wav", 0.5))])
    assert [name.split()[-1] for name in speech] == [*(f"utt{n}-{n}" for n in range(4)), str(tmp_path / "other.wav")]
    assert [text for _, text in speech.values()] == [*TEXTS, ""]
    said = {len(with_tail(read(), CHUNK)): text for read, text in speech.values()}

    def hear(samples: Tensor, wrong: str) -> list[str]:
        words = said.get(len(samples), "").replace("DAY", wrong).split()
        return [piece for word in words for piece in (WORD_START + word[:1], word[1:]) if piece]

    mishears = {"first": "DIE", "same": "DIE", "other": "D I E"}
    runtimes = {name: lambda samples, wrong=wrong: hear(samples, wrong) for name, wrong in mishears.items()}
    assert compare_runtimes(runtimes, speech, CHUNK) == {"first": 0, "same": 0, "other": 2}
    last = [line.split("  ")[2:] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert last == [  # of 13 words
        ["the same tokens in 5 of 5", "WER 15.38 %"],
        ["the same tokens in 5 of 5", "WER 15.38 % (+0.0 % of first's)"],
        ["the same tokens in 3 of 5", "WER 46.15 % (+200.0 % of first's)"],
    ]


def test_the_check_fails_on_a_spoiled_model(exp_dir, audio, monkeypatch, tmp_path, capsys):
    files = files_in(exp_dir)
    joiner = onnx.load(str(files.joiner))
    bias = next(item for item in joiner.graph.initializer if item.name.endswith("bias"))
    values = numpy_helper.to_array(bias).copy()
    values[5] += 3.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    spoiled = files._replace(joiner=tmp_path / "joiner.onnx")
    onnx.save(joiner, str(spoiled.joiner))
    monkeypatch.setattr("kdstream.export.onnx.export_onnx", lambda *_: spoiled)
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--check", audio[0])
    assert error.startswith("error: onnxruntime and sherpa-onnx: not the tokens of torch")
    assert re.search(r"differs from its token \d+ on", capsys.readouterr().out)


def test_the_first_difference_is_where_a_token_is_another_or_missing():
    says = {"first": "A B C", "same": "A B C", "other": "A X C", "shorter": "A B", "longer": "A B C D", "silent": ""}
    runtimes = {name: lambda _, pieces=pieces: pieces.split() for name, pieces in says.items()}
    differences = {name: heard.difference for name, heard in run_all(runtimes, torch.zeros(1)).items()}
    assert differences == {"first": None, "same": None, "other": 1, "shorter": 2, "longer": 3, "silent": 0}


def test_one_byte_is_the_same_however_a_runtime_prints_it():
    says = {
        "torch": ["▁zo", "<0xC3>", "<0xAB>", "<0x54>", "<0x20>"],
        "sherpa-onnx": ["▁zo", "<0xC3>", "<0xAB>", "T", "▁"],
        "another": ["▁zo", "<0xC3>", "<0xAA>", "T", "▁"],
    }
    runtimes = {name: lambda _, pieces=pieces: pieces for name, pieces in says.items()}
    differences = {name: heard.difference for name, heard in run_all(runtimes, torch.zeros(1)).items()}
    assert differences == {"torch": None, "sherpa-onnx": None, "another": 2}


@torch.no_grad()
@pytest.mark.parametrize("piece", ["<0xC3>", "<0x54>", "<unk>", "E"])
def test_a_piece_is_heard_alike_in_every_runtime(tmp_path, piece):
    """A joiner that says one thing alone, with a tokenizer that falls back to bytes."""
    tokenizer = tiny_tokenizer(tmp_path / "bpe.model", ["THE ZOO"], **KINDS["byte fallback"])
    tokenizer.save_tokens(tmp_path / "tokens.txt")
    model = build_model(resolve(ModelConfig(preset="tiny", causal=True, vocab_size=tokenizer.vocab_size))).eval()
    model.unk_id, output = tokenizer.unk_id, model.joiner.output_linear
    output.weight.zero_()
    output.bias.fill_(-20.0)
    output.bias[tokenizer.tokens.index(piece)] = 0.0
    files = export_onnx(model, CHUNK, tmp_path, "one")
    runtimes = {
        "torch": torch_runtime(model, CHUNK, tokenizer.tokens),
        "onnxruntime": OnnxRecognizer(files, tokenizer.tokens),
        "sherpa-onnx": SherpaRecognizer(files, tmp_path / "tokens.txt"),
    }
    heard = run_all(runtimes, with_tail(torch.zeros(8000), CHUNK))
    assert all(result.difference is None for result in heard.values())
    assert bool(heard["sherpa-onnx"].pieces) == (piece != "<unk>")
    recognizer = load(files.encoder)
    stream = recognizer.stream()
    stream.accept(torch.zeros(8000).numpy())
    written = as_text(spell([piece] * len(heard["torch"].pieces))) if heard["torch"].pieces else ""
    assert recognizer.transcribe(torch.zeros(8000).numpy()).text == stream.finish().text == written
    assert stream.text == written


def test_of_a_full_context_model_files_for_whole_utterances_are_exported(tmp_path, monkeypatch):
    exp_dir = make_experiment(tmp_path, causal=False)
    assert run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir) == ""
    names = {path.name for path in exp_dir.iterdir()}
    assert {"pretrained.pt", "pretrained.safetensors"} < names
    models = {name for name in names if name.endswith(".onnx")}
    assert models and all(re.fullmatch(r"(encoder|decoder|joiner)-.*-offline(\.int8)?\.onnx", name) for name in models)


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--check", "nowhere.wav"), "nowhere.wav: no such file"),
        (("--check", "nowhere.jsonl.gz"), "nowhere.jsonl.gz: no such file; give audio"),
        (("--chunk-size", "6", "--left-context-frames", "12"), "chunk 6: not a multiple of 4"),
        (("--left-context-frames", "-1"), "--left-context-frames"),
        (("--epoch", "5"), "epoch-5.pt"),
    ],
)
def test_bad_input_gets_one_line(exp_dir, monkeypatch, flags, named):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, *flags)
    assert error.startswith("error: ") and named in error and "\n" not in error
