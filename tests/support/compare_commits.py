"""Runs the scripts of two checkouts on one corpus and compares what they leave; tests/compare_commits.sh starts it.

    python -m support.compare_commits WORK

WORK/A/checkout and WORK/B/checkout are the two.  Each runs in WORK/A or WORK/B, so that all paths that a script is
given, and may write down, are the same.
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import NamedTuple

from support.comparing import (
    different_bytes,
    different_checkpoints,
    different_lines,
    different_records,
    different_settings,
    different_values,
    read_losses,
    read_tensors,
)
from support.tone_corpus import make_corpus

SIDES = ("A", "B")
STEPS = 20  # of a short training, which covers what happens in a step
EPOCHS = 14  # of a long one, which learns most of the words: a search has something to find, and to doubt


DATA = "--valid-cuts data/valid.jsonl.gz --test-cuts data/test.jsonl.gz --bpe-model data/lang/bpe.model --num-workers 0"
TRAIN = f"--train-cuts data/train.jsonl.gz {DATA} --num-buckets 2 --log-interval 1 --tensorboard 0 --average-period 2"
SHORT = f"--max-train-batches {STEPS} --max-duration 8 --warm-step 10 --lr-warmup-batches 10"
LONG = (
    f"--num-epochs {EPOCHS} --max-duration 6 --base-lr 0.06 --warm-step 30 --lr-warmup-batches 20 --lr-batches 300 "
    "--lr-epochs 100 --ref-duration 0.1 --enable-spec-aug 0 --use-ctc 1"
)
ENDS = "--preset tiny --decoder-dim 64 --joiner-dim 64"
ZIPFORMER = (
    f"{ENDS} --num-encoder-layers 1,2,1 --downsampling-factor 1,2,4 --encoder-dim 48,64,48 "
    "--encoder-unmasked-dim 48,48,48 --feedforward-dim 96 --num-heads 4"
)
CONFORMER = f"{ENDS} --encoder conformer --num-encoder-layers 2 --encoder-dim 64 --feedforward-dim 96"
STREAMING = "--causal 1 --chunk-size 8,16,-1 --left-context-frames 32,-1"
TEACHER = f"--teacher-exp-dir exp/teacher --teacher-epoch {EPOCHS} --teacher-avg 2"
ICEFALL = f"--teacher-type icefall --teacher-checkpoint exp/teacher/pretrained.pt --teacher-model '{ZIPFORMER}'"
ALL_LOSSES = (
    "--use-ctc 1 --kd-feature-scale 1 --kd-relation-scale 0.1 --kd-apc-scale 0.5 --kd-token-scale 0.5 "
    "--kd-warmup-batches 5"
)
TRAININGS = {
    "teacher": f"{LONG} {ZIPFORMER} --causal 0",
    "zipformer": f"{LONG} {ZIPFORMER} {STREAMING}",
    "conformer": f"{LONG} {CONFORMER} {STREAMING} --on-the-fly-feats 1",
    "baseline": f"{SHORT} {ZIPFORMER} {STREAMING} --accum-grad 2 --pseudo-cuts exp/pseudo.jsonl.gz",
    "student": f"{SHORT} {ZIPFORMER} {STREAMING} {TEACHER} {ALL_LOSSES} --on-the-fly-feats 1",
    "student-of-cache": f"{SHORT} {ZIPFORMER} {STREAMING} {TEACHER} {ALL_LOSSES} --init-from-teacher 1 "
    "--teacher-cache exp/cache --spec-aug-time-warp-factor 0 --kd-token-form collapsed --kd-distance l2 "
    "--kd-layers 1.1 --kd-layer-map similar --kd-similarity-file exp/similarity.json",
    "student-of-icefall": f"{SHORT} {CONFORMER} {STREAMING} {ICEFALL} {ALL_LOSSES} --kd-token-form one-best "
    "--kd-distance cosine --kd-layers 0.0,0.1 --kd-layer-map learned --kd-share-branches 1",
}


class Stage(NamedTuple):
    """A script that is run: its path in the checkout and its flags."""

    script: str
    flags: str

    @property
    def name(self) -> str:
        return f"{Path(self.script).stem}, {self.flags.split()[1]}"  # the first flag names a directory


def train(name: str, more: str = "") -> Stage:
    return Stage("egs/librispeech/train.py", f"--exp-dir exp/{name} {TRAIN} {TRAININGS[name]} {more}")


def use(script: str, name: str, more: str = "") -> Stage:
    """Runs a script with a model that a long training made."""
    return Stage(script, f"--exp-dir exp/{name} --epoch {EPOCHS} --avg 2 {more}")


def last_checkpoint(name: str) -> str:
    return f"exp/{name}/" + (f"epoch-{EPOCHS}.pt" if LONG in TRAININGS[name] else f"checkpoint-{STEPS}.pt")


ALIGN, CACHE, LABEL = "local/align.py", "local/cache_teacher.py", "local/pseudo_label.py"
DECODE, STREAM = "egs/librispeech/decode.py", "egs/librispeech/streaming_decode.py"
TRANSCRIBE, EXPORT = "egs/librispeech/transcribe.py", "egs/librispeech/export.py"
RECORD = "--results-json exp/results.json"
DELAYS = f"{RECORD} --alignments exp/alignments.jsonl.gz"
BEAM = "--decoding-method modified_beam_search"
STAGES = (
    train("teacher"),
    use(ALIGN, "teacher", "--output exp/alignments.jsonl.gz"),
    use(DECODE, "teacher", DELAYS),
    use(DECODE, "teacher", f"{RECORD} {BEAM}"),
    use(TRANSCRIBE, "teacher", "--json 1 data/wav"),
    use(EXPORT, "teacher"),
    train("zipformer"),
    use(DECODE, "zipformer", DELAYS),
    use(STREAM, "zipformer", f"{DELAYS} {BEAM} --num-decode-streams 3"),
    use(TRANSCRIBE, "zipformer", "--json 1 data/wav"),
    use(EXPORT, "zipformer", "--chunk-size 16 --left-context-frames 64"),
    train("conformer"),
    use(DECODE, "conformer", f"{RECORD} {BEAM} --use-averaged-model 0"),
    use(STREAM, "conformer", f"{RECORD} --max-sym-per-frame 3"),
    use(EXPORT, "conformer"),
    use(LABEL, "teacher", "--cuts data/test.jsonl.gz --output exp/pseudo.jsonl.gz --min-confidence 0.1"),
    train("baseline", f"--max-train-batches {STEPS // 2}"),
    train("baseline", "--resume 1"),
    train("student"),
    Stage(CACHE, f"--output exp/cache {TEACHER} --layers 1.0,1.1,2.0 --num-workers 0"),
    Stage("local/layer_similarity.py", f"--exp-dir exp/zipformer {TEACHER} --output exp/similarity.json"),
    train("student-of-cache"),
    train("student-of-icefall"),
)


class Failed(Exception):
    """A script that did not do its work."""


def run_all(side: Path, stop: Event) -> None:
    """Runs all stages of a checkout, unless what they write is there.  Raises Failed at the first that fails."""
    if not (side / "checkout").exists():
        print(f"{side.name}: has been computed before", flush=True)
        return
    (side / "data").symlink_to("../data")
    (side / "output").mkdir()
    for number, stage in enumerate(STAGES, start=1):
        if stop.is_set():
            return
        started = time.perf_counter()
        try:
            run(side, number, stage)
        except Failed:
            stop.set()
            raise
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{side.name}, {number} of {len(STAGES)}: {stage.name}, {seconds:.0f} s\n")
        sys.stdout.flush()


def run(side: Path, number: int, stage: Stage) -> None:
    """Runs a script in the folder `side`; its output goes to files there.  Raises Failed with the end of it."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(side / "checkout"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",  # sums in another order have other bits
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, f"checkout/{stage.script}", *shlex.split(stage.flags)]
    out, err = (side / "output" / f"{number:02d}-{Path(stage.script).stem}.{kind}" for kind in ("out", "err"))
    with out.open("w") as stdout, err.open("w") as stderr:
        status = subprocess.run(command, cwd=side, env=environment, stdout=stdout, stderr=stderr).returncode
    if status != 0:
        said = (out.read_text() + err.read_text()).splitlines()
        raise Failed("\n".join([f"{side.name}: {stage.script} {stage.flags}: exit status {status}", *said[-15:]]))


