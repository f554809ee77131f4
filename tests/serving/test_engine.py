"""The engine behind the live page: its files, its silence, its queues."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from kdstream.commands import serve
from kdstream.errors import UserError
from kdstream.export.onnx import OnnxFiles, quantize
from kdstream.hotwords import Hotword, parse_hotwords
from kdstream.models.streaming import ChunkConfig
from kdstream.serving import engine as engine_module
from kdstream.serving.engine import ClientStream, Engine, EngineError, News, Progress
from kdstream.serving.limits import Limits
from kdstream.serving.protocol import Start
from kdstream.serving.runtime import ExportedModel, Runtime, SegmentedStream, Speller, find_model
from kdstream.serving.sessions import Sessions
from kdstream.transcription import Segment
from kdstream.units import tail_frames
from support.decoding import run_script
from support.serving import ROOT, Served, noise
from support.tokenizers import KINDS, tiny_tokenizer


async def hear_out(client: ClientStream) -> str:
    """The text of all segments."""
    segments: dict[int, Segment] = {}
    while True:
        news = await client.next_news()
        segments |= news.segments
        if news.final:
            return " ".join(segment.text for segment in segments.values())


def test_of_a_slow_reader_s_growing_texts_the_newest_alone_is_kept(runtime, said):
    audio, expected = said[0]

    async def late() -> tuple[list[str], str, bool]:
        engine = Engine(runtime)
        running = asyncio.create_task(engine.run())
        client = engine.open(16000)
        await client.accept(audio)
        client.finish()
        while client.has_work:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        running.cancel()
        segments, growing, final = await client.next_news()
        return [segment.text for segment in segments.values()], growing, final

    assert asyncio.run(late()) == ([expected], "", True)


def test_audio_that_comes_too_fast_waits_with_the_client(runtime, monkeypatch):
    monkeypatch.setattr(engine_module, "QUEUED_SECONDS", 2.0)

    async def fast() -> float:
        engine = Engine(runtime)
        running = asyncio.create_task(engine.run())
        client, most = engine.open(16000), 0.0
        for _ in range(10):
            await client.accept(np.zeros(16000, np.float32))
            most = max(most, sum(map(len, client.blocks)) / 16000)
        running.cancel()
        return most

    assert 1.0 <= asyncio.run(fast()) <= 3.0


def finish(client: ClientStream, *numbers: int) -> None:
    """Finishes segments of these numbers, one a step."""
    for number in numbers:
        client.update(Progress(0, News({number: Segment(str(number), [], 1.0)}, "", False), False))


def test_no_segment_of_a_slow_reader_is_dropped_and_its_audio_waits_until_it_reads(runtime, monkeypatch):
    monkeypatch.setattr(engine_module, "KEPT_SEGMENTS", 3)
    audio = np.zeros(160, np.float32)

    async def slow() -> list[list[int]]:
        client, told = Engine(runtime).open(16000), []
        for first in (0, 5):
            await client.accept(audio)
            finish(client, *range(first, first + 5))
            waiting = asyncio.create_task(client.accept(audio))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            told.append(list((await client.next_news()).segments))
            await asyncio.wait_for(waiting, timeout=10)
        return told

    assert asyncio.run(slow()) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_client_that_lacks_segments_which_are_kept_no_more_gets_a_new_session(runtime, monkeypatch):
    monkeypatch.setattr(engine_module, "KEPT_SEGMENTS", 3)

    async def come_back() -> tuple[list[bool], list[int]]:
        sessions = Sessions({"tiny": Engine(runtime)}, Limits())
        session = sessions.find(Start(16000, "<f4"))
        finish(session.stream, 0, 1, 2, 3, 4)
        await session.stream.next_news()
        finish(session.stream, 5)  # of those that were told 2, 3 and 4 are kept
        same = [sessions.find(Start(16000, "<f4", session=session.id, segments=n)) is session for n in range(8)]
        session.stream.tell_again(3)
        return same, list((await session.stream.next_news()).segments)

    assert asyncio.run(come_back()) == ([False] * 3 + [True] * 5, [2, 3, 4, 5])


def test_a_segment_whose_last_word_is_completed_is_counted_once(runtime, monkeypatch):
    texts = [{0: "HEL"}, {0: "HELLO", 1: "WORLD"}]
    steps = [{number: Segment(text, [], 1.0) for number, text in step.items()} for step in texts]

    async def run() -> int:
        engine = Engine(runtime)
        client = engine.open(16000)
        monkeypatch.setattr(engine, "_step", lambda _: {client: Progress(0, News(steps.pop(0), "", False), False)})
        while steps:
            await engine._decode([client])
        return engine.segments

    assert asyncio.run(run()) == 2


def test_the_tail_is_that_of_the_chunk(served):
    assert served.files.tail == ChunkConfig(8, 32).tail
    for chunk in (ChunkConfig(16, 32), ChunkConfig(32, 32), ChunkConfig(4, 4), ChunkConfig(8, 32, 16)):
        assert tail_frames(chunk.input_frames) == chunk.tail


def test_the_silence_lasts_as_long_as_the_tail_at_every_rate(served):
    frames = served.files.tail
    assert len(served.files.silence(16000)) == frames * 160
    assert len(served.files.silence(44100)) == (frames + 1) * 441  # and a frame that the resampler may hold back


def finals(engine: Engine, clients: list[np.ndarray]) -> list[str]:
    """What an engine hears in clients that all have spoken before it begins, so that they share every batch."""

    async def run() -> list[str]:
        streams = [engine.open(16000) for _ in clients]
        for stream, samples in zip(streams, clients, strict=True):
            await stream.accept(samples)
            stream.finish()
        running = asyncio.create_task(engine.run())
        texts = [await hear_out(stream) for stream in streams]
        running.cancel()
        return texts

    return asyncio.run(run())


@pytest.fixture(scope="module")
def int8(served) -> ExportedModel:
    files = quantize(OnnxFiles(served.files.encoder, served.files.decoder, served.files.joiner))
    return find_model(files.encoder)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_client_hears_among_15_loud_ones_what_it_hears_alone(served, int8, name):
    """What serve.py does; and int8 decoded together is what it must not do, which shows that this input can tell."""
    runtime = Runtime({"float32": served.files, "int8": int8}[name])
    quiet, loud = noise(1.5, seed=0), [8.0 * noise(1.5, seed) for seed in range(50, 65)]

    def hear(together: bool | None = None) -> tuple[str, str]:
        (alone,) = finals(Engine(runtime, together), [quiet])
        return alone, finals(Engine(runtime, together), [quiet, *loud])[0]

    assert runtime.model.mixes_rows == (name == "int8")
    alone, among = hear()
    assert alone == among and len(alone) > 10
    if name == "int8":
        alone, among = hear(together=True)
        assert alone != among


@pytest.mark.parametrize(
    "pieces, phrase, unknown",
    [
        ("▁A A : # @", "A :A #A @ A@", ":#@"),  # sherpa-onnx would take no hotword at all for the first of them
        ("▁A <0x41> <0x42>", "B #A", "#"),
        ("▁A A :", "A# :A", "#"),
        ("日 本 #", "日本#", "#"),
        ("▁A A : # @", "A: A#A A@", ""),
    ],
)
def test_signs_that_sherpa_onnx_reads_as_scores_are_no_letters_of_hotwords(served, tmp_path, pieces, phrase, unknown):
    assert speller_of(served, tmp_path, pieces).unknown_letters(phrase) == unknown


def speller_of(served: Served, folder: Path, pieces: str) -> Speller:
    (folder / "bpe.vocab").write_text("".join(f"{piece}\t0\n" for piece in pieces.split()), encoding="utf8")
    return Speller(served.files._replace(tokens=folder / "tokens.txt"))


DECOMPOSED = unicodedata.normalize("NFD", "CAFÉ")


@pytest.mark.parametrize(
    "kind, text, phrase, line",
    [
        ("char", "CAFÉ", DECOMPOSED, "CAFÉ"),
        ("char", "CAFÉ", DECOMPOSED.lower(), "CAFÉ"),
        ("byte fallback", "CAFÉ", DECOMPOSED, "CAFÉ"),
        ("byte fallback", "OK", DECOMPOSED, "CAFÉ"),
        ("char", "ABC 12", "ＡＢＣ\u200b１２", "ABC 12"),
        ("no normalisation", DECOMPOSED, DECOMPOSED, DECOMPOSED),
        ("no normalisation", "CAFÉ", DECOMPOSED, "CAFÉ"),
    ],
)
def test_hotwords_get_the_form_of_the_tokens_as_sherpa_onnx_gives_them_none(served, tmp_path, kind, text, phrase, line):
    tokenizer = tiny_tokenizer(tmp_path / "bpe.model", [text], **KINDS[kind])
    tokenizer.save_vocabulary(tmp_path / "bpe.vocab")
    speller = Speller(served.files._replace(tokens=tmp_path / "tokens.txt"))
    (hotword,) = parse_hotwords([phrase], "names.txt", 1.0, speller.unknown_letters)
    assert speller.line(hotword) == f"{line} :1.000000000"
    if kind != "no normalisation":
        assert tokenizer.encode([line]) == tokenizer.encode([phrase])  # torch says the same


@pytest.mark.parametrize("phrase, unknown", [("\u200b", "\u200b"), ("：A", ":"), ("A\u200b：2", ":"), ("A", "")])
def test_what_says_nothing_or_is_a_score_in_the_form_of_the_tokens_is_no_hotword(served, tmp_path, phrase, unknown):
    assert speller_of(served, tmp_path, "▁A <0xE2> <0x3A>").unknown_letters(phrase) == unknown


@pytest.mark.parametrize(
    "pieces, phrase, advice",
    [
        ("▁THE ▁MEETING ▁ 北 京", "北京", "torch prefers them within a sentence too"),
        ("▁THE ▁MEETING <0xE5> <0x8C>", "北京", "torch prefers them within a sentence too"),
        ("▁ 今天 北京 A", "A", "train with --token-type char"),
        ("▁THE ▁MEETING ▁ 北 京", "THE 北京", ""),
        ("▁ 今 天 气 A", "今天", ""),  # each letter is a token of sherpa-onnx's
    ],
)
def test_hotwords_that_sherpa_onnx_prefers_after_a_blank_alone_are_warned_of(
    served, tmp_path, caplog, pieces, phrase, advice
):
    speller_of(served, tmp_path, pieces).warn("names.txt", [Hotword(phrase, 1.0)])
    found = f"names.txt: sherpa-onnx prefers hotwords such as {phrase!r} after a blank alone; {advice}"
    assert caplog.messages == [found] * bool(advice)


@pytest.fixture(scope="module")
def biased(served) -> Runtime:
    """One whose clients may have hotwords."""
    served.tokenizer.save_vocabulary(served.files.vocabulary)
    return Runtime(served.files, method="modified_beam_search")


@pytest.mark.parametrize("score", ["1e-300", "-1e-300", "0", "100", "-100"])
def test_sherpa_onnx_takes_each_score_that_a_client_may_give(biased, score):
    SegmentedStream(biased, biased.spell([f"be :{score}"]))


def test_a_score_of_all_hotwords_is_refused_before_clients_come(biased):
    with pytest.raises(UserError, match=r"--hotwords-score 1e\+300: must be from -100 to 100"):
        Runtime(biased.model, method="modified_beam_search", hotwords_score=1e300)


def test_a_client_whose_stream_cannot_be_made_fails_alone(biased, said):
    audio, _ = said[0]

    async def run() -> tuple[str, str, int]:
        engine = Engine(biased)
        good, bad = engine.open(16000), engine.open(16000, "BE :1e300")  # as no spelling of ours would be
        for client in (good, bad):
            await client.accept(audio)
            client.finish()
        running = asyncio.create_task(engine.run())
        with pytest.raises(EngineError) as error:
            await bad.next_news()
        text = await hear_out(good)
        running.cancel()
        return text, str(error.value), engine.failures

    alone = finals(Engine(biased), [audio])
    assert asyncio.run(run()) == (*alone, "the recogniser cannot take this audio or these hotwords", 1)


@pytest.mark.parametrize(
    "names, problem",
    [
        (["epoch-1-avg-1-chunk-8-left-64", "epoch-1-avg-1-chunk-16-left-64"], "several exports fit"),
        (["mine"], "no export fits; there are"),
    ],
)
def test_a_directory_whose_export_is_in_doubt_is_refused_with_what_serve_takes_instead(tmp_path, names, problem):
    """It has no flag by which one could be chosen."""
    paths = sorted(tmp_path / f"encoder-{name}.onnx" for name in names)
    for path in paths:
        path.touch()
    with pytest.raises(UserError) as error:
        serve.main([str(tmp_path)])
    assert f"{problem}: {', '.join(path.name for path in paths)}; name the file that you mean" in str(error.value)


def test_settings_of_another_search_are_pointed_out(tmp_path, caplog):
    with pytest.raises(UserError, match="holds no exported"):
        serve.main([str(tmp_path), "--beam-size", "16", "--hotwords-score", "3", "--blank-penalty", "1"])
    assert caplog.messages == [
        "--beam-size 16: has no effect in greedy_search",
        "--hotwords-score 3.0: has no effect in greedy_search",
    ]


@pytest.mark.parametrize("flag", ["--beam-size", "--num-threads"])
def test_no_paths_and_no_threads_are_refused_before_a_model_is_read(flag, capsys):
    with pytest.raises(SystemExit):
        serve.main(["none.onnx", flag, "0"])
    assert f"{flag}: 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_serving_needs_no_torch():
    code = "import sys; import kdstream.serving.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.slow
def test_what_cannot_be_served_is_refused_in_one_line(served, tmp_path, monkeypatch):
    encoder = served.files.encoder
    (tmp_path / "encoder-lonely.onnx").write_bytes(b"")
    for part in ("encoder", "decoder", "joiner"):
        (tmp_path / f"{part}-swapped.onnx").write_bytes(served.files.decoder.read_bytes())
        (tmp_path / f"{part}-junk.onnx").write_bytes(b"junk")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for args, named in (
            ((tmp_path / "encoder-none.onnx",), "encoder-none.onnx: no such file"),
            ((tmp_path / "encoder-lonely.onnx",), "decoder-lonely.onnx: no such file"),
            ((served.files.tokens,), "encoder-...onnx"),
            ((f"={encoder}",), "has no name or no path; write NAME=PATH"),
            ((encoder, "--max-message-bytes", 0), "--max-message-bytes 0"),
            ((encoder, "--tls-cert", "none.pem"), "--tls-cert none.pem"),
            ((encoder, "--port", port), f"--port {port}"),
        ):
            error = run_script(monkeypatch, "egs/librispeech/serve.py", *args)
            assert error.startswith("error: ") and named in error and "\n" not in error
        (tmp_path / "tokens.txt").write_text("")
        for name in ("swapped", "junk"):
            with pytest.raises(UserError, match=f"encoder-{name}.onnx: "):
                find_model(tmp_path / f"encoder-{name}.onnx")
