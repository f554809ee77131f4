"""kdstream.load(...).transcribe(...) and its streams say the same, in torch and in sherpa-onnx."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import kdstream
from kdstream.endpoints import EndpointConfig
from kdstream.recognizer import loading
from kdstream.recognizer.exported import ExportedRecognizer
from kdstream.recognizer.trained import TrainedRecognizer
from kdstream.transcription import Word
from support.decoding import make_experiment
from support.serving import noise

pytestmark = pytest.mark.slow

SECONDS = 2.5
RUNTIMES = ("trained", "exported")
RATES = (16000, 8000, 44100)


@pytest.fixture(scope="session")
def recognizers(exp_dir, exported) -> dict[str, kdstream.Recognizer]:
    trained = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu")
    return {"trained": trained, "exported": kdstream.load(exported)}


def stream_all(recognizer: kdstream.Recognizer, blocks: list[np.ndarray], rate: int) -> kdstream.Transcription:
    stream = recognizer.stream()
    for block in blocks:
        stream.accept(block, rate)
    return stream.finish()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [97, 0.1, 10.0], ids=lambda size: f"{size}")
def test_a_stream_says_what_transcribe_says_for_any_block_size(recognizers, runtime, rate, size):
    samples = noise(SECONDS, seed=1, rate=rate)
    step = size if isinstance(size, int) else int(size * rate)
    whole = recognizers[runtime].transcribe(samples, rate)
    heard = stream_all(recognizers[runtime], np.split(samples, range(step, len(samples), step)), rate)
    assert len(whole.text) > 20
    assert (heard.text, heard.words, heard.seconds) == (whole.text, whole.words, whole.seconds) and whole.seconds == 2.5
    assert heard.confidence == pytest.approx(whole.confidence, abs=1e-5)


def test_both_runtimes_give_the_same_words_times_and_confidence(recognizers):
    for seed in range(3):
        samples = noise(SECONDS, seed)
        trained, exported = (recognizers[runtime].transcribe(samples) for runtime in RUNTIMES)
        assert (exported.text, exported.words) == (trained.text, trained.words) and len(trained.text) > 20
        assert exported.confidence == pytest.approx(trained.confidence, abs=1e-4)
        assert " ".join(word.text for word in exported.words) == exported.text


def test_modified_beam_search_finds_the_same_in_both_runtimes(exp_dir, exported):
    samples = noise(SECONDS, seed=1)
    settings = dict(search="modified_beam_search", beam_size=3)
    trained = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu", **settings)
    greedy = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu")
    heard = trained.transcribe(samples)
    assert kdstream.load(exported, **settings).transcribe(samples).text == heard.text
    assert heard.text != greedy.transcribe(samples).text


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_both_runtimes_say_more_by_the_same_blank_penalty(exp_dir, exported, search):
    samples = noise(SECONDS, seed=1)
    plain, trained, runtime = (
        kdstream.load(path, chunk=8, left_context=32, search=search, blank_penalty=penalty).transcribe(samples)
        for path, penalty in ((exp_dir, 0.0), (exp_dir, 2.0), (exported, 2.0))
    )
    assert (runtime.text, runtime.words) == (trained.text, trained.words)
    assert runtime.confidence == pytest.approx(trained.confidence, abs=1e-4)
    assert len(trained.text) > len(plain.text) > 20


def test_both_runtimes_prefer_the_same_hotwords(exp_dir, exported, tmp_path):
    """The file is in lower case, and the model's tokens are not: sherpa-onnx alone would pass over it."""
    (tmp_path / "hotwords.txt").write_text("hed\ngee :3\n")
    samples, beam = noise(SECONDS, seed=1), dict(search="modified_beam_search", beam_size=4)
    hotwords = dict(hotwords_file=str(tmp_path / "hotwords.txt"), hotwords_score=2.0)
    plain, trained = (
        kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu", **beam, **more).transcribe(samples).text
        for more in ({}, hotwords)
    )
    assert kdstream.load(exported, **beam, **hotwords).transcribe(samples).text == trained != plain
    assert trained.count(" GEE ") > plain.count(" GEE ")