Comparison = Callable[[Path, Path], str]


def of_files(a: Path, b: Path) -> str:
    return different_bytes(a.read_bytes(), b.read_bytes())


def of_gzipped(a: Path, b: Path) -> str:
    """Of what is in the files: their heads hold the time."""
    return different_bytes(*(gzip.decompress(path.read_bytes()) for path in (a, b)))


def of_logs(a: Path, b: Path) -> str:
    return different_lines(read_losses(a), read_losses(b))


def of_checkpoints(a: Path, b: Path) -> str:
    return different_checkpoints(read_tensors(a), read_tensors(b))


def of_records(a: Path, b: Path) -> str:
    return different_records(json.loads(a.read_text()), json.loads(b.read_text()))


def of_settings(a: Path, b: Path) -> str:
    return different_settings(read_tensors(a), read_tensors(b))


def of_weights(a: Path, b: Path) -> str:
    return different_values(read_tensors(a), read_tensors(b))


# What is compared: its name, files below WORK/A and WORK/B, and how.
COMPARED: tuple[tuple[str, str, Comparison], ...] = (
    *((f"{name}, losses", f"exp/{name}/log/log-train-*", of_logs) for name in TRAININGS),
    *((f"{name}, last checkpoint", last_checkpoint(name), of_checkpoints) for name in TRAININGS),
    *((f"{name}, settings", last_checkpoint(name), of_settings) for name in TRAININGS),
    ("cache_teacher.py", "exp/cache/**/*", of_files),
    ("layer_similarity.py", "exp/similarity.json", of_files),
    ("pseudo_label.py", "exp/pseudo.jsonl.gz", of_gzipped),
    ("align.py", "exp/alignments.jsonl.gz", of_gzipped),
    ("recogs", "exp/**/recogs-*", of_files),
    ("errs", "exp/**/errs-*", of_files),
    ("wer-summary", "exp/**/wer-summary*", of_files),
    ("delays", "exp/**/delays-*", of_files),
    ("results.json", "exp/results.json", of_records),
    ("transcribe.py --json 1", "output/*-transcribe.out", of_files),
    ("pretrained.pt", "exp/*/pretrained.pt", of_weights),
    ("pretrained.safetensors", "exp/*/pretrained.safetensors", of_files),
    ("ONNX", "exp/*/*.onnx", of_files),
    # export.py writes it beside the ONNX files; whether train.py does too is no matter of numbers
    *((f"tokens.txt of {name}", f"exp/{name}/tokens.txt", of_files) for name in ("zipformer", "conformer")),
)


