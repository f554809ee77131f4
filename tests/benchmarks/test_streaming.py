"""The streaming benchmark: its figures are those of its steps, and its streams are those of the decoder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdstream.benchmarks import streaming as bench_streaming
from kdstream.benchmarks.names import FOR_ONE_STREAM, RUNTIMES
from kdstream.commands.bench_streaming import get_parser as bench_parser
from kdstream.decoding.greedy import GreedySearch
from kdstream.errors import UserError
from kdstream.evaluation.tables import render
from kdstream.models.streaming import ChunkConfig
from support.decoding import make_experiment, run_script, talkative_model

pytestmark = pytest.mark.slow

SCRIPT = "local/bench_streaming.py"


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("streaming"), causal=True)


def test_figures_are_those_of_the_steps_after_the_first_few():
    steps = [9.0] * bench_streaming.WARM_UP + [0.010] * 98 + [0.020] * 2
    figures = bench_streaming.statistics(steps, streams=4, chunk_ms=160)
    assert figures["real time %"] == pytest.approx(100 * 10.2 / (4 * 160))
    assert figures["p50 ms"] == pytest.approx(10.0)
    assert figures["p99 ms"] == pytest.approx(20.0)


def test_streams_hear_the_same_audio_from_different_places():
    audio = np.arange(64000, dtype=np.float32)
    waves = bench_streaming.waves_of(audio, 4, seconds=1.5)
    assert [wave[0] for wave in waves] == [0, 16000, 32000, 48000]
    assert all(len(wave) == 24000 for wave in waves)
    assert waves[3][-1] == (48000 + 24000 - 1) % 64000


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> bench_streaming.Setup:
    model, chunk = talkative_model(causal=True), ChunkConfig(8, 32)
    exported = bench_streaming.export(model, chunk, tmp_path_factory.mktemp("exported"))
    return bench_streaming.Setup(model, chunk, GreedySearch(), 1, time.perf_counter, exported)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_step_is_one_chunk_of_every_stream(setup, name):
    runtime = bench_streaming.RUNTIME_OF[name](setup)
    rng = np.random.default_rng(0)
    frames = 100 - name.startswith("sherpa-onnx")  # which waits for one more than it reads
    for count in (1, 1) if name in FOR_ONE_STREAM else (3, 1, 2):  # one runtime, again and again
        waves = [rng.uniform(-0.1, 0.1, 16000).astype(np.float32) for _ in range(count)]
        seconds = runtime.decode(waves)
        assert len(seconds) == (frames - setup.chunk.input_frames) // setup.chunk.shift + 1
        assert all(s > 0 for s in seconds)


def test_the_script_writes_a_table_that_renders_and_a_plot(exp_dir, tmp_path, monkeypatch, capsys):
    audio = tmp_path / "audio.wav"
    soundfile.write(audio, np.random.default_rng(0).uniform(-0.1, 0.1, 32000), 16000)
    table, picture = tmp_path / "table.json", tmp_path / "plot.png"
    flags = f"--exp-dir {exp_dir} --streams 2,1 --threads 1 --seconds 1.5 --audio {audio} --clock cpu"
    assert run_script(monkeypatch, SCRIPT, *flags.split(), "--json", table, "--plot", picture) == ""
    rows = json.loads(table.read_text())
    expected = [(name, 1, streams) for name in RUNTIMES for streams in (2, 1)]
    expected.remove(("onnxruntime", 1, 2))
    assert [(row["runtime"], row["threads"], row["streams"]) for row in rows] == expected
    assert len(rows) == 7 and all(0 < row["p50 ms"] <= row["p99 ms"] for row in rows)
    assert rows[1]["of one stream's"] == 1.0 and rows[0]["of one stream's"] > 0
    assert "| torch | 1 | 2 |" in render(table)
    assert render(table) in capsys.readouterr().out
    assert picture.stat().st_size > 10000


def test_a_search_with_hotwords_is_timed_as_it_decodes(exp_dir, tmp_path, monkeypatch, capsys):
    """Fitted to the model's tokens, as the model is: it says no <unk>."""
    (tmp_path / "names.txt").write_text("BED\n")
    setups: list[bench_streaming.Setup] = []
    runtime_of = bench_streaming.RUNTIME_OF["torch"]
    monkeypatch.setitem(bench_streaming.RUNTIME_OF, "torch", lambda setup: runtime_of(setups.append(setup) or setup))
    flags = f"--exp-dir {exp_dir} --streams 1 --threads 1 --seconds 1.5 --runtimes torch --decoding-method "
    beam = ("modified_beam_search", "--hotwords-file", tmp_path / "names.txt")
    assert run_script(monkeypatch, SCRIPT, *flags.split(), *beam) == ""
    assert "hotwords-names-1.5" in capsys.readouterr().out
    (setup,) = setups
    assert setup.search.scorers and setup.model.unk_id == 2


@pytest.mark.parametrize(
    "flags, named",
    [
        (("--runtimes", "torch,abacus"), "--runtimes abacus: unknown"),
        (("--runtimes", ""), "--runtimes: names none"),
        (("--runtimes", "onnxruntime", "--streams", "4,2"), "--runtimes onnxruntime --streams 4,2: decodes one stream"),
        (("--plot", "speed"), "--plot speed: not a kind of picture; end it with .png"),
        (("--plot", "speed.txt"), "--plot speed.txt: not a kind of picture"),
        (("--audio", "none.wav"), "none.wav: no such file"),
        (("--seconds", "0.3", "--runtimes", "torch"), "--seconds"),
        (("--decoding-method", "modified_beam_search"), "--runtimes torch,onnxruntime"),
        (("--blank-penalty", "2"), ": plain greedy_search alone, not greedy_search_blank-penalty-2; use --runtimes"),
        (("--chunk-size", -1), "--chunk-size"),
    ],
)
def test_bad_input_gets_one_line(exp_dir, monkeypatch, flags, named):
    error = run_script(monkeypatch, SCRIPT, "--exp-dir", exp_dir, "--streams", "1", "--threads", "1", *flags)
    assert error.startswith("error: ") and named in error and "\n" not in error


def test_what_is_named_twice_is_measured_once():
    flags = bench_parser().parse_args("--streams 4,1,4 --threads 2,2 --runtimes torch,torch".split())
    assert (flags.streams, flags.threads, flags.runtimes) == ((4, 1), (2,), ("torch",))


def test_audio_of_another_rate_is_refused(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(8000), 8000)
    with pytest.raises(UserError, match="slow.wav: 8000 Hz"):
        bench_streaming.read_audio([str(tmp_path / "slow.wav")])
