"""The training benchmark: it measures what its table says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kdstream.benchmarks import against, layouts, limit, step_costs, train_step
from kdstream.benchmarks.memory import PeakMemory
from kdstream.benchmarks.names import BOTH_MODES
from kdstream.benchmarks.step_costs import memory_in_own_process
from kdstream.commands import bench_train_step, plan
from kdstream.config.flags import from_args
from kdstream.config.sections import DataConfig, ModelConfig
from kdstream.errors import UserError
from kdstream.models import on_cpu
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig
from support.models import tiny_test_model
from support.paths import ROOT


def run(path: Path, flags: str = "") -> list[dict]:
    """The rows that the benchmark writes to path."""
    short = "--repetitions 1 --max-duration 4 --utterance-seconds 2 --clock cpu"
    bench_train_step.main(f"--memory 0 {short} --json {path} {flags}".split())
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_part_is_timed_and_named(tmp_path, capsys):
    rows = run(tmp_path / "bench.json", "--kd-relation-scale 0.1")
    parts = ["reading the cache", "teacher forward", "branches", "feature loss", "relation loss", "apc loss"]
    assert [row["part"] for row in rows] == [*train_step.STEPS, *parts]
    assert all(row["ms"] > 0 or row["part"].endswith("loss") for row in rows)
    assert rows[0]["of the baseline step"] == 1.0
    out = capsys.readouterr().out
    assert "2.1 <- 2.1" in out and "| baseline step |" in out


@pytest.mark.slow
def test_token_distillation_alone_is_timed_too(tmp_path):
    alone = "--kd-feature-scale 0 --kd-relation-scale 0 --kd-apc-scale 0 --kd-token-scale 0.5"
    modes = "--full-context-scale 1 --mode-consistency-scale 1"
    rows = run(tmp_path / "bench.json", f"{alone} {modes}")
    parts = [*train_step.STEPS, "reading the cache", BOTH_MODES, "teacher forward", "token loss"]
    assert [row["part"] for row in rows] == parts
    assert rows[-1]["ms"] > 0


def test_another_teachers_sizes_are_its_presets_whatever_the_students():
    flags = "--preset tiny --feedforward-dim 64,64,64,64 --teacher-preset small --max-duration 4 --utterance-seconds 2"
    args = bench_train_step.get_parser().parse_args(flags.split())
    batch = train_step.synthetic_batch(from_args(DataConfig, args), args.utterance_seconds)
    teacher = train_step.Bench(args, batch, train_step.SYNTHETIC_VOCABULARY).teacher_config
    expected = ModelConfig(preset="small", vocab_size=train_step.SYNTHETIC_VOCABULARY)
    assert teacher == resolve(expected)


@pytest.mark.parametrize(
    "command", [bench_train_step.main, lambda flags: plan.main(["--hours", "1", "--gpu", "t4", *flags])]
)
def test_a_teachers_preset_that_is_not_there_is_named_by_its_own_flag(command):
    known = "unknown for --encoder conformer; use one of tiny, small, medium$"
    with pytest.raises(UserError, match=f"^--teacher-preset large: {known}"):
        command(["--encoder", "conformer", "--teacher-preset", "large"])


@pytest.mark.parametrize("flag", ["--teacher-exp-dir exp", "--teacher-cache cache", "--init-from-teacher 1"])
def test_flags_of_a_trained_teacher_are_refused(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_train_step.get_parser().parse_args(flag.split())
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_peak_memory_sees_memory_that_was_freed_before_it_looked():
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from kdstream.benchmarks.memory import PeakMemory
peak = PeakMemory(torch.device("cpu"))
peak.start()
torch.ones(64 * 2**20, dtype=torch.uint8)
print(peak.read())
"""
    # in a process of its own: in this one training may have told malloc to keep what is freed
    peak = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)
    assert 60 * 2**20 <= peak <= 100 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_is_measured_by_the_same_command_in_a_process_of_its_own():
    flags = "--preset tiny --max-duration 4 --utterance-seconds 2".split()
    megabytes = memory_in_own_process("baseline step", flags)
    assert 4 * 2.35 * 4 < megabytes < 1000  # float32 parameters, gradients and two moments at least
    with pytest.raises(UserError, match="--preset huge .*--memory-of.*: failed as shown above"):
        memory_in_own_process("baseline step", ["--preset", "huge"])


SHORT = "--preset tiny --causal 1 --max-duration 4 --utterance-seconds 2 --threads 1".split()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with a commit")
def test_the_steps_of_another_commit_run_on_the_same_batch(tmp_path):
    path = tmp_path / "against.json"
    flags = [*SHORT, "--repetitions", "1", "--memory", "0", "--steps", "baseline,cached", "--json", str(path)]
    bench_train_step.main([*flags, "--against", "HEAD"])
    rows = json.loads(path.read_text())
    assert [row["step"] for row in rows] == [train_step.STEPS[0], train_step.STEPS[2]]
    assert all(row["ratio"] > 0 and float(row["losses differ by"]) < 1e-4 for row in rows)