def compare(a: Path, b: Path) -> bool:
    """Prints a line for each thing that is compared, or one for each file that differs; returns whether none does."""
    total = wrong = 0
    for name, pattern, comparison in COMPARED:
        differences = different_folders(a, b, pattern, comparison)
        total, wrong = total + len(differences), wrong + sum(map(bool, differences.values()))
        for file, difference in differences.items():
            if difference:
                print(f"{name}: {file}: DIFFERS ({difference})")
        if not any(differences.values()):
            print(f"{name}: same ({len(differences)} files)" if len(differences) > 1 else f"{name}: same")
    print(f"{total - wrong} of {total} files are the same" + (f", {wrong} DIFFER" if wrong else ""))
    return not wrong


def different_folders(a: Path, b: Path, pattern: str, comparison: Comparison) -> dict[str, str]:
    """By the name of each file that matches the pattern in A or B: the first difference, "" where there is none."""
    found = [{undated(path, side): path for path in sorted(side.glob(pattern)) if path.is_file()} for side in (a, b)]
    differences = {name: f"only in {side.name}" for files, side in zip(found, (a, b), strict=True) for name in files}
    for name in found[0].keys() & found[1].keys():
        differences[name] = comparison(found[0][name], found[1][name])
    return differences or {pattern: "there is no such file"}


def undated(path: Path, side: Path) -> str:
    """The path below `side`; a training's log is named after its place among the logs, and not after the time."""
    name = path.name
    if name.startswith("log-train-"):
        name = f"log-train-{sorted(path.parent.iterdir()).index(path) + 1}"
    return str(path.with_name(name).relative_to(side))


def main() -> None:
    work = Path(sys.argv[1])
    os.chdir(work)
    make_corpus(Path("data"))
    sides, stop = [work / side for side in SIDES], Event()
    try:
        with ThreadPoolExecutor(len(sides)) as pool:
            list(pool.map(run_all, sides, [stop] * len(sides)))
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if compare(*sides) else 1)


if __name__ == "__main__":
    main()
