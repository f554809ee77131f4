"""Settings of labels for speech without transcripts: who writes them, how they are spelt, and which are kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdstream.config.flags import Section, flag, not_at_default
from kdstream.config.registry import Registry
from kdstream.errors import UserError, option

CASES = ("keep", "upper", "lower")
WINDOW_SECONDS = 30.0  # that Whisper hears at once

# The module that fills this table has torch in it; what a parser must know stands here.
LABELLERS: Registry[Any] = Registry(
    "labeller",
    lambda: LabelConfig,
    filled_by="kdstream.corpus.labellers",
    own={
        "teacher": (),
        "faster-whisper": (
            "model", "language", "compute_type", "batch_size", "max_segment_seconds", "min_silence_seconds",
            "spell_numbers", "case", "keep_punctuation", "spellings", "max_compression_ratio", "max_no_speech",
            "max_repeats", "min_chars_per_second", "max_chars_per_second",
        ),
    },
)  # fmt: skip


@dataclass(frozen=True)
class LabelConfig(Section):
    """Who writes labels, and which of them are kept."""

    labeller: str = flag(
        "teacher",
        "Who writes the labels: the model in --exp-dir, or a Whisper model in CTranslate2's format (faster-whisper).",
        choices=LABELLERS,
    )
    min_confidence: float | None = flag(
        None,
        "Drop labels of less confidence.  Of Whisper it is the exponential of the average log probability: 0.37 is -1.",
        minimum=0,
        maximum=1,
        unset="0.8; 0.37 for faster-whisper",
    )
    model: str = flag("", "Local directory of the Whisper model: model.bin, config.json, tokenizer.json, vocabulary.")
    language: str = flag("en", "Language that is spoken, as Whisper writes it, e.g. en or de.")
    compute_type: str = flag("default", "Numbers that CTranslate2 computes with, e.g. int8 or float16.")
    batch_size: int = flag(8, "Cuts that Whisper hears at once.", minimum=1)
    max_segment_seconds: float = flag(
        20.0,
        f"Longer cuts are cut in silences, into ones of this length at most.  Whisper hears {WINDOW_SECONDS:g} s.",
        minimum=1,
    )
    min_silence_seconds: float = flag(0.5, "A silence of this length ends a cut.", minimum=0.1)
    spell_numbers: bool = flag(True, "Have Whisper write numbers and currencies in words: it is offered no digits.")
    case: str = flag("keep", "Case of the labels, where --bpe-model has letters of both.", choices=CASES)
    keep_punctuation: bool = flag(False, "Keep the punctuation that --bpe-model can spell; else apostrophes alone.")
    spellings: str = flag(
        "", "File of words to replace, e.g. lines MR MISTER and OKAY O K: a word and what stands for it."
    )
    max_compression_ratio: float = flag(2.4, "Drop labels that zlib shortens by more: they repeat themselves.", above=0)
    max_no_speech: float = flag(0.6, "Drop cuts that are without speech by a higher probability.", minimum=0)
    max_repeats: int = flag(3, "Drop labels that say a word, or words, more often in a row.", minimum=1)
    min_chars_per_second: float = flag(2.0, "Drop labels with fewer letters for their length.", minimum=0)
    max_chars_per_second: float = flag(25.0, "Drop labels with more letters for their length.", above=0)

    def check_used(self) -> None:
        """Raises UserError for a setting that another labeller alone would read."""
        for labeller, names in LABELLERS.settings.items():
            if labeller != self.labeller:
                self.refuse_unread(self, names, fix=f"add {option('labeller', labeller)}, or drop it")

    def refuse_unread(self, section: Section, names: Collection[str], fix: str = "drop it") -> None:
        """Raises UserError for one of the settings `names`, not read by this labeller, that is not at its default."""
        for typed in not_at_default(section, names):
            raise UserError(f"is not read by {option('labeller', self.labeller)}", flag=typed, fix=fix)
