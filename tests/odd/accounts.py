"""Accounts: what must come out of a command for all that went in.  Each gives what is missing, "" if nothing is."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from odd.harness import Outcome

TOLERANCE = 0.011  # seconds: a feature frame


def decoded(exp_dir: Path, cut_ids: Sequence[str]) -> str:
    """decode.py and streaming_decode.py: each cut has its two lines in the recogs file."""
    found = sorted(exp_dir.rglob("recogs-*.txt"))
    if not found:
        return "no recogs file"
    lines = found[-1].read_text(encoding="utf-8").splitlines()
    heard = [line.split(":\t", 1)[0] for line in lines if ":\thyp=" in line]
    return _difference("decoded", cut_ids, heard)


def references(exp_dir: Path) -> dict[str, list[str]]:
    """By cut id, the reference that was scored."""
    (found,) = exp_dir.rglob("recogs-*.txt")
    pairs = [line.split(":\tref=", 1) for line in found.read_text(encoding="utf-8").splitlines() if ":\tref=" in line]
    return {cut_id: ast.literal_eval(words) for cut_id, words in pairs}


def trained(exp_dir: Path, cut_ids: Sequence[str]) -> str:
    """train.py: the log says of each training cut that it was kept, or why it was left out."""
    log = "".join(path.read_text(encoding="utf-8") for path in sorted((exp_dir / "log").glob("log-train-*")))
    line = re.search(r"training cuts: (\d+) kept \(.*?\); left out: (.*?); \d+ have <unk>", log)
    if not line:
        return "the log does not count the training cuts"
    left_out = sum(int(count) for count in re.findall(r"(?:^|; )(\d+) ", line[2]))
    if int(line[1]) + left_out != len(cut_ids):
        return f"{len(cut_ids)} cuts, but {line[1]} kept and {left_out} left out"
    return ""


def cached(cache: Path, cut_ids: Sequence[str], outcome: Outcome) -> str:
    """cache_teacher.py: each cut is in the cache, or is left out with a word."""
    from kdstream.kd.cache_shards import Shards

    heard = [cut_id for cut_id, place in zip(cut_ids, Shards(cache).find(cut_ids), strict=True) if place >= 0]
    return _difference("cached", cut_ids, [*heard, *_named_in(outcome.text, set(cut_ids) - set(heard))])


def written(manifest: Path, cut_ids: Sequence[str], outcome: Outcome) -> str:
    """align.py and pseudo_label.py: each cut is in what they write, or is named, or is counted as left out."""
    from lhotse.serialization import load_jsonl

    heard = [item["id"] for item in load_jsonl(manifest)]
    if len(heard) + _counted_as_left_out(outcome.text) == len(cut_ids):
        return ""
    return _difference("written", cut_ids, [*heard, *_named_in(outcome.text, set(cut_ids) - set(heard))])


def counted(cut_ids: Sequence[str], outcome: Outcome) -> str:
    """validate_manifest.py: it prints how many cuts there are."""
    line = re.search(r": (\d+) cuts, ", outcome.stdout)
    return "" if line and int(line[1]) == len(cut_ids) else f"{len(cut_ids)} cuts, but it says {outcome.stdout!r}"


def transcribed(seconds: Mapping[Path, float | None], outcome: Outcome) -> str:
    """transcribe.py --json 1: a line for each file, of its length; files of unknown length may have any."""
    try:
        items = [json.loads(line) for line in outcome.stdout.splitlines()]
    except ValueError as error:
        return f"its output is no JSON ({error})"
    heard = {item["audio"]: item["seconds"] for item in items}
    for path, length in seconds.items():
        if str(path) not in heard:
            if path.name not in outcome.stderr:
                return f"{path.name} is neither transcribed nor named"
        elif length is not None and abs(heard[str(path)] - length) > TOLERANCE:
            return f"{path.name}: {heard[str(path)]:.2f} of {length:.2f} s were heard"
    return ""


def _difference(verb: str, expected: Iterable[str], heard: Iterable[str]) -> str:
    expected, heard = sorted(expected), sorted(heard)
    if expected == heard:
        return ""
    lost = [cut_id for cut_id in expected if cut_id not in heard]
    return f"{len(expected)} cuts, {len(heard)} {verb}; lost: {lost[:3]!r}"


def _named_in(text: str, cut_ids: Iterable[str]) -> list[str]:
    return [cut_id for cut_id in cut_ids if cut_id and cut_id in text]


def _counted_as_left_out(text: str) -> int:
    counts = re.findall(r"(\d+) of \d+ cuts kept", text)
    totals = re.findall(r"\d+ of (\d+) cuts kept", text)
    left_out = sum(int(total) - int(kept) for kept, total in zip(counts, totals, strict=True))
    return left_out + sum(map(int, re.findall(r": (\d+) of \d+ cuts are too short", text)))
