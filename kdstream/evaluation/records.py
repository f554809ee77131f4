"""Result records: what was scored, on which test set, and what training cost; kept in JSON files.

A results JSON is a list of records, the newest last.  Scoring the same thing again (`Record.key`) replaces its record.
Records of several checkpoints lie beside each other; where one of them is needed, `newest` chooses it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdstream.errors import UserError
from kdstream.evaluation import scoring
from kdstream.evaluation.latency import Latency, latency_from_json
from kdstream.files import locked, write_text
from kdstream.words import RATES, WORD

RESULTS_JSON = "results.json"  # in an experiment directory
REPAIR = "mend it, or delete it and decode again"
DECODE_AGAIN = "decode again into a new --results-json"
MODES = ("full", "simulated", "chunkwise")
Measure = tuple[str, str]  # a test set, and what was counted on it: word, char or mixed
MAY_LACK: dict[str, Any] = {  # fields of a record's file, and what they are where it lacks them
    "latency": {}, "utterance_errors": (), "utterance_words": (), "unit": "", "normalisation": "", "right_ms": 0,
    "other_rates": {},
    "cuts": "", "inputs": "", "begins_with": "",
}  # fmt: skip


KINDS = {  # of values in a record's file, by the types of Record's fields
    "str": str, "int": int, "float": (int, float), "int | None": (int, type(None)),
    "tuple[float, float]": (list, tuple), "tuple[int, ...]": (list, tuple), "dict[str, float]": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One scored run.

    encoder: architecture and preset.  parameters: of the model as it is decoded.
    method: what training distilled, "none" without a teacher.
    mode: full (context), simulated (streaming by a mask) or chunkwise (with caches).
    chunk_ms, left_ms, latency_ms (algorithmic): None in full context; left_ms -1 is unlimited.
    wer and interval (95 %, bootstrap over utterances): per cent.
    speech_hours: speech that training has gone through, repetitions counted.  compute_hours: how long training took,
      times its processes.  Both are 0 for weights without their checkpoint.
    recogs: recogs-*.txt, relative to the results JSON; "" where it is not kept beside it.
    latency: what was measured, by the names in latency.py; a file may lack it.
    utterance_errors, utterance_words: of each utterance in the order of their ids.  Intervals of comparisons need
      them; a file may lack them.
    unit: what was counted as a word: word, char(acter), or mixed, which is both; see words.py.  A file may lack it:
      then it is word.
    normalisation: the tokenizer's rule that references and hypotheses went through; "" where a file lacks it.
    right_ms: right context of a chunk; 0 in full context, and where a file lacks it.
    other_rates: beside a `wer` of characters, by name (WER, CER) the error rates of the same utterances, in per cent.
    cuts: which cuts the test set has (see data.cuts.fingerprint_of); "" where a file lacks it.
    inputs: a hash of the weights, hotwords and language model that flags named, of which `checkpoint` and `search` have
      the names alone; "" without such flags, and where a file lacks it.
    begins_with: --init-checkpoint of its training, and --init-modules; "" without them, and where a file lacks it.
    """

    system: str
    encoder: str
    parameters: int
    method: str
    seed: int
    checkpoint: str
    test_set: str
    mode: str
    chunk_ms: int | None
    left_ms: int | None
    latency_ms: int | None
    search: str
    errors: int
    words: int
    insertions: int
    deletions: int
    substitutions: int
    wer: float
    interval: tuple[float, float]
    speech_hours: float
    compute_hours: float
    recogs: str
    command: str
    latency: Latency = field(default_factory=dict)
    utterance_errors: tuple[int, ...] = ()
    utterance_words: tuple[int, ...] = ()
    unit: str = ""
    normalisation: str = ""
    right_ms: int = 0
    other_rates: dict[str, float] = field(default_factory=dict)
    cuts: str = ""
    inputs: str = ""
    begins_with: str = ""

    @property
    def counted(self) -> str:
        """What was counted: word, char or mixed."""
        return self.unit or WORD

    @property
    def rate(self) -> str:
        """What `wer` is called: WER, CER or MER."""
        return RATES[self.counted]

    @property
    def score(self) -> scoring.Score | None:
        """None where the errors of each utterance are not known."""
        if not self.utterance_words:
            return None
        counts = (np.array(self.utterance_errors), np.array(self.utterance_words))
        return scoring.Score(self.insertions, self.deletions, self.substitutions, *counts)

    @property
    def shown(self) -> str:
        """Which one it is, in messages: baseline, seed 1, test-clean."""
        return f"{self.system}, seed {self.seed}, {self.test_set}"

    @property
    def measure(self) -> Measure:
        """What its error rate is of: the test set, and what was counted.  Rates of two measures are not comparable."""
        return (self.test_set, self.counted)

    @property
    def decoding(self) -> tuple[Any, ...]:
        """How it was decoded, on whatever test set."""
        return (self.mode, self.chunk_ms, self.left_ms, self.right_ms, self.search)

    @property
    def setting(self) -> tuple[Any, ...]:
        """What the records of two systems must share to be compared."""
        return (*self.measure, *self.decoding)

    @property
    def training(self) -> tuple[Any, ...]:
        """What the records of several checkpoints of one training share, each decoded in the same way."""
        return (self.system, self.seed, *self.setting)

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.training, self.checkpoint)