def test_of_an_older_commit_that_lacks_a_module_the_installed_package_is_not_taken(tmp_path):
    for path, text in {"kdstream/__init__.py": "", "local/bench_train_step.py": "name = 'its own'"}.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    program = "import sys, step_of_checkout; print(step_of_checkout.benchmark_of(sys.argv[1])['name'])"
    folder = Path(against.__file__).parent
    told = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=folder, capture_output=True, text=True)
    assert told.stdout == "its own\n", told.stderr


def test_a_commit_that_is_not_there_is_named():
    with pytest.raises(UserError, match="^--against no-such-commit: .*; give a commit"):
        bench_train_step.main([*SHORT, "--against", "no-such-commit"])


def test_a_step_that_cannot_run_is_an_error_and_not_a_wait(tmp_path):
    steps = against.StepsOfCheckout(ROOT, ["--preset", "huge"])
    with pytest.raises(UserError, match="--preset huge: failed as shown above"):
        steps.run("baseline step", 0)
    steps.close()


@pytest.mark.slow
def test_the_steps_of_a_checkout_have_the_vocabulary_that_is_asked_for():
    losses = []
    for size in ("500", "20"):
        steps = against.StepsOfCheckout(ROOT, [*SHORT, "--vocab-size", size])
        losses.append(steps.run("baseline step", 0)["loss"])
        steps.close()
    assert losses[1] < 0.8 * losses[0]  # a random model knows one of 20 better than one of 500


def test_the_ratio_is_the_median_over_pairs():
    seconds = [(1.0, 0.5), (2.0, 1.2), (9.0, 9.0)]  # a disturbed pair counts as one
    pairs = [[{"seconds": a, "loss": 10.0}, {"seconds": b, "loss": 10.1}] for a, b in seconds]
    row = against.figures("baseline step", "main", pairs, [100.0, 50.0])
    assert row["ratio"] == pytest.approx(0.6) and row["ms at main"] == 2000 and row["ms now"] == 1200
    assert row["losses differ by"] == "1e-02" and row["ratio of peaks"] == 0.5


def test_the_limit_counts_products_forward_and_backward():
    weight = torch.randn(7, 5, requires_grad=True)
    images, kernels = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3, requires_grad=True)

    def run(repetition: int) -> None:
        (torch.randn(4, 7).t().contiguous().t() @ weight).relu().sum().backward()
        F.conv2d(images, kernels).sum().backward()

    with limit.Recorder() as recorder:
        run(0)
    kinds = [limit.kind_of(product.operator) for product in recorder.products]
    assert kinds == ["matrix products"] * 2 + ["convolutions"] * 2  # the inputs need no gradient
    first = recorder.products[0].args
    assert [(x.size, x.stride) for x in first] == [((4, 7), (1, 4)), ((7, 5), (5, 1))]
    rows = limit.measure_limit(run, 3, time.perf_counter)
    assert [row["part"] for row in rows] == ["step", "matrix products", "convolutions", "both products"]
    assert rows[0]["of the step"] == 1.0


def test_the_limit_is_measured_after_a_gpu_has_ended_its_work(monkeypatch):
    events = []
    monkeypatch.setattr(step_costs, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setitem(step_costs.CLOCKS, "wall", lambda: events.append("read") or time.perf_counter())
    step_costs.limit_of_baseline(bench_train_step.get_parser().parse_args([*SHORT, "--repetitions", "1"]))
    assert events == ["wait", "read"] * (len(events) // 2) and len(events) > 100


def test_memory_is_that_of_the_gpu_which_is_named(monkeypatch):
    asked = []
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: asked.append(device) or 3 * len(asked))
    peak = PeakMemory(torch.device("cuda:1"))
    peak.start()
    assert peak.read() == 9 - 6 and asked == [torch.device("cuda:1")] * 3


def test_both_layouts_of_depthwise_convolutions_give_the_same(tmp_path):
    before = set(on_cpu.CHANNELS_LAST)
    rows = layouts.measure_layouts(torch.device("cpu"), utterances=2, frames=40, repetitions=1)
    assert len(rows) == 2 and all(float(row["results differ by"]) <= 1e-6 for row in rows)
    assert on_cpu.CHANNELS_LAST == before


def test_a_model_gives_the_same_in_both_layouts():
    model = tiny_test_model(causal=True)
    features, lens = torch.randn(2, 100, 80), torch.tensor([100, 90])
    results = []
    for last in (True, False):
        with layouts.layout(torch.device("cpu"), last):
            out = model.encode(features, lens, ChunkConfig(8, 32))[0]
            weights = [p for name, p in model.named_parameters() if "depthwise" in name]
            results.append([out, *torch.autograd.grad(out.square().sum(), weights)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
