"""The audio of many clients through one sherpa-onnx recogniser, in batches.

Whoever has a whole chunk takes part in the next batch, one chunk each: a client that sends an hour at once waits its
turn like one that speaks.  Batches grow as the load does, and with them the audio that a core can follow.

A model that scales activations over the whole batch, as int8 exports do, would let a loud client change the words of a
quiet one.  Such a model decodes the clients of a batch one after another.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import sherpa_onnx

from kdstream import words
from kdstream.config.experiment import TOKENS_FILE, VOCABULARY_FILE
from kdstream.config.sections import DecodeConfig
from kdstream.errors import UserError
from kdstream.hotwords import read_hotwords
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE, tail_frames

QUEUED_SECONDS = 10.0  # of audio that may wait; then a client's next block has to
SCALES_ACTIVATIONS = b"DynamicQuantizeLinear"  # the ONNX operator: one scale for a tensor, all rows of a batch in it
SEARCH_SETTINGS: dict[str, tuple[str, ...]] = {  # of sherpa-onnx's searches for transducers
    "greedy_search": (),
    "modified_beam_search": ("beam_size", "hotwords_file", "hotwords_score"),
}
BLOCK_SECONDS = 0.5  # that the recogniser is given at once; it keeps what it has been given without a limit


class ExportedModel(NamedTuple):
    """The files of a streaming model, and how much silence its clients' audio ends with.

    tail: feature frames of 10 ms; see `tail_frames`.
    """

    encoder: Path
    decoder: Path
    joiner: Path
    tokens: Path
    tail: int

    def silence(self, sample_rate: int) -> np.ndarray:
        """Zeros (S,) at `sample_rate`, which a client sends after an utterance."""
        # a resampler holds back the last fraction of a millisecond: one frame more, or the last chunk could stay short
        frames = self.tail + (sample_rate != SAMPLE_RATE)
        return np.zeros(frames * sample_rate // FRAMES_PER_SECOND, np.float32)

    @property
    def vocabulary(self) -> Path:
        """bpe.vocab, which spells hotwords; older exports lack it."""
        return self.tokens.with_name(VOCABULARY_FILE)

    @property
    def mixes_rows(self) -> bool:
        """Whether a client's words would depend on the others in its batch: true of int8 files."""
        return any(SCALES_ACTIVATIONS in path.read_bytes() for path in (self.encoder, self.decoder, self.joiner))


def find_model(encoder: Path) -> ExportedModel:
    """The model whose encoder is `encoder`, as export.py writes it: the other files lie beside it.

    Raises UserError where a file is missing, or is no such encoder.
    """
    if not encoder.name.startswith("encoder-"):
        raise UserError(f"{encoder}: not an encoder", fix="name the exported file encoder-...onnx; export.py writes it")
    rest = encoder.name[len("encoder") :]
    others = [encoder.with_name(name) for name in (f"decoder{rest}", f"joiner{rest}", TOKENS_FILE)]
    for path in (encoder, *others):
        if not path.is_file():
            fix = "export.py writes encoder, decoder, joiner and tokens.txt together"
            raise UserError(f"{path}: no such file", fix=fix)
    return ExportedModel(encoder, *others, tail=_tail(encoder))


def _tail(encoder: Path) -> int:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is never run
    try:
        session = onnxruntime.InferenceSession(str(encoder), options, providers=["CPUExecutionProvider"])
        return tail_frames(int(session.get_modelmeta().custom_metadata_map["T"]))
    except KeyError as error:
        problem = f"{encoder}: no encoder of a streaming model, or an encoder of whole utterances, which cannot stream"
        fix = "export a streaming one with export.py, or give this one to sherpa-onnx's OfflineRecognizer"
        raise UserError(problem, fix=fix) from error
    except Exception as error:  # onnxruntime's own errors have no common class
        raise UserError(f"{encoder}: {error}", fix="export it anew with export.py") from error


def settings_of(method: str) -> tuple[str, ...]:
    """The settings of a search.  Raises UserError if sherpa-onnx does not have it."""
    if method not in SEARCH_SETTINGS:
        raise UserError(f"search {method}: not in sherpa-onnx", fix=f"use {' or '.join(SEARCH_SETTINGS)}")
    return SEARCH_SETTINGS[method]


