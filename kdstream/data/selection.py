"""Which cuts of a manifest training takes.  The first training on a manifest looks at every cut, the others do not.

`Selection` decides which cuts the loss can take, and says which it cannot.  `select` makes the selection of a manifest,
and keeps it beside the manifest as NAME.selection.npz.  It is read from there as long as manifest, tokenizer and
settings are the same: to look at a million cuts takes most of a minute.
"""

from __future__ import annotations

import gc
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from tqdm import tqdm

from kdstream.data.checks import TRIM, check_data, frames_of, text_fault
from kdstream.data.cuts import DistinctIds, iterate, read_manifest, text_of, without_text
from kdstream.data.shar import find_shards
from kdstream.data.tokenizer import BLANK, BLANK_ID, UNKNOWN_FIX, Tokenizer, UnknownLetters
from kdstream.errors import UserError
from kdstream.files import replacing, sha256_of
from kdstream.models.streaming import output_lens

TOGETHER = 1000  # texts that are encoded in one call: alone, each takes ten times as long
RULES = 3  # raise it when other cuts are selected than before: what was kept is then ignored
SUFFIX = ".selection.npz"
_ACCOUNT = ("kept", "seconds", "longest", "misplaced", "left_out", "unknown")


@dataclass(frozen=True)
class Rules:
    """What a selection depends on, beside manifest and tokenizer.

    min_seconds, max_seconds: shorter and longer cuts are left out.
    from_audio: whether features are computed though some are stored.
    needs_text: whether a cut without a text is refused, and not left out; None where nobody reads texts.
    """

    min_seconds: float
    max_seconds: float
    from_audio: bool
    needs_text: bool | None = False


class Selection:
    """Decides which cuts the transducer loss can take, and keeps account of the others.

    The loss needs more output frames than tokens; icefall keeps two in reserve.

    longest: id and seconds of the longest cut that is kept.
    misplaced: cuts whose text is not what is said in them.
    left_out: ids of other cuts, by reason.
    """

    def __init__(self, tokenizer: Tokenizer, rules: Rules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self.kept = 0
        self.seconds = 0.0
        self.longest = ("", 0.0)
        self.unknown = UnknownLetters(tokenizer)
        self.misplaced: list[str] = []
        self.left_out: dict[str, list[str]] = {}

    def judge(self, cuts: Iterable[Cut]) -> Iterator[tuple[Cut, bool]]:
        """Each cut with whether the loss can take it."""
        source = iter(cuts) if self.rules.needs_text is not None else map(without_text, cuts)
        while some := list(islice(source, TOGETHER)):
            for cut, tokens in zip(some, self.tokenizer.encode(list(map(text_of, some))), strict=True):
                yield cut, self._takes(cut, tokens)

    def _takes(self, cut: Cut, tokens: Sequence[int]) -> bool:
        reason = self._reason_against(cut, tokens)
        if reason is not None:
            self.left_out.setdefault(reason, []).append(cut.id)
            return False
        self.kept += 1
        self.seconds += cut.duration
        self.longest = max(self.longest, (cut.id, cut.duration), key=lambda longest: longest[1])
        self.unknown.add(text_of(cut), tokens)
        return True

    def _reason_against(self, cut: Cut, tokens: Sequence[int]) -> str | None:
        misplaced = text_fault(cut)
        if misplaced is not None:
            self.misplaced.append(cut.id)
            return misplaced.reason
        if not tokens and self.rules.needs_text is not None:
            return "with an empty transcript"
        if BLANK_ID in tokens or BLANK in text_of(cut):  # whose case the tokens may change
            return f"with {BLANK} in their transcript"
        if cut.duration < self.rules.min_seconds:
            return f"shorter than {self.rules.min_seconds:g} s"
        if cut.duration > self.rules.max_seconds:
            return f"longer than {self.rules.max_seconds:g} s"
        output_frames = output_lens(frames_of(cut))
        return "too short for their tokens" if output_frames - 2 < len(tokens) else None

    def add(self, other: Selection) -> None:
        """Adds another manifest's account to this one."""
        self.kept += other.kept
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest, key=lambda longest: longest[1])
        self.unknown.add_counts(other.unknown.texts, other.unknown.with_unknown, other.unknown.letters)
        self.misplaced += other.misplaced
        for reason, ids in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(ids)

    def kept_of(self, cuts: CutSet) -> CutSet:
        """The cuts without those that were left out, read lazily."""
        left_out = {cut_id for ids in self.left_out.values() for cut_id in ids}
        return cuts.filter(partial(_is_not_in, left_out)) if left_out else cuts

    def account(self) -> dict[str, Any]:
        """What was found, as JSON takes it."""
        unknown = [self.unknown.texts, self.unknown.with_unknown, self.unknown.letters]
        found = [self.kept, self.seconds, self.longest, self.misplaced, self.left_out]
        return dict(zip(_ACCOUNT, [*found, unknown], strict=True))

    @staticmethod
    def from_account(account: dict[str, Any], tokenizer: Tokenizer, rules: Rules) -> Selection:
        """The selection that gave `account`."""
        selection = Selection(tokenizer, rules)
        *found, unknown = (account[name] for name in _ACCOUNT)
        selection.kept, selection.seconds, longest, selection.misplaced, selection.left_out = found
        selection.longest = longest[0], longest[1]
        texts, with_unknown, letters = unknown
        selection.unknown.add_counts(texts, with_unknown, letters)
        return selection

    def log(self, what: str) -> None:
        """One line on what was kept and what was not.

        Raises UserError if the texts are not the tokenizer's, or if most are not what is said in their cuts.
        """
        logging.info(self.summary(what))
        if len(self.misplaced) > self.kept:
            raise UserError(
                f"{what} cuts: {len(self.misplaced)} have text outside them or several supervisions "
                f"({_first(self.misplaced)}), and {self.kept} are left",
                fix=f"make cuts with {TRIM} of whole recordings, and not with windows or truncation",
            )
        if self.unknown.with_unknown > self.kept / 2:
            raise UserError(f"{what} cuts: {self.unknown}", fix=UNKNOWN_FIX)
        self.unknown.warn(f"{what} cuts")

    def summary(self, what: str) -> str:
        left_out = "; ".join(f"{len(ids)} {reason} ({_first(ids)})" for reason, ids in self.left_out.items())
        return (
            f"{what} cuts: {self.kept} kept ({self.seconds / 3600:.2f} h); left out: {left_out or 'none'}; "
            f"{self.unknown.with_unknown} have <unk> in their transcript"
        )


