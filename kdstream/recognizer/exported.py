"""An exported model in sherpa-onnx, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdstream.audio.files import read_sound
from kdstream.audio.samples import mono
from kdstream.endpoints import EndpointConfig
from kdstream.recognizer.base import Recognizer, Stream, check_settings
from kdstream.serving.runtime import SEARCH_SETTINGS, ExportedModel, Runtime, SegmentedStream, settings_of_search
from kdstream.transcription import Transcription


class ExportedRecognizer(Recognizer):
    """The model in these files.

    Args:
      num_threads: of onnxruntime.
      endpoints: where text is cut into segments.
      method, settings: a search of sherpa-onnx, and settings of it.
    Raises:
      UserError: another search or setting.
    """

    def __init__(
        self, model: ExportedModel, num_threads: int, endpoints: EndpointConfig, method: str, **settings: Any
    ) -> None:
        check_settings(method, settings, settings_of_search(method), SEARCH_SETTINGS)
        self._runtime = Runtime(model, num_threads, endpoints, method, **settings)

    def stream(self) -> Stream:
        return ExportedStream(self._runtime)

    def _transcribe_file(self, path: Path) -> Transcription:
        sound = read_sound(path)
        return self._decode(mono(sound.samples, path), sound.sample_rate, str(path))

    def _transcribe_samples(self, samples: np.ndarray, sample_rate: int) -> Transcription:
        return self._decode(samples, sample_rate, "")

    def _decode(self, samples: np.ndarray, sample_rate: int, audio: str) -> Transcription:
        stream = ExportedStream(self._runtime, audio)
        stream._accept(samples, sample_rate)
        return stream._finish(len(samples) / sample_rate)


class ExportedStream(Stream):
    """A stream of an ExportedRecognizer."""

    def __init__(self, runtime: Runtime, audio: str = "") -> None:
        self._stream = SegmentedStream(runtime)
        super().__init__(self._stream)
        self._model, self._audio = runtime.model, audio

    def _accept(self, samples: np.ndarray, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._stream.accept(samples, sample_rate)
        self._stream.decode()

    def _finish(self, seconds: float) -> Transcription:
        self._stream.accept(self._model.silence(self._sample_rate), self._sample_rate)
        self._stream.finish()
        self._stream.decode()
        return self._stream.end(self._audio, seconds)
