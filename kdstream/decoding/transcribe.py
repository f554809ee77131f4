"""From audio to words with their times, in files or as it comes; transcribe.py is the script around it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstream.audio.files import LongSound
from kdstream.config.flags import flags_of, warn_of_unread
from kdstream.data.batch import Batch, Utterance, filled, make_batch
from kdstream.data.checks import check_length
from kdstream.data.features import compute_fbank
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.audio import MICROPHONE, FbankStream, find_long_audio, read_audio_file, read_features
from kdstream.decoding.chunk_step import PatientStep, choose_engine, chunk_step
from kdstream.decoding.search import Result, Search
from kdstream.decoding.stream import Stream, StreamingDecoder, decode_whole, run_streams
from kdstream.endpoints import EndpointConfig, Segmenter
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.transcription import Segment, Transcription
from kdstream.units import FRAMES_PER_SECOND, SAMPLE_RATE

LOOKING = 0.1  # the part of the time that partial texts may take


class Transcriber:
    """Transcribes with a trained model: chunk by chunk, or whole utterances where there is no chunk.

    Args:
      model: in eval mode.
      chunk: None for full context.
      num_streams: files that are decoded at once, chunk by chunk.
      max_seconds: of audio in a batch of whole files.
      engine: of the encoder, chunk by chunk; see `choose_engine`.
      on_partial: is called with the growing segment of the file that began first, when it may have grown and the last
        call is so long ago that all of them take less than LOOKING of the time.
      endpoints: where the text is cut into segments, chunk by chunk.
      on_segment: is called with the number, from 0 on, and the segment of live sound that is finished, and again where
        its last word is completed.
    """

    def __init__(
        self,
        model: Transducer,
        tokenizer: Tokenizer,
        search: Search,
        chunk: ChunkConfig | None,
        num_streams: int,
        max_seconds: float,
        engine: str = "auto",
        on_partial: Callable[[str], None] | None = None,
        endpoints: EndpointConfig = EndpointConfig(),  # noqa: B008  # it is frozen
        on_segment: Callable[[int, Segment], None] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.search, self.chunk = model, tokenizer, search, chunk
        self.num_streams, self.max_seconds, self.on_partial = num_streams, max_seconds, on_partial
        self.endpoints, self.on_segment = endpoints, on_segment
        self.encode: PatientStep | None = None
        if chunk is None:
            warn_of_unread(endpoints, [item.name for item in flags_of(EndpointConfig)], "in full context")
        else:
            engine = choose_engine(engine, model, num_streams)
            self.encode = PatientStep(chunk_step(model, chunk), lambda: chunk_step(model, chunk, engine))

    def files(
        self,
        paths: Sequence[Path],
        report: Callable[[Path, UserError], None],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Iterator[Transcription]:
        """Transcribes each file, in the order in which they end.

        Args:
          report: gets errors of files that cannot be read, be it after their beginning was decoded.
          interrupted: asked between two steps; once it says so, those that have begun end where they are.
        """
        seconds: dict[str, float] = {}  # of each file, but those that broke while they were decoded

        def pieces(path: Path, sound: LongSound) -> Iterator[Tensor]:
            try:
                yield from read_features(sound)
            except UserError as error:
                seconds.pop(str(path), None)  # a file may be named twice
                report(path, error)

        def utterances() -> Iterator[tuple[str, Tensor | Iterator[Tensor]]]:
            for path in paths:
                try:
                    if self.chunk is not None and (sound := find_long_audio(path)):
                        seconds[str(path)] = sound.seconds
                        yield str(path), pieces(path, sound)
                        continue
                    samples = read_audio_file(path)
                    seconds[str(path)] = len(samples) / SAMPLE_RATE
                    self._check_length(path, seconds[str(path)])
                    yield str(path), compute_fbank(samples)
                except UserError as error:
                    report(path, error)

        for name, segmenter, result in self._decode(utterances(), interrupted):
            if name in seconds:
                yield segmenter.end(name, seconds[name], result.as_tokens())

    def samples(self, samples: Tensor) -> Transcription:
        """Transcribes samples (S,) at 16 kHz, at least 160 of them, as `files` transcribes a file.

        Raises UserError for more than a model in full context decodes at once.
        """
        seconds = len(samples) / SAMPLE_RATE
        self._check_length("the samples", seconds)
        ((_, segmenter, result),) = self._decode(iter([("", compute_fbank(samples))]))
        return segmenter.end("", seconds, result.as_tokens())

    def open(self, flag: str = "") -> LiveStream:
        """Speech that comes in pieces.  Raises UserError, which names `flag`, for a model that cannot stream."""
        if self.chunk is None or self.encode is None:
            raise UserError("the model hears whole utterances only", flag=flag, fix="use a streaming one, or files")
        self.encode.hurry()  # now, as nobody waits yet
        decoder = StreamingDecoder(self.model, self.chunk, self.search, 1, self.encode, self._segmenter)
        return LiveStream(decoder)

    def live(self, blocks: Iterable[np.ndarray], audio: str = "microphone", flag: str = MICROPHONE) -> Transcription:
        """Transcribes blocks (S,) of 16 kHz samples as they come, until they end or the user presses Ctrl-C.

        Ctrl-C takes effect between two blocks, as a step must not be torn; a second one ends the program.

        Args:
          audio: what the transcription calls it.
          flag: that asked for it.
        Raises:
          UserError: the model cannot stream.
        """
        stream = self.open(flag)
        show = self._when_cheap(lambda: stream.growing)
        with interruption() as interrupted:
            for block in blocks:
                stream.accept(torch.from_numpy(block))
                while stream.step():
                    show()
                    if self.on_segment is not None:
                        for number, segment in stream.changed().items():
                            self.on_segment(number, segment)
                if interrupted.is_set():
                    break
            return stream.finish(audio)

    def _check_length(self, path: Path | str, seconds: float) -> None:
        if self.chunk is None:
            check_length(str(path), seconds, self.max_seconds, "use a streaming model")

    def _decode(
        self, utterances: Iterator[tuple[str, Any]], interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[str, Segmenter, Result]]:
        """Decodes features (T, 80), or where there is a chunk also pieces of such.

        Returns:
          Of each its name, its finished segments, and what was said after them.
        """
        if self.chunk is None:
            for batch in _batches(utterances, self.max_seconds):
                if interrupted():
                    return
                results = decode_whole(self.model, batch.features, batch.feature_lens, None, self.search)
                for name, result in zip(batch.cut_ids, results, strict=True):
                    yield name, self._segmenter(), result
            return
        decoder = StreamingDecoder(self.model, self.chunk, self.search, self.num_streams, self.encode, self._segmenter)
        show = self._when_cheap(lambda name, stream: f"{name}: {growing(stream)}")
        for name, stream in run_streams(decoder, utterances, on_partial=show, interrupted=interrupted):
            yield name, segmenter_of(stream), stream.result

    def _segmenter(self) -> Segmenter:
        return Segmenter(self.endpoints, self.tokenizer.letters)

    def _when_cheap(self, partial: Callable[..., str]) -> Callable[..., None]:
        """Gives `partial`'s text to `on_partial`, but only while this takes less than a part of the time.

        A text is made of all tokens of a segment, and a segment may be long where no endpoint ends it.
        """
        on_partial, next_look = self.on_partial, 0.0

        def look(*args: Any) -> None:
            nonlocal next_look
            begin = perf_counter()
            if on_partial is not None and begin >= next_look:
                on_partial(partial(*args))
                end = perf_counter()
                next_look = end + (end - begin) / LOOKING

        return look


class LiveStream:
    """Speech that comes in pieces, at 16 kHz.  `Transcriber.open` makes it."""

    def __init__(self, decoder: StreamingDecoder) -> None:
        self._decoder = decoder
        self._stream = decoder.open()
        self._fbank = FbankStream()
        self._samples = 0

    def accept(self, samples: Tensor) -> None:
        """Takes the next (S,) samples; `step` decodes them."""
        self._samples += len(samples)
        self._stream.accept_features(self._fbank.accept(samples))

    def step(self) -> bool:
        """Decodes a chunk; False if there is no whole one."""
        return bool(self._decoder.step())

    @property
    def text(self) -> str:
        """What has been heard so far."""
        return segmenter_of(self._stream).text(self._stream.result.as_tokens())

    @property
    def growing(self) -> str:
        """What has been heard since the last endpoint."""
        return growing(self._stream)

    @property
    def segments(self) -> list[Segment]:
        """The finished segments so far."""
        return segmenter_of(self._stream).segments

    def changed(self) -> dict[int, Segment]:
        """See `Segmenter.changed`."""
        return segmenter_of(self._stream).changed()

    def finish(self, audio: str = "") -> Transcription:
        """Decodes the rest, and returns everything that was said in `audio`."""
        self._stream.accept_features(self._fbank.finish())
        self._stream.finish()
        while self.step():
            pass
        return segmenter_of(self._stream).end(audio, self._samples / SAMPLE_RATE, self._stream.result.as_tokens())


def segmenter_of(stream: Stream) -> Segmenter:
    assert stream.segmenter is not None  # a Transcriber's decoder gives each stream one
    return stream.segmenter


def growing(stream: Stream) -> str:
    """The text of a stream since its last endpoint."""
    return segmenter_of(stream).growing(stream.result.as_tokens())


@contextmanager
def interruption() -> Iterator[Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as ever.  Elsewhere than in the main thread, to
    which alone Ctrl-C comes, nobody sets it."""
    interrupted = Event()
    if current_thread() is not main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _batches(utterances: Iterable[tuple[str, Tensor]], max_seconds: float) -> Iterator[Batch]:
    """Batches in the order of the utterances, of `max_seconds` at most with padding."""
    heard = (Utterance(name, "", features) for name, features in utterances)
    return map(make_batch, filled(heard, max_seconds * FRAMES_PER_SECOND, lambda each: len(each.features)))
