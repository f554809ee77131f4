"""A trained model in torch, from its exp-dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdstream.checkpoints.trained import load_trained
from kdstream.config.decoding import SEARCHES, DecodeConfig, SearchConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import flags_of, warn_of_unread, with_settings
from kdstream.data.resampling import ResamplingStream, resample
from kdstream.decoding.settings import choose_chunk, choose_search, settings_of_search
from kdstream.decoding.transcribe import Transcriber
from kdstream.devices import to_device
from kdstream.endpoints import EndpointConfig
from kdstream.errors import UserError
from kdstream.recognizer.base import Recognizer, Stream, check_settings
from kdstream.transcription import Transcription


class TrainedRecognizer(Recognizer):
    """The model that `decode` names.

    Args:
      search_settings: of its search.
      endpoints: where text is cut into segments.
    Raises:
      UserError: no such model, tokenizer, search or setting of the search.
    """

    def __init__(self, decode: DecodeConfig, search_settings: dict[str, Any], endpoints: EndpointConfig) -> None:
        method = decode.decoding_method
        of_searches = {item.name for item in flags_of(SearchConfig)}
        known = [name for name in settings_of_search(method) if name in of_searches]
        check_settings(method, search_settings, known, SEARCHES.settings)
        decode = with_settings(decode, **search_settings)
        config = ExperimentConfig.load(decode.exp_dir)
        chunk = choose_chunk(config.model, decode)
        if chunk is None:
            warn_of_unread(decode, ["engine"], "in full context")
        trained = load_trained(config, decode)
        self._transcriber = Transcriber(
            to_device(trained.model, decode.device),
            trained.tokenizer,
            choose_search(decode).for_tokens(trained.tokenizer),
            chunk,
            num_streams=1,
            max_seconds=config.data.max_duration,
            engine=decode.engine,
            endpoints=endpoints,
        )

    def stream(self) -> Stream:
        return TrainedStream(self._transcriber)

    def _transcribe_file(self, path: Path) -> Transcription:
        def refuse(path: Path, error: UserError) -> None:
            raise error

        (transcription,) = self._transcriber.files([path], refuse)
        return transcription

    def _transcribe_samples(self, samples: np.ndarray, sample_rate: int) -> Transcription:
        return self._transcriber.samples(resample(torch.from_numpy(samples), sample_rate))


class TrainedStream(Stream):
    """A stream of a TrainedRecognizer."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._stream = transcriber.open()
        super().__init__(self._stream)
        self._resampling: ResamplingStream | None = None

    def _accept(self, samples: np.ndarray, sample_rate: int) -> None:
        if self._resampling is None:
            self._resampling = ResamplingStream(sample_rate)
        self._stream.accept(self._resampling.accept(torch.from_numpy(samples)))
        while self._stream.step():
            pass

    def _finish(self, seconds: float) -> Transcription:
        assert self._resampling is not None  # there were samples
        self._stream.accept(self._resampling.finish())
        return self._stream.finish()
