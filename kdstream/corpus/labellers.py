"""The table of labellers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lhotse.cut.data import DataCut

from kdstream.checkpoints.trained import load_trained
from kdstream.config.decoding import DecodeConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.labels import LABELLERS, LabelConfig
from kdstream.config.sections import DataConfig
from kdstream.corpus.pseudo_labels import Hypothesis, transcribe_cuts
from kdstream.corpus.whisper import FasterWhisper
from kdstream.data.module import AsrDataModule
from kdstream.decoding.settings import choose_chunk, choose_search
from kdstream.devices import to_device


class OurTeacher:
    """A model that train.py has trained.  It hears utterances, from stored features where there are any."""

    hears_audio = False
    min_confidence = 0.8

    def __init__(self, config: LabelConfig, decode: DecodeConfig, data_of: Callable[[DataConfig], DataConfig]) -> None:
        experiment = ExperimentConfig.load(decode.exp_dir)
        self.config, self.decode = replace(experiment, data=data_of(experiment.data)), decode

    def label(self, cuts: Sequence[DataCut], journal: Path) -> list[Hypothesis]:
        """The hypotheses of all cuts, longest first; it keeps no journal."""
        data = AsrDataModule(self.config.data, self.config.train.seed)
        search = choose_search(self.decode).for_tokens(data.tokenizer)
        model = to_device(load_trained(self.config, self.decode).model, self.decode.device)
        return transcribe_cuts(model, data, choose_chunk(self.config.model, self.decode), search, cuts)


# A labeller is built of the settings, of how to decode, and of a function that puts typed flags into data settings.  It
# has `label(cuts, journal)`, `hears_audio`, whether it needs recordings, and its own default of `min_confidence`.
LABELLERS.add("teacher", OurTeacher)
LABELLERS.add("faster-whisper", FasterWhisper)
