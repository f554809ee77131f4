"""Which labels are kept: one rule a row, and the account of what the rules dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdstream.config.flags import to_dict
from kdstream.config.labels import LABELLERS, LabelConfig
from kdstream.corpus.pseudo_labels import Hypothesis
from kdstream.errors import option
from kdstream.evaluation.tables import markdown_table
from kdstream.files import write_text


def most_repeats(words: Sequence[str]) -> int:
    """How often in a row a word, or several words, are said at most: 3 in "a b a b a b c"."""
    most = min(len(words), 1)
    for size in range(1, len(words) // 2 + 1):
        same = 0  # words in a row that are as those `size` before them
        for place in range(size, len(words)):
            same = same + 1 if words[place] == words[place - size] else 0
            most = max(most, same // size + 1)
    return most


def chars_per_second(hypothesis: Hypothesis) -> float:
    return len("".join(hypothesis.text.split())) / hypothesis.cut.duration


class Rule(NamedTuple):
    """A label is dropped if its value is above the setting, or below it where the setting is a minimum.

    what: for the table.  setting: of LabelConfig; "" for a bound of 0.
    """

    what: str
    setting: str
    value: Callable[[Hypothesis], float]

    def drops(self, hypothesis: Hypothesis, config: LabelConfig) -> bool:
        value = self.value(hypothesis)
        if self.setting.startswith("min_"):
            return value < getattr(config, self.setting)
        return value > (getattr(config, self.setting) if self.setting else 0)


RULES = (
    Rule("no text", "", lambda hypothesis: float(hypothesis.confidence is None)),
    Rule("letters that no token spells", "", lambda hypothesis: len(hypothesis.unknown)),
    Rule("confidence", "min_confidence", lambda hypothesis: hypothesis.confidence or 0.0),
    Rule("compression ratio", "max_compression_ratio", lambda hypothesis: hypothesis.compression_ratio),
    Rule("probability of no speech", "max_no_speech", lambda hypothesis: hypothesis.no_speech),
    Rule("repeated words", "max_repeats", lambda hypothesis: most_repeats(hypothesis.transcript.hyp)),
    Rule("few letters a second", "min_chars_per_second", chars_per_second),
    Rule("many letters a second", "max_chars_per_second", chars_per_second),
)


class Account:
    """What was kept, and what each rule dropped: a label by the first rule that it breaks, in the order of RULES.

    hours: of the cuts that were given; what is in none of the hypotheses' cuts is silence.
    kept: in the order of `hypotheses`.
    """

    def __init__(self, hypotheses: Sequence[Hypothesis], config: LabelConfig, hours: float) -> None:
        self.hypotheses, self.config = hypotheses, config
        self.silent_hours = hours - sum(hypothesis.cut.duration for hypothesis in hypotheses) / 3600
        settings = ("", "min_confidence", *LABELLERS.settings[config.labeller])
        self._rules = [rule for rule in RULES if rule.setting in settings]
        self._broken = [
            next((rule for rule in self._rules if rule.drops(hypothesis, config)), None) for hypothesis in hypotheses
        ]
        self.kept = [hypothesis for hypothesis, rule in zip(hypotheses, self._broken, strict=True) if rule is None]

    def table(self) -> str:
        """In Markdown."""
        rows = [
            (what, option(setting, f"{getattr(self.config, setting):g}") if setting else "", *counts)
            for what, setting, *counts in self._counts()
        ]
        silence = ("silence between them", "", None, self.silent_hours)
        header = ("dropped for", "flag", "cuts", "hours")
        return markdown_table(header, [*rows, silence, ("kept", "", *self._count(None))])

    def write(self, path: Path) -> None:
        """The table as JSON, and of each dropped cut the rule, the value that breaks it, and the text."""
        dropped = [
            {"id": hypothesis.cut.id, "rule": rule.what, "value": rule.value(hypothesis), "text": hypothesis.text}
            for hypothesis, rule in zip(self.hypotheses, self._broken, strict=True)
            if rule is not None
        ]
        account = {
            "settings": to_dict(self.config),
            "kept": dict(zip(("cuts", "hours"), self._count(None), strict=True)),
            "silent_hours": self.silent_hours,
            "dropped": [dict(zip(("rule", "setting", "cuts", "hours"), row, strict=True)) for row in self._counts()],
            "unknown_letters": dict(Counter("".join(hypothesis.unknown for hypothesis in self.hypotheses))),
            "dropped_cuts": dropped,
        }
        write_text(path, json.dumps(account, ensure_ascii=False, indent=1) + "\n")

    def _counts(self) -> list[tuple[str, str, int, float]]:
        return [(rule.what, rule.setting, *self._count(rule)) for rule in self._rules]

    def _count(self, wanted: Rule | None) -> tuple[int, float]:
        """The cuts that a rule dropped, or that were kept, and their hours."""
        seconds = [h.cut.duration for h, rule in zip(self.hypotheses, self._broken, strict=True) if rule is wanted]
        return len(seconds), sum(seconds) / 3600
