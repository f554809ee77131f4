"""A recipe whose train.py and decode.py only pretend: what the tests of running many experiments share."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig
from kdstream.experiments.cells import SCRIPTS, Cell
from kdstream.experiments.runner import run_cells
from support.decoding import run_script
from support.records import make_record

# Both know their flags as pairs.  Behaviour is chosen by flags and by files beside the scripts: `slow` makes a training
# hang in its second epoch, with a child, `together` makes it wait until as many have begun as it says, and `half` makes
# decoding die after the first test set.
COMMON = """
import json, os, shlex, subprocess, sys, time
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
exp_dir = Path(flags.get("--exp-dir") or flags["--teacher-exp-dir"])
def note(*words):
    with open("events.txt", "a") as file:
        print(*words, file=file)
"""
TRAIN = """
exp_dir.mkdir(exist_ok=True)
note("train", exp_dir.name, os.environ["OMP_NUM_THREADS"], flags.get("--master-port", "-"))
if flags.get("--base-lr") == "666":
    print("first line")
    sys.exit("error: --base-lr 666: the devil's")
(exp_dir / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "-"))
(exp_dir / "flags.json").write_text(json.dumps(flags))
(exp_dir / "config.json").write_text(Path("config.json").read_text())
together = int(Path("together").read_text()) if Path("together").exists() else 0
for _ in range(3000):
    if Path("events.txt").read_text().count("train ") < together:
        time.sleep(0.01)
for epoch in range(1, int(flags.get("--num-epochs", 30)) + 1):
    if not (exp_dir / f"epoch-{epoch}.pt").exists():
        if epoch == 2 and Path("slow").exists():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            note("hanging", os.getpid(), child.pid)
            time.sleep(600)
        time.sleep(float(flags.get("--warm-step", 0)) / 1000)
        note("epoch", exp_dir.name, epoch)
        (exp_dir / f"epoch-{epoch}.pt").touch()
note("trained", exp_dir.name)
"""
DECODE = """
note("decode", exp_dir.name, flags.get("--chunk-size", "-"))
record = json.loads(Path("record.json").read_text())
trained = json.loads((exp_dir / "flags.json").read_text())
if trained.get("--causal") == "0" and "--chunk-size" in flags:
    sys.exit("error: trained with --causal 0: it cannot run in chunks")
results = Path(flags.get("--results-json", exp_dir / "results.json"))
for test_set in ("clean", "other"):
    seed, scale = int(trained.get("--seed", 42)), float(trained.get("--kd-feature-scale", 0))
    most = 4 + seed % 3 - (scale > 0) + (test_set == "other")
    more = trained.get("--kd-token-form") == "full"
    wrong = [(7 * n + seed) % (most + 1) + more for n in range(30)]  # words of each utterance
    recogs = exp_dir / f"recogs-{test_set}.txt"
    lines = [(["A"] * 10, ["B"] * k + ["A"] * (10 - k)) for k in wrong]
    recogs.write_text("".join(f"u{n:02}:\\tref={ref}\\nu{n:02}:\\thyp={hyp}\\n" for n, (ref, hyp) in enumerate(lines)))
    chunk = int(flags.get("--chunk-size", 8))
    record.update(
        system=flags.get("--system", exp_dir.name), seed=seed, test_set=test_set, chunk_ms=20 * chunk,
        wer=sum(wrong) / 3 + 16 / chunk, interval=[1.0, 99.0], recogs=os.path.relpath(recogs, results.parent),
        command=shlex.join(["python", *sys.argv]), compute_hours=0.5 + seed, substitutions=sum(wrong), insertions=0,
        deletions=0, utterance_errors=wrong, utterance_words=[10] * 30,
    )
    old = json.loads(results.read_text()) if results.exists() else []
    key = lambda r: (r["system"], r["seed"], r["test_set"], r["chunk_ms"])
    results.write_text(json.dumps([r for r in old if key(r) != key(record)] + [record]))
    if Path("half").exists():
        sys.exit(1)
"""


CACHE = """
note("cache", exp_dir.name, flags["--output"], flags["--teacher-avg"])
Path(flags["--output"]).mkdir(exist_ok=True)
"""


def make_recipe(folder: Path) -> Path:
    """A directory with train.py, decode.py and streaming_decode.py of two test sets, clean and other.

    ../../local/cache_teacher.py, as seen from there, is made too.
    """
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(COMMON + TRAIN)
    (folder / "decode.py").write_text(COMMON + DECODE)
    (folder / "streaming_decode.py").write_text(COMMON + DECODE)
    cache_script = folder / SCRIPTS["cache-teacher"]
    cache_script.parent.mkdir()
    cache_script.write_text(COMMON + CACHE)
    ExperimentConfig(data=DataConfig(test_parts=("clean", "other"))).save(folder)
    (folder / "record.json").write_text(json.dumps(asdict(make_record())))
    return folder


def events(recipe: Path, *kinds: str) -> list[list[str]]:
    """What the scripts noted, in the order of time."""
    path = recipe / "events.txt"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if not kinds or line[0] in kinds]


def make_cell(recipe: Path, name: str, *flags: Any, **changes: Any) -> Cell:
    """A cell of two epochs; `flags` are of train.py."""
    train_flags = ("--num-epochs", "2", *map(str, flags))
    return Cell(recipe, f"exp/{name}", **{"train_flags": train_flags, "decodings": (("decode",),), **changes})


def run(cells: list[Cell], jobs: int = 1) -> None:
    """Runs cells, which all succeed."""
    assert run_cells(cells, jobs) == {}


def compare(monkeypatch, recipe: Path, *flags: Any) -> str:
    """What compare_methods.py says on standard error."""
    budget = ("--num-epochs", 2, "--teacher-num-epochs", 3, "--avg", 1)
    shared = ("--recipe", recipe, "--exp-root", recipe / "exp", *budget)
    return run_script(monkeypatch, "local/compare_methods.py", *shared, *flags)