def load_recognizer(
    model: ExportedModel,
    num_threads: int,
    method: str = "greedy_search",
    beam_size: int = DecodeConfig.beam_size,
    hotwords_file: str = "",
    hotwords_score: float = DecodeConfig.hotwords_score,
) -> sherpa_onnx.OnlineRecognizer:
    """sherpa-onnx on the model's files.

    Args:
      num_threads: of onnxruntime.
      method: greedy_search, or modified_beam_search, with `beam_size` paths and hotwords.
      hotwords_file, hotwords_score: see `read_hotwords`.
    Raises:
      UserError: hotwords that cannot be read or spelt.
    """
    with _hotwords(model, hotwords_file, hotwords_score) as hotwords:
        return _from_files(model, num_threads, method, beam_size, hotwords)


@contextmanager
def _hotwords(model: ExportedModel, file: str, score: float) -> Iterator[dict[str, Any]]:
    """How sherpa-onnx is told of hotwords: in a file of those that the model can spell, which it reads at once.

    It would pass over the others in silence.
    """
    if not file:
        yield {}
        return
    if not model.vocabulary.is_file():
        raise UserError(f"{model.vocabulary}: no such file; hotwords are spelt with it", fix="run export.py anew")
    pieces = [line.split("\t")[0] for line in model.vocabulary.read_text(encoding="utf8").splitlines()]
    letters = {piece for piece in (piece.removeprefix(words.WORD_START) for piece in pieces) if len(piece) == 1}
    in_bytes = any(map(words.BYTE_PIECE.fullmatch, pieces))

    def unknown_letters(text: str) -> str:
        return "" if in_bytes else "".join(letter for letter in text if letter not in letters | {" "})

    hotwords, case = read_hotwords(Path(file), score, unknown_letters), words.case_of(pieces)
    unspaced = words.mostly_unspaced(piece for piece in pieces if not words.is_symbol(piece))
    by_letter = unspaced and all(len(piece) == 1 or words.is_symbol(piece) for piece in pieces) and not in_bytes
    if unspaced and not by_letter:
        logging.warning(f"{file}: sherpa-onnx prefers these hotwords after a blank alone; train with --token-type char")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf8") as spelt:
        for phrase, score_of_token in hotwords:
            phrase = words.in_case(phrase, case)
            if by_letter:  # sherpa-onnx would take a Latin word for one letter
                phrase = " ".join(words.without_blanks_beside_unspaced(phrase).replace(" ", words.WORD_START))
            print(phrase, f":{score_of_token}", file=spelt)
        spelt.flush()
        yield {
            "hotwords_file": spelt.name,
            "hotwords_score": score,
            "modeling_unit": "cjkchar" if by_letter else "bpe",
            "bpe_vocab": str(model.vocabulary),
        }


def _from_files(
    model: ExportedModel, num_threads: int, method: str, beam_size: int, hotwords: dict[str, Any]
) -> sherpa_onnx.OnlineRecognizer:
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(model.tokens),
        encoder=str(model.encoder),
        decoder=str(model.decoder),
        joiner=str(model.joiner),
        num_threads=num_threads,
        decoding_method=method,
        max_active_paths=beam_size,
        temperature_scale=1.0,  # token probabilities are the model's own
        **hotwords,
    )


def text_heard(recognizer: sherpa_onnx.OnlineRecognizer, stream: sherpa_onnx.OnlineStream) -> str:
    """What has been heard so far.

    sherpa-onnx knows a blank at the beginning of a piece, and byte pieces that begin at id 3; the others it writes as
    they stand in tokens.txt.  Where it did, the text is made from the pieces: that takes longer.
    """
    text = recognizer.get_result(stream).strip()
    return words.as_text(words.spell(recognizer.tokens(stream))) if "0x" in text or words.WORD_START in text else text


class Text(NamedTuple):
    """What has been heard so far, or all of it."""

    text: str
    final: bool


class EngineError(Exception):
    """The recogniser failed on a batch."""