def _is_not_in(ids: set[str], cut: Cut) -> bool:
    return cut.id not in ids


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def select(path: Path, tokenizer: Tokenizer, rules: Rules, what: str) -> tuple[Selection, set[int]]:
    """The selection of a manifest, and the numbers (`id_number`) of the ids of all its cuts.

    Args:
      what: the set of cuts, for messages.
    Raises:
      UserError: a damaged manifest, two cuts with one id, or a cut that a model cannot hear.
    """
    manifest, kept_in = read_manifest(path, bool(rules.needs_text)), path.with_name(path.name + SUFFIX)
    key = _key(path, tokenizer, rules)
    kept = _read(kept_in, key)
    if kept is not None:
        account, numbers = kept
        return Selection.from_account(account, tokenizer, rules), numbers
    selection, ids = Selection(tokenizer, rules), DistinctIds(what)

    def heard() -> Iterator[Cut]:
        for cut in tqdm(iterate(manifest), desc=f"looking at {path.name}", unit=" cuts", delay=5, disable=None):
            check_data(cut, rules.from_audio, path)
            ids.add(cut.id)
            yield cut

    with no_garbage_collection():
        for _ in selection.judge(heard()):
            pass
    _write(kept_in, key, selection.account(), ids.seen)
    return selection, ids.seen


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Looking for cycles among a million cuts, which have none, would take a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _key(path: Path, tokenizer: Tokenizer, rules: Rules) -> str:
    """A hash of everything that a selection depends on."""
    settings = json.dumps([RULES, asdict(rules), tokenizer.fingerprint])
    files = [shard.path for shard in find_shards(path)] if path.is_dir() else [path]
    return f"{' '.join(map(sha256_of, files))} {settings}"


def _read(path: Path, key: str) -> tuple[dict[str, Any], set[int]] | None:
    """The account and the numbers of ids that a selection with this key has left; None where there is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept = json.loads(arrays["account"].tobytes())
            return (kept["selection"], set(arrays["ids"].tolist())) if kept["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # missing, cut short, or not ours
        return None


def _write(path: Path, key: str, account: dict[str, Any], numbers: set[int]) -> None:
    """Keeps a selection, where the folder can be written."""
    text = json.dumps({"key": key, "selection": account}).encode()
    try:
        with replacing(path, suffix=".npz") as temporary:
            np.savez(
                temporary, account=np.frombuffer(text, np.uint8), ids=np.fromiter(numbers, np.uint64, len(numbers))
            )
    except UserError as error:
        logging.info(f"{error.problem}: the next training will look at every cut again")
