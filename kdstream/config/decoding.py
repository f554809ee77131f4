"""How a trained model is decoded, as frozen dataclasses; one field is one flag.

Each command takes the sections that it reads: all of them are `DecodeConfig`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any

from kdstream.config.flags import Section, flag, warn_of_unread
from kdstream.config.registry import Registry
from kdstream.errors import UserError, option
from kdstream.words import SCORE_BY

ENGINES = ("auto", "torch", "onnxruntime")

# kdstream.decoding.settings, which fills the table, has torch in it; what a parser must know stands here.
SEARCHES: Registry[Any] = Registry(
    "decoding-method",
    lambda: SearchConfig,
    filled_by="kdstream.decoding.settings",
    own={
        "greedy_search": ("max_sym_per_frame", "blank_penalty"),
        "modified_beam_search": (
            "beam_size",
            "blank_penalty",
            "hotwords_file",
            "hotwords_score",
            "lm_exp_dir",
            "lm_scale_decode",
            "lodr_scale",
            "nbest",
        ),  # fmt: skip
        "fast_beam_search": ("beam", "max_contexts", "max_states"),
        "ctc_greedy_search": (),
        "ctc_prefix_beam_search": ("beam_size",),
    },
)


@dataclass(frozen=True)
class WeightsConfig(Section):
    """Which checkpoint to decode with."""

    exp_dir: str = flag("exp", "Experiment directory that train.py wrote.")
    epoch: int = flag(0, "Decode with epoch-N.pt (0: the last one there is).", minimum=0)
    iter: int = flag(0, "Decode with checkpoint-N.pt instead of an epoch (0: off).", minimum=0)
    avg: int = flag(1, "Checkpoints to average, the given one and those before it.", minimum=1)
    use_averaged_model: bool = flag(True, "Average over all batches of these checkpoints, not over the files alone.")
    checkpoint: str = flag(
        "", "Decode with the weights in this file, e.g. EXP_DIR/pretrained.pt, instead of those of an epoch."
    )


@dataclass(frozen=True)
class ContextConfig(Section):
    """How much of the speech the encoder hears at once."""

    chunk_size: int | None = flag(
        None, "Chunk in 20 ms encoder frames (-1: full context).", unset="the first that config.json names"
    )
    left_context_frames: int | None = flag(
        None, "Left context in 20 ms encoder frames (-1: unlimited).", unset="the first in config.json that fits"
    )
    right_context_frames: int | None = flag(
        None,
        "Right context in 20 ms encoder frames, by which words come later.",
        unset="the first in config.json that fits",
    )


@dataclass(frozen=True)
class SearchConfig(Section):
    """How words are searched for."""

    decoding_method: str = flag(
        "greedy_search",
        "Search; fast_beam_search is k2's and needs it, those of CTC need a model with --use-ctc 1.",
        choices=SEARCHES,
    )
    max_sym_per_frame: int = flag(1, "Symbols that greedy_search may emit in one 40 ms frame.", minimum=1)
    beam_size: int = flag(4, "Paths that modified_beam_search and ctc_prefix_beam_search keep.", minimum=1)
    blank_penalty: float = flag(
        0.0, "What greedy_search and modified_beam_search take from blank's logit; more is then said.", minimum=0
    )
    hotwords_file: str = flag(
        "", "Phrases that modified_beam_search prefers: one a line, perhaps with a score, e.g. NEW YORK :2.5."
    )
    hotwords_score: float = flag(1.5, "What each token of a hotword without a score of its own adds.")
    lm_exp_dir: str = flag("", "Directory of kdstream train-lm; modified_beam_search asks its language model too.")
    lm_scale_decode: float = flag(0.3, "Scale of the language model's log probabilities.", minimum=0)
    lodr_scale: float = flag(0.0, "Scale, below 0, of the bigram beside the language model (LODR; 0: off).", maximum=0)
    beam: float = flag(20.0, "fast_beam_search keeps what scores at most so much less than the best path.", above=0)
    max_contexts: int = flag(8, "Predictor contexts that fast_beam_search keeps per frame.", minimum=1)
    max_states: int = flag(64, "States that fast_beam_search keeps per frame.", minimum=1)


@dataclass(frozen=True)
class StreamsConfig(Section):
    """How streams are computed."""

    num_decode_streams: int = flag(64, "Streams that streaming_decode.py decodes at once.", minimum=1)
    engine: str = flag(
        "auto",
        "What runs the encoder chunk by chunk: torch; onnxruntime, which is faster for one stream on a CPU; or (auto) "
        "the faster one of those that are installed.",
        choices=ENGINES,
    )


@dataclass(frozen=True)
class DeviceConfig(Section):
    """Where it is computed."""

    device: str = flag("", "Device, e.g. cpu or cuda:0 (empty: a GPU if there is one).")


@dataclass(frozen=True)
class ScoringConfig(Section):
    """How it is scored, and where the score goes."""

    nbest: int = flag(
        0, "Write so many of modified_beam_search's paths of each utterance to nbest-*.jsonl (0: none).", minimum=0
    )
    alignments: tuple[str, ...] = flag(
        (),
        "Reference alignments to measure the delay of words against: what kdstream align wrote, other Lhotse "
        "manifests with word alignments, LibriSpeech's *.alignment.txt, or directories of these last.",
    )
    score_by: str = flag(
        "auto",
        "What counts as a word: what blanks part, every character, or (auto) what blanks part and in it each character "
        "of a script without blanks, such as Chinese, Japanese and Thai.",
        choices=SCORE_BY,
    )
    system: str = flag("", "Name of the system in result tables (empty: that of the experiment directory).")
    results_json: str = flag("", "File to add the result records to (empty: EXP_DIR/results.json).")


@dataclass(frozen=True)
class DecodeConfig(ScoringConfig, DeviceConfig, StreamsConfig, SearchConfig, ContextConfig, WeightsConfig):
    """Which checkpoint to decode with, how, and where the score goes."""

    def check_used(self, own: Collection[str]) -> None:
        """Raises UserError for hotwords or a language model that a search with the settings `own` would not look at."""
        for name, what in (
            ("hotwords_file", "hotwords"),
            ("lm_exp_dir", "language model"),
            ("lodr_scale", "language model"),
            ("nbest", "n-best list"),
        ):
            if getattr(self, name) and name not in own:
                raise UserError(
                    f"{self.decoding_method} takes no {what}",
                    flag=option(name, getattr(self, name)),
                    fix="use --decoding-method modified_beam_search",
                )

    def warn_of_others(self, own: Collection[str]) -> None:
        """Logs which settings of other searches were given in vain, beside a search with the settings `own`."""
        of_others = set(chain.from_iterable(SEARCHES.settings.values())).difference(own)
        warn_of_unread(self, of_others, f"in {self.decoding_method}")


DECODE_SECTIONS: tuple[type[Section], ...] = DecodeConfig.__bases__[::-1]