class ClientStream:
    """What one client says, on its way through the recogniser.

    The event loop appends blocks on one side, the decoding thread takes them on the other, and the thread alone touches
    `stream`; everything else belongs to the loop.
    """

    def __init__(self, sample_rate: int, silence: np.ndarray, wake: Callable[[], None]) -> None:
        self.sample_rate = sample_rate
        self.blocks: deque[np.ndarray | None] = deque()  # None: the end
        self.stream: sherpa_onnx.OnlineStream | None = None
        self.ended = False  # in the thread: None was taken
        self.unfinished = False  # a whole chunk is left that no batch has had yet
        self._silence, self._wake = silence, wake
        self._queued = 0
        self._told = self._latest = Text("", False)
        self._failed = False
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._room.set()

    @property
    def has_work(self) -> bool:
        return bool(self.blocks) or self.unfinished

    async def accept(self, samples: np.ndarray) -> None:
        """Takes float32 samples (S,) at `sample_rate`; waits first while QUEUED_SECONDS of them are undecoded."""
        await self._room.wait()
        size = int(BLOCK_SECONDS * self.sample_rate)
        self.blocks.extend(samples[start : start + size] for start in range(0, len(samples), size))
        self._queued += len(samples)
        if self._queued > QUEUED_SECONDS * self.sample_rate:
            self._room.clear()
        self._wake()

    def finish(self) -> None:
        """Says that no more audio comes; the final text will."""
        self.blocks.extend((self._silence, None))
        self._queued += len(self._silence)
        self._wake()

    async def next_text(self) -> Text:
        """The newest text, once it is another than the last that was asked for: who asks late misses those between.

        Raises EngineError where there will be none.
        """
        while self._latest == self._told and not self._failed:
            self._news.clear()
            await self._news.wait()
        if self._failed:
            raise EngineError("the recogniser failed")
        self._told = self._latest
        return self._told

    def update(self, progress: Progress) -> None:
        self._queued -= progress.taken
        if self._queued <= QUEUED_SECONDS * self.sample_rate:
            self._room.set()
        self.unfinished, self._latest = progress.unfinished, progress.text
        self._news.set()

    def fail(self) -> None:
        self._failed = True
        self._news.set()
        self._room.set()


class Progress(NamedTuple):
    """What a step has done for one stream; taken: samples."""

    taken: int
    text: Text
    unfinished: bool


class Engine:
    """Decodes every open stream, chunk by chunk, in one thread of its own.

    Args:
      silence: the samples of silence that end a stream, by sample rate; see `ExportedModel.silence`.
      together: whether the recogniser gets all streams that have a chunk in one call, or each in a call of its own; see
        `ExportedModel.mixes_rows`.
    """

    def __init__(
        self,
        recognizer: sherpa_onnx.OnlineRecognizer,
        silence: Callable[[int], np.ndarray],
        together: bool = True,
    ) -> None:
        self._recognizer, self._silence, self._together = recognizer, silence, together
        self._open: set[ClientStream] = set()
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    def open(self, sample_rate: int) -> ClientStream:
        client = ClientStream(sample_rate, self._silence(sample_rate), self._work.set)
        self._open.add(client)
        return client

    def close(self, client: ClientStream) -> None:
        """Forgets it, heard out or not."""
        self._open.discard(client)

    async def run(self) -> None:
        """Decodes until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                batch = [client for client in self._open if client.has_work]
                if not batch:
                    self._work.clear()
                    await self._work.wait()
                    continue
                try:
                    progress = await loop.run_in_executor(self._thread, self._step, batch)
                except Exception:
                    logging.exception("a batch of %d clients failed", len(batch))
                    for client in batch:
                        client.fail()
                        self.close(client)
                    continue
                for client, done in zip(batch, progress, strict=True):
                    client.update(done)
        finally:
            self._thread.shutdown(wait=True)

    def _step(self, batch: Sequence[ClientStream]) -> list[Progress]:
        """In the thread: gives each stream a chunk, if there is one, and decodes all that have one."""
        recognizer = self._recognizer
        taken = [self._feed(client) for client in batch]
        ready = [client.stream for client in batch if recognizer.is_ready(client.stream)]
        for streams in [ready] if self._together and ready else [[stream] for stream in ready]:
            recognizer.decode_streams(streams)
        progress = []
        for client, samples in zip(batch, taken, strict=True):
            unfinished = recognizer.is_ready(client.stream)
            text = text_heard(recognizer, client.stream)
            final = client.ended and not unfinished
            progress.append(Progress(samples, Text(text, final), unfinished))
        return progress

    def _feed(self, client: ClientStream) -> int:
        """Samples that the stream was given: no more than it needs to be ready."""
        stream = client.stream = client.stream or self._recognizer.create_stream()
        taken = 0
        while client.blocks and not self._recognizer.is_ready(stream):
            block = client.blocks.popleft()
            if block is None:
                stream.input_finished()
                client.ended = True
            else:
                stream.accept_waveform(client.sample_rate, block)
                taken += len(block)
        return taken
