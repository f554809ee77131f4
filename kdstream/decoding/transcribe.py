"""From audio to words with their times, in files or as it comes; transcribe.py is the script around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdstream.data.batch import Batch, Utterance, make_batch
from kdstream.data.features import compute_fbank
from kdstream.data.tokenizer import WORD_START, Tokenizer
from kdstream.decoding.audio import FbankStream, read_audio_file
from kdstream.decoding.search import Result, Search
from kdstream.decoding.stream import StreamingDecoder, decode_streams, decode_whole
from kdstream.errors import UserError
from kdstream.models.streaming import ChunkConfig
from kdstream.models.transducer import Transducer
from kdstream.units import ENCODER_FRAME_MS, FRAMES_PER_SECOND, SAMPLE_RATE

OUTPUT_FRAME_SECONDS = 2 * ENCODER_FRAME_MS / 1000

Watch = Callable[[str], None]


class Word(NamedTuple):
    """A word and when it was said, in seconds.

    start, end: of the output frames that emitted its first and its last token; a streaming model emits them while it
    hears the word, or shortly after.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Transcription:
    """What was said in `audio`."""

    audio: str
    seconds: float
    text: str
    words: list[Word]
    confidence: float | None

    def to_json(self) -> dict[str, Any]:
        words = [{"word": word.text, "start": word.start, "end": word.end} for word in self.words]
        return {
            "audio": self.audio,
            "seconds": round(self.seconds, 2),
            "text": self.text,
            "words": words,
            "confidence": self.confidence,
        }


class Transcriber:
    """A trained model that writes down what it hears: chunk by chunk, or whole utterances where it has no chunks.

    Args:
      model: in eval mode.
      chunk: None for full context.
      num_streams: files that are heard at once.
      max_seconds: of audio in a batch of whole files.
      watch: gets the partial text of the file that began first, whenever it may have grown; None: nobody looks.
    """

    def __init__(
        self,
        model: Transducer,
        tokenizer: Tokenizer,
        search: Search,
        chunk: ChunkConfig | None,
        num_streams: int,
        max_seconds: float,
        watch: Watch | None = None,
    ) -> None:
        self.model, self.tokenizer, self.search, self.chunk = model, tokenizer, search, chunk
        self.num_streams, self.max_seconds, self.watch = num_streams, max_seconds, watch
        self._pieces = tokenizer.tokens

    def files(self, paths: Sequence[Path], report: Callable[[Path, UserError], None]) -> Iterator[Transcription]:
        """Transcribes each file, in the order in which they end; what cannot be read goes to `report`."""
        seconds: dict[str, float] = {}

        def utterances() -> Iterator[tuple[str, Tensor]]:
            for path in paths:
                try:
                    samples = read_audio_file(path)
                    seconds[str(path)] = len(samples) / SAMPLE_RATE
                    self._check_length(path, seconds[str(path)])
                    yield str(path), compute_fbank(samples)
                except UserError as error:
                    report(path, error)

        for name, result in self._decode(utterances()):
            yield self._transcription(name, seconds[name], result)

    def live(self, blocks: Iterable[np.ndarray]) -> Transcription:
        """Transcribes blocks of 16 kHz samples as they come, until they end or the user interrupts.

        Raises UserError for a model that cannot stream.
        """
        if self.chunk is None:
            raise UserError("--microphone 1: the model hears whole utterances only; use a streaming one, or files")
        decoder, fbank, samples = StreamingDecoder(self.model, self.chunk, self.search, max_streams=1), FbankStream(), 0
        stream = decoder.open()
        try:
            for block in blocks:
                samples += len(block)
                stream.accept_features(fbank.accept(torch.from_numpy(block)))
                while decoder.step():
                    if self.watch is not None:
                        self.watch(self._text(stream.result))
        except KeyboardInterrupt:
            pass
        stream.accept_features(fbank.finish())
        stream.finish()
        while decoder.step():
            pass
        return self._transcription("microphone", samples / SAMPLE_RATE, stream.result)

    def _check_length(self, path: Path, seconds: float) -> None:
        if self.chunk is None and seconds > self.max_seconds:
            raise UserError(
                f"{path}: {seconds:.0f} s are more than --max-duration {self.max_seconds:g}, all that a model in full "
                "context hears at once; split the file, raise it, or use a streaming model"
            )

    def _decode(self, utterances: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Result]]:
        if self.chunk is None:
            for batch in _batches(utterances, self.max_seconds):
                results = decode_whole(self.model, batch.features, batch.feature_lens, None, self.search)
                yield from zip(batch.cut_ids, results, strict=True)
            return
        decoder = StreamingDecoder(self.model, self.chunk, self.search, self.num_streams)
        watch = None if self.watch is None else lambda name, result: self.watch(f"{name}: {self._text(result)}")
        yield from decode_streams(decoder, utterances, watch=watch)

    def _text(self, result: Result) -> str:
        return self.tokenizer.decode(result.tokens)

    def _transcription(self, audio: str, seconds: float, result: Result) -> Transcription:
        words = self._words(result)
        return Transcription(audio, seconds, " ".join(word.text for word in words), words, result.confidence)

    def _words(self, result: Result) -> list[Word]:
        groups: list[list[int]] = []  # places in the result of each word's tokens
        for place, token in enumerate(result.tokens):
            if not groups or self._pieces[token].startswith(WORD_START):
                groups.append([])
            groups[-1].append(place)
        words = []
        for places in groups:
            text = self.tokenizer.decode([result.tokens[place] for place in places]).strip()
            start, end = result.timestamps[places[0]], result.timestamps[places[-1]] + 1
            if text:
                words.append(Word(text, round(start * OUTPUT_FRAME_SECONDS, 2), round(end * OUTPUT_FRAME_SECONDS, 2)))
        return words


def _batches(utterances: Iterable[tuple[str, Tensor]], max_seconds: float) -> Iterator[Batch]:
    """Batches in the order of the utterances, of `max_seconds` at most with padding."""
    batch: list[Utterance] = []
    for name, features in utterances:
        longest = max(len(features), *(len(utterance.features) for utterance in batch), 0)
        if batch and longest * (len(batch) + 1) > max_seconds * FRAMES_PER_SECOND:
            yield make_batch(batch)
            batch = []
        batch.append(Utterance(name, "", features))
    if batch:
        yield make_batch(batch)