def words_by_segment(heard: kdstream.Transcription) -> list[list[Word]]:
    return [segment.words for segment in heard.segments]


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_both_runtimes_say_the_same_segments(exp_dir, exported, search):
    """Over pauses (rules 1 and 2) and through unbroken speech (rule 3), where a word is held back."""
    speech = [part for seed in range(4) for part in (noise(2.0, seed), np.zeros(int(16000 * (0.3 + seed)), np.float32))]
    rules = EndpointConfig(rule1_min_trailing_silence=0.9, rule2_min_trailing_silence=0.4, rule3_min_utterance_length=1)
    settings = dict(search=search, endpoints=rules)
    trained = kdstream.load(exp_dir, chunk=8, left_context=32, device="cpu", **settings).stream()
    stream = kdstream.load(exported, **settings).stream()
    for block in np.array_split(np.concatenate(speech), 50):
        trained.accept(block)
        stream.accept(block)
    heard, same = trained.finish(), stream.finish()
    assert len(heard.segments) > 6 and words_by_segment(same) == words_by_segment(heard)


@pytest.mark.parametrize("runtime", ["torch", "sherpa-onnx"])
def test_hotwords_that_cannot_be_spelt_are_refused_in_both_runtimes(both, runtime, tmp_path):
    (tmp_path / "hotwords.txt").write_text("BÉD\n")
    chosen = dict(runtime=runtime, search="modified_beam_search", hotwords_file=str(tmp_path / "hotwords.txt"))
    with pytest.raises(kdstream.UserError, match="line 1, 'BÉD': the model has no token for 'É'"):
        kdstream.load(both, **({"chunk": 8, "left_context": 32} | chosen))


def test_an_export_without_its_vocabulary_takes_no_hotwords(both, tmp_path):
    (both / "bpe.vocab").unlink()
    (tmp_path / "hotwords.txt").write_text("BED\n")
    chosen = dict(runtime="sherpa-onnx", search="modified_beam_search", hotwords_file=str(tmp_path / "hotwords.txt"))
    with pytest.raises(kdstream.UserError, match=r"bpe\.vocab: no such file; .*; run kdstream export anew"):
        kdstream.load(both, **chosen)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_says_what_its_samples_say(recognizers, runtime, tmp_path):
    for rate in RATES:
        path, samples = tmp_path / f"{rate}.wav", noise(SECONDS, seed=2, rate=rate)
        soundfile.write(path, np.stack([samples, samples], axis=1), rate, subtype="FLOAT")
        heard = recognizers[runtime].transcribe(path)
        assert (heard.audio, heard.seconds) == (str(path), SECONDS)
        assert heard.words == recognizers[runtime].transcribe(samples, rate).words != []
        assert heard.words == recognizers[runtime].transcribe(str(path)).words


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_partial_text_grows_into_the_final_one(recognizers, runtime):
    stream, partial = recognizers[runtime].stream(), []
    for block in np.split(noise(SECONDS, seed=1), 25):
        stream.accept(block)
        partial.append(stream.text)
    final = stream.finish()
    assert len(set(partial)) > 5 and all(final.text.startswith(text) for text in partial)
    assert stream.finish() == final and stream.text == final.text
    with pytest.raises(ValueError, match="after finish"):
        stream.accept(np.zeros(1600, np.float32))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_streams_side_by_side_do_not_mix(recognizers, runtime):
    audio = [noise(SECONDS, seed) for seed in range(3)]
    streams = [recognizers[runtime].stream() for _ in audio]
    for pieces in zip(*(np.split(samples, 10) for samples in audio), strict=True):
        for stream, piece in zip(streams, pieces, strict=True):
            stream.accept(piece)
    texts = [recognizers[runtime].transcribe(samples).text for samples in audio]
    assert [stream.finish().text for stream in streams] == texts and len(set(texts)) == 3


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_lists_tensors_and_doubles_are_samples_too(recognizers, runtime):
    samples = noise(1.0, seed=3)
    words = recognizers[runtime].transcribe(samples).words
    for same in (samples.tolist(), torch.from_numpy(samples), samples.astype(np.float64)):
        assert recognizers[runtime].transcribe(same).words == words


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_less_than_10_ms_says_nothing(recognizers, runtime):
    for samples in ([], np.zeros(159, np.float32)):
        nothing = kdstream.Transcription("", len(samples) / 16000, "", [], None)
        assert recognizers[runtime].transcribe(samples) == nothing
        assert stream_all(recognizers[runtime], [samples], 16000) == nothing


