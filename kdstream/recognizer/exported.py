"""An exported model in sherpa-onnx, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sherpa_onnx

from kdstream.audio.files import read_sound
from kdstream.audio.samples import mono
from kdstream.endpoints import EndpointConfig, Segmenter, Tokens
from kdstream.recognizer.base import Recognizer, Stream, check_settings
from kdstream.serving.engine import ExportedModel, load_recognizer, settings_of, text_heard
from kdstream.transcription import OUTPUT_FRAME_SECONDS, Segment, Transcription
from kdstream.words import spell


class ExportedRecognizer(Recognizer):
    """The model in these files.

    Args:
      num_threads: of onnxruntime.
      method, settings: a search of sherpa-onnx, and settings of it.
    Raises:
      UserError: another search or setting.
    """

    def __init__(self, model: ExportedModel, num_threads: int, method: str, **settings: Any) -> None:
        check_settings(method, settings, settings_of(method))
        self._model = model
        self._runtime = load_recognizer(model, num_threads, method, **settings)

    def stream(self) -> Stream:
        return ExportedStream(self._model, self._runtime)

    def _transcribe_file(self, path: Path) -> Transcription:
        sound = read_sound(path)
        return self._decode(mono(sound.samples, path), sound.sample_rate, str(path))

    def _transcribe_samples(self, samples: np.ndarray, sample_rate: int) -> Transcription:
        return self._decode(samples, sample_rate, "")

    def _decode(self, samples: np.ndarray, sample_rate: int, audio: str) -> Transcription:
        stream = ExportedStream(self._model, self._runtime, audio)
        stream._accept(samples, sample_rate)
        return stream._finish(len(samples) / sample_rate)


class ExportedStream(Stream):
    """A stream of an ExportedRecognizer."""

    def __init__(self, model: ExportedModel, runtime: sherpa_onnx.OnlineRecognizer, audio: str = "") -> None:
        super().__init__()
        self._model, self._runtime, self._audio = model, runtime, audio
        self._stream = runtime.create_stream()

    @property
    def _text(self) -> str:
        return text_heard(self._runtime, self._stream)

    @property
    def _growing(self) -> str:
        return self._text

    @property
    def _segments(self) -> list[Segment]:
        return []

    def _accept(self, samples: np.ndarray, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._stream.accept_waveform(sample_rate, samples)
        while self._runtime.is_ready(self._stream):
            self._runtime.decode_stream(self._stream)

    def _finish(self, seconds: float) -> Transcription:
        self._accept(self._model.silence(self._sample_rate), self._sample_rate)
        self._stream.input_finished()
        while self._runtime.is_ready(self._stream):
            self._runtime.decode_stream(self._stream)
        frames = [round(seconds / OUTPUT_FRAME_SECONDS) for seconds in self._runtime.timestamps(self._stream)]
        tokens = Tokens(self._runtime.tokens(self._stream), frames, self._runtime.ys_probs(self._stream))
        return Segmenter(EndpointConfig(enable_endpoint=False), spell).end(self._audio, seconds, tokens)