def load_records(path: Path) -> list[Record]:
    """The records of a results JSON.  Raises UserError if it is none."""
    return [to_record(path, item) for item in load_list(path)]


def load_list(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file of records or of rows.  Raises UserError if it is not a list of objects."""
    try:
        items = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", fix=f"name a results JSON, such as EXP_DIR/{RESULTS_JSON}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a results JSON ({error})", fix=REPAIR) from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path}: a results JSON is a list of objects", fix=REPAIR)
    return items


def to_record(path: Path, item: dict[str, Any]) -> Record:
    """A record from its object in the file `path`.  Raises UserError where it is not one."""
    names = {f.name for f in fields(Record)}
    item = {**MAY_LACK, **item}
    if set(item) != names:
        odd = ", ".join(sorted(names.symmetric_difference(item)))
        raise UserError(f"{path}: a record lacks or has too much of: {odd}", fix=DECODE_AGAIN)
    if item["unit"] not in ("", *RATES):
        raise UserError(f"{path}: unknown unit {item['unit']}", fix=DECODE_AGAIN)
    try:
        latency = latency_from_json(item["latency"])
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}", fix=DECODE_AGAIN) from error
    _check_values(path, item)
    tuples = {name: tuple(item[name]) for name in ("interval", "utterance_errors", "utterance_words")}
    return Record(**{**item, **tuples, "latency": latency})


def _check_values(path: Path, item: dict[str, Any]) -> None:
    """Raises UserError where a value of a record's file is not of its kind, or a number that is not finite."""
    for each in fields(Record):
        value, kinds = item[each.name], KINDS.get(str(each.type))
        if kinds and (not isinstance(value, kinds) or isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{path}: {each.name} of a record is {value!r}", fix=REPAIR)
    if len(item["utterance_errors"]) != len(item["utterance_words"]):
        raise UserError(f"{path}: a record has the errors of some of its utterances alone", fix=REPAIR)


def newest(records: Sequence[Record]) -> list[Record]:
    """Of each system, seed and setting the record that was added last, whatever its checkpoint."""
    return list({record.training: record for record in records}.values())


def load_newest(path: Path) -> list[Record]:
    """The newest records of a results JSON; the log names the checkpoints that are passed over."""
    records = load_records(path)
    taken = newest(records)
    lines: dict[str, None] = {}
    for record in taken:
        others = {r.checkpoint for r in records if r.training == record.training} - {record.checkpoint}
        if others:
            passed_over = ", ".join(sorted(others))
            lines[f"{path}: of {record.system} {record.checkpoint}, decoded last, not {passed_over}"] = None
    for line in lines:
        logging.warning(line)
    return taken


def _to_item(record: Record) -> dict[str, Any]:
    """The inverse of `to_record`."""
    return {name: value for name, value in asdict(record).items() if value or name not in MAY_LACK}


def add_record(path: Path, record: Record) -> None:
    """Adds `record` to the results JSON at `path`, in place of one with the same key.

    Safe against a crash (the file is replaced as a whole) and against other processes that add at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        records = [old for old in load_records(path) if old.key != record.key] if path.exists() else []
        write_json(path, [_to_item(r) for r in [*records, record]])


def check_test_set(path: Path, test_set: str, cuts: str) -> None:
    """Raises UserError if the results JSON has results of other cuts under this name, which new ones would replace."""
    for record in load_records(path) if path.exists() else []:
        if record.test_set == test_set and record.cuts not in ("", cuts):
            raise UserError(
                f"{path}: its results of test set {test_set} are of other cuts",
                flag="--test-parts, --test-cuts",
                fix=f"name this manifest otherwise, e.g. CORPUS_cuts_{test_set}.jsonl.gz, or delete {path.name}",
            )


def warn_of_other_inputs(path: Path, checkpoint: str, search: str, inputs: str) -> None:
    """Says that results in the file `path` are of other weights, hotwords or language models of the same names."""
    for record in load_records(path) if path.exists() else []:
        if (record.checkpoint, record.search) == (checkpoint, search) and record.inputs not in ("", inputs):
            logging.warning(
                f"{path}: its result of {checkpoint}, {search} on {record.test_set} is of other files of these names; "
                "scoring this test set replaces it, unless the files are renamed, or --results-json names another file"
            )


def write_json(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Writes a list of objects, one per line, whole or not at all."""
    lines = ",\n".join(json.dumps(item) for item in items)
    write_text(path, f"[\n{lines}\n]\n")


def publish(name: Path, records: Sequence[Record], **tables: Sequence[dict[str, Any]]) -> None:
    """Writes the records to NAME.json and each table's rows to NAME-<table>.json; recogs files stay where they are."""
    name.parent.mkdir(parents=True, exist_ok=True)
    write_json(name.with_name(f"{name.name}.json"), [_to_item(replace(record, recogs="")) for record in records])
    for table, rows in tables.items():
        write_json(name.with_name(f"{name.name}-{table}.json"), rows)