@pytest.mark.parametrize(
    "samples, rate, named",
    [
        (np.zeros((2, 1600), np.float32), 16000, r"samples of shape \(2, 1600\): not one channel; give"),
        (np.zeros(1600, np.int16), 16000, "samples of type int16: not floats; give"),
        (np.full(1600, np.nan, np.float32), 16000, "^samples are NaN or infinite; give"),
        (np.full(1600, 40000, np.float32), 16000, "^float samples up to 40000, not on a scale of"),
        (np.zeros(1600, np.float32), 47999, "sample_rate 47999: not a common rate; resample"),
    ],
)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bad_samples_are_refused_in_one_line(recognizers, runtime, samples, rate, named):
    with pytest.raises(kdstream.UserError, match=named):
        recognizers[runtime].transcribe(samples, rate)
    with pytest.raises(kdstream.UserError, match=named):
        recognizers[runtime].stream().accept(samples, rate)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_stream_has_one_rate(recognizers, runtime):
    stream = recognizers[runtime].stream()
    stream.accept(np.zeros(800, np.float32), 8000)
    with pytest.raises(kdstream.UserError, match="sample_rate 16000: the stream began at 8000; give"):
        stream.accept(np.zeros(800, np.float32))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bad_files_are_refused_in_one_line(recognizers, runtime, tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"no sound" * 100)
    soundfile.write(tmp_path / "short.wav", np.zeros(20), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    for name, named in (
        ("none.wav", "no such file"),
        ("junk.wav", "text, not audio; give an audio file"),
        ("short.wav", "less than 10 ms of sound; give another"),
        ("nan.wav", "samples are NaN or infinite; convert it again"),
    ):
        with pytest.raises(kdstream.UserError, match=f"{name}: {named}"):
            recognizers[runtime].transcribe(tmp_path / name)


def test_a_full_context_model_hears_whole_utterances_only(tmp_path):
    recognizer = kdstream.load(make_experiment(tmp_path, causal=False), device="cpu")
    assert len(recognizer.transcribe(noise(SECONDS, seed=1)).words) > 1
    with pytest.raises(kdstream.UserError, match="whole utterances only; use a streaming one"):
        recognizer.stream()


def test_a_directory_of_both_runs_in_torch_unless_asked(both, monkeypatch):
    assert isinstance(kdstream.load(both, device="cpu"), TrainedRecognizer)
    assert isinstance(kdstream.load(both, runtime="sherpa-onnx"), ExportedRecognizer)
    monkeypatch.setattr(loading, "find_spec", lambda package: None)  # without torch
    assert isinstance(kdstream.load(both), ExportedRecognizer)
    monkeypatch.undo()
    (both / "pretrained.pt").unlink()
    assert isinstance(kdstream.load(both), ExportedRecognizer)


def test_weights_and_chunk_are_those_that_are_named(both):
    samples = noise(SECONDS, seed=1)
    (both / "pretrained.pt").rename(both / "mine.pt")
    named = kdstream.load(both, checkpoint=both / "mine.pt", chunk=8, left_context=32, device="cpu")
    other = kdstream.load(both, checkpoint=both / "mine.pt", chunk=16, left_context=16, device="cpu")
    exported = kdstream.load(both, runtime="sherpa-onnx")
    assert named.transcribe(samples).words == exported.transcribe(samples).words != other.transcribe(samples).words


def copies(folder: Path, *names: str) -> None:
    """The exported files once more, under other names."""
    for name in names:
        for part in ("encoder", "decoder", "joiner"):
            source = folder / f"{part}-epoch-3-avg-2-chunk-8-left-32.onnx"
            (folder / f"{part}-{name}.onnx").write_bytes(source.read_bytes())


def test_of_several_exports_the_keywords_choose_or_all_are_named(both):
    copies(both, "epoch-3-avg-2-chunk-16-left-32", "epoch-3-avg-2-chunk-16-left-64", "epoch-12-avg-2-chunk-8-left-32")
    chosen = dict(runtime="sherpa-onnx")
    with pytest.raises(
        kdstream.UserError, match="several exports fit: encoder-epoch-12-avg-2-chunk-8.*chunk-16-left-32"
    ):
        kdstream.load(both, **chosen)
    with pytest.raises(
        kdstream.UserError, match="several exports fit: encoder-.*-left-32.onnx, encoder-.*-left-64.onnx"
    ):
        kdstream.load(both, epoch=3, avg=2, chunk=16, **chosen)
    with pytest.raises(kdstream.UserError, match="no export fits; there are: encoder-.*kdstream export"):
        kdstream.load(both, epoch=4, avg=2, **chosen)
    with pytest.raises(kdstream.UserError, match="no export fits; there are: encoder-.*kdstream export"):
        kdstream.load(both, avg=9, **chosen)
    for keywords in ({"epoch": 12, "avg": 2}, {"chunk": 16, "left_context": 64}, {"int8": True}):
        assert isinstance(kdstream.load(both, **keywords, **chosen), ExportedRecognizer)
    assert isinstance(kdstream.load(both / "encoder-epoch-12-avg-2-chunk-8-left-32.onnx"), ExportedRecognizer)


@pytest.mark.parametrize(
    "given",
    [
        dict(chunk=16),
        dict(chunk=8),  # as the file has it
        dict(left_context=128),
        dict(right_context=0),
        dict(epoch=3, avg=2),
        dict(iter=4000),
        dict(int8=True),
        dict(int8=False),
    ],
    ids=str,
)
def test_a_file_is_an_export_and_nothing_chooses_another(exported, given):
    encoder = exported / "encoder-epoch-3-avg-2-chunk-8-left-32.onnx"
    problem = f"{', '.join(given)}: for the exports of a directory, and {encoder} is one file"
    with pytest.raises(
        kdstream.UserError, match=f"^{re.escape(problem)}; leave out what chooses one, or give the directory$"
    ):
        kdstream.load(encoder, **given)


def test_a_directory_without_an_export_is_named(tmp_path: Path):
    with pytest.raises(kdstream.UserError, match=f"{tmp_path}: holds no exported encoder-.*one with kdstream export"):
        kdstream.load(tmp_path, runtime="sherpa-onnx")


def test_exports_with_and_without_right_context_are_told_apart(both):
    copies(both, "epoch-3-avg-2-chunk-8-left-32-right-8")
    with pytest.raises(kdstream.UserError, match="several exports fit: .*-left-32-right-8.onnx, .*-left-32.onnx"):
        kdstream.load(both, runtime="sherpa-onnx")
    for right in (0, 8):
        assert isinstance(kdstream.load(both, right_context=right, runtime="sherpa-onnx"), ExportedRecognizer)
    with pytest.raises(kdstream.UserError, match="no export fits"):
        kdstream.load(both, right_context=16, runtime="sherpa-onnx")


def test_quantised_files_are_taken_when_asked_for_or_alone(exported, tmp_path):
    samples = noise(SECONDS, seed=1)
    for path in exported.iterdir():
        if not path.name.endswith("-32.onnx"):
            shutil.copy(path, tmp_path)
    exact, small, alone = (kdstream.load(exported), kdstream.load(exported, int8=True), kdstream.load(tmp_path))
    confidences = [recognizer.transcribe(samples).confidence for recognizer in (exact, small, alone)]
    assert confidences[0] != confidences[1] == confidences[2]
    with pytest.raises(kdstream.UserError, match="no export fits; there are: encoder-.*int8.onnx"):
        kdstream.load(tmp_path, int8=False)


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(runtime="onnx"), "runtime onnx: unknown; use torch or sherpa-onnx"),
        (dict(runtime="torch", int8=True), "int8: not in torch"),
        (dict(runtime="torch", num_threads=2), "num_threads: not in torch"),
        (dict(runtime="sherpa-onnx", num_threads=0), "num_threads 0: must be at least 1"),
        (dict(runtime="sherpa-onnx", device="cpu"), "device: not in sherpa-onnx"),
        (dict(runtime="sherpa-onnx", checkpoint="a.pt"), "checkpoint: not in sherpa-onnx"),
        (dict(runtime="sherpa-onnx", use_averaged_model=False), "use_averaged_model: not in sherpa-onnx"),
        (dict(runtime="sherpa-onnx", search="fast_beam_search"), "search fast_beam_search: not in sherpa-onnx; use gr"),
        (dict(runtime="sherpa-onnx", max_sym_per_frame=2), "max_sym_per_frame: not a setting of greedy_search; leave"),
        (dict(hotwords=["ZOE"]), "hotwords: not a setting of greedy_search; leave it out, or use hotwords_file$"),
        *(
            (
                dict(runtime=runtime, hotwords_file="names.txt"),
                'hotwords_file: not a setting of greedy_search; leave it out, or use search="modified_beam_search"$',
            )
            for runtime in ("torch", "sherpa-onnx")
        ),
        (dict(search="widest_search"), "^search widest_search: unknown; use one of greedy_search, "),
        (dict(runtime="torch", left_context=-1), "endless cache; use left_context 32 or the like$"),
        (dict(runtime="torch", epoch=7), "epoch-7.pt: no such checkpoint"),
        (dict(runtime="torch", epoch=3, avg=9), "^epoch 3 avg 9: .*lower avg"),
        (
            dict(search="modified_beam_search", beam_width=3),
            "beam_width: not a setting of modified_beam_search; .*size",
        ),
        *(
            (dict(runtime=runtime, **out_of_range), named)
            for runtime in ("torch", "sherpa-onnx")
            for out_of_range, named in (
                (dict(search="modified_beam_search", beam_size=0), "^beam_size 0: must be at least 1"),
                (dict(blank_penalty=-1.0), "^blank_penalty -1.0: must be at least 0"),
                (dict(engine="onxruntime"), "^engine onxruntime: unknown; use one of auto, torch, onnxruntime"),
                (
                    dict(endpoints=EndpointConfig(rule1_min_trailing_silence=-1.0)),
                    "^rule1_min_trailing_silence -1.0: must be more than 0",
                ),
                (
                    dict(endpoints=EndpointConfig(rule3_min_utterance_length=math.nan)),
                    "^rule3_min_utterance_length nan: must be a number",
                ),
            )
        ),
        (dict(search="modified_beam_search", nbest=4), "nbest: not a setting of modified_beam_search; .*beam_size"),
        (dict(chunk=7, left_context=7), "chunk 7: not a multiple of 4, .*; use chunk 4,8,16,...$"),
    ],
    ids=str,
)
def test_settings_that_the_runtime_does_not_have_are_refused(both, settings, named):
    with pytest.raises(kdstream.UserError, match=named):
        kdstream.load(both, **settings).transcribe(noise(1.0, seed=1))


