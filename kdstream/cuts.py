"""Which cuts there are: manifests, and what the transducer loss can take of them.

data.py makes batches of these cuts.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Protocol, Sequence

from lhotse import CutSet
from lhotse.cut import Cut

from kdstream.config import UserError
from kdstream.models.streaming import SUBSAMPLING_LOSS

FRAMES_PER_SECOND = 100
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, AssertionError, zlib.error)


def read_manifest(path: Path) -> CutSet:
    """A lazily read CutSet that turns what is wrong with the file into a UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; run prepare.sh, or see --manifest-dir, --*-parts and --*-cuts")
    return CutSet(_CheckedManifest(path))


class _CheckedManifest:
    """Iterates over a cut manifest afresh each time."""

    is_lazy = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Cut]:
        try:
            yield from CutSet.from_file(self.path) if self.path.suffix == ".json" else CutSet.from_jsonl_lazy(self.path)
        except UNREADABLE as error:
            raise UserError(f"{self.path}: damaged or not a manifest of cuts; run prepare.sh again") from error


def text_of(cut: Cut) -> str:
    """The cut's transcript, "" if it has none."""
    return (cut.supervisions[0].text or "").strip() if cut.supervisions else ""


class Encodes(Protocol):
    """What a selection needs of a tokenizer; data.py has it."""

    unk_id: int

    def encode(self, texts: Sequence[str]) -> List[List[int]]: ...


class Selection:
    """Decides which cuts the transducer loss can take, and keeps account of the others.

    The loss needs more output frames than tokens; icefall's count of them is
    ((feature frames - 7) // 2 + 1) // 2, and it keeps two in reserve.
    """

    def __init__(self, tokenizer: Encodes, min_seconds: float, max_seconds: float) -> None:
        self.tokenizer, self.min_seconds, self.max_seconds = tokenizer, min_seconds, max_seconds
        self.kept = 0
        self.seconds = 0.0
        self.with_unknown = 0
        self.left_out: Dict[str, List[str]] = {}
        self._left_out_ids: set = set()

    def __call__(self, cut: Cut) -> bool:
        tokens = self.tokenizer.encode([text_of(cut)])[0]
        reason = self._reason_against(cut, len(tokens))
        if reason is not None:
            self.left_out.setdefault(reason, []).append(cut.id)
            self._left_out_ids.add(cut.id)
            return False
        self.kept += 1
        self.seconds += cut.duration
        self.with_unknown += self.tokenizer.unk_id in tokens
        return True

    def was_kept(self, cut: Cut) -> bool:
        return cut.id not in self._left_out_ids

    def _reason_against(self, cut: Cut, num_tokens: int) -> Optional[str]:
        if not num_tokens:
            return "with an empty transcript"
        if cut.duration < self.min_seconds:
            return f"shorter than {self.min_seconds:g} s"
        if cut.duration > self.max_seconds:
            return f"longer than {self.max_seconds:g} s"
        num_frames = cut.num_frames if cut.has_features else round(cut.duration * FRAMES_PER_SECOND)
        output_frames = ((num_frames - SUBSAMPLING_LOSS) // 2 + 1) // 2
        return "too short for their tokens" if output_frames - 2 < num_tokens else None

    def log(self, what: str) -> None:
        """One line on what was kept and what was not.  Raises UserError if the texts are not the tokenizer's."""
        left_out = "; ".join(
            f"{len(ids)} {reason} ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
            for reason, ids in self.left_out.items()
        )
        logging.info(
            f"{what} cuts: {self.kept} kept ({self.seconds / 3600:.2f} h); left out: {left_out or 'none'}; "
            f"{self.with_unknown} have <unk> in their transcript"
        )
        if self.with_unknown > self.kept / 2:
            raise UserError(
                f"{what} cuts: {self.with_unknown} of {self.kept} transcripts have characters unknown to --bpe-model; "
                "is the case (upper, lower) that of its training text?"
            )