def test_what_holds_no_model_is_refused_with_the_fix(tmp_path):
    with pytest.raises(kdstream.UserError, match="none: no such file or directory; give an exp-dir"):
        kdstream.load(tmp_path / "none")
    with pytest.raises(kdstream.UserError, match="holds neither config.json and checkpoints, nor an exported"):
        kdstream.load(tmp_path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_stream_tells_finished_segments_apart_from_the_growing_one(exp_dir, exported, runtime):
    rules = EndpointConfig(rule3_min_utterance_length=0.8)
    settings: dict = {"chunk": 8, "left_context": 32, "endpoints": rules}
    recognizer = kdstream.load(exp_dir if runtime == "trained" else exported, **settings)
    stream, counts = recognizer.stream(), []
    for block in np.split(noise(SECONDS, seed=1), 25):
        stream.accept(block)
        counts.append(len(stream.segments))
        parts = [*(segment.text for segment in stream.segments), stream.growing]
        assert stream.text.replace(" ", "") == "".join(parts).replace(" ", "")  # a part may begin within a word
    heard = stream.finish()
    assert counts == sorted(counts) and 0 < counts[-1] < len(heard.segments)
    assert [word for segment in heard.segments for word in segment.words] == heard.words
    assert words_by_segment(heard) == words_by_segment(recognizer.transcribe(noise(SECONDS, seed=1)))
