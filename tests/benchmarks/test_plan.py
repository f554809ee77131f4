"""The plan of a training: arithmetic of what is stated, computed and measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import ceil

import pytest

from kdstream.benchmarks import plan as planning
from kdstream.benchmarks.gpus import STATED_SPEED
from kdstream.benchmarks.names import STEPS
from kdstream.benchmarks.plan import Model, Run, look_at, plan
from kdstream.commands import plan as command
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError

TINY = ModelConfig(preset="tiny", causal=True)
RUN = Run(2880.0, 12.0, "v100", 4, num_epochs=30, teacher_epochs=40, max_duration=1000, speed=0.0, step_costs=None)


@pytest.fixture()
def reference(monkeypatch) -> Model:
    """What every model looks like."""
    model = Model(65_000_000, 26e6, 26e6)
    monkeypatch.setattr(planning, "look_at", lambda config: model)
    return model


def planned(run: Run) -> dict[str, dict[str, str]]:
    return {row["what"]: row for row in plan(run, TINY, replace(TINY, causal=False))}


def hours_of(value: str) -> float:
    number, unit = re.findall(r"([\d.]+) (min|h|days)$", value)[0]
    return float(number) * {"min": 1 / 60, "h": 1, "days": 24}[unit]


def test_what_is_stated_of_icefall_comes_out_again(reference):
    rows = planned(RUN)
    assert hours_of(rows["baseline"]["value"]) == pytest.approx(30 * 67 / 60, rel=0.02)
    assert "icefall" in rows["baseline"]["known"] and rows["baseline"]["known"].startswith("computed")
    assert rows["steps"]["value"] == "2,592 an epoch, 77,760 in all"
    live, cached = (next(row for what, row in rows.items() if re.match(rf"{name}:", what)) for name in STEPS[1:])
    assert hours_of(live["value"]) / hours_of(cached["value"]) == pytest.approx(1.53 / 1.21, rel=0.05)


def test_time_follows_bandwidth_gpus_and_what_is_measured(reference):
    base = hours_of(planned(RUN)["baseline"]["value"])
    h100 = hours_of(planned(RUN._replace(gpu="h100", gpus=8))["baseline"]["value"])
    assert base / h100 == pytest.approx(2 * 3350 / 900, rel=0.05)
    measured = planned(RUN._replace(speed=2 * STATED_SPEED, step_costs=(2.0, 1.1)))
    assert hours_of(measured["baseline"]["value"]) == pytest.approx(base / 2, rel=0.05)
    assert measured["baseline"]["known"] == "measured"
    assert "distilled step, cached teacher: 1.10 of a baseline's" in measured


def test_the_suggested_batch_fits_and_all_gpus_together_take_no_larger_one_than_is_known(reference):
    fixed = planning.IN_TRAINING * reference.parameters + planning.FROZEN * reference.parameters
    for gpu, memory in (("t4", 16e9), ("v100", 32e9)):
        row = planned(RUN._replace(gpu=gpu, max_duration=0.0))["--max-duration of this plan"]
        most = (0.85 * memory - fixed) / (1.3 * reference.kept)
        assert row["known"] == "computed" and most - 50 < float(row["value"]) <= most
    assert planned(RUN._replace(gpu="h200", gpus=64, max_duration=0.0))["--max-duration of this plan"]["value"] == "250"


def test_what_many_gpus_take_is_not_rounded_away(reference):
    rows = planned(RUN._replace(gpu="h200", gpus=512, max_duration=0.0))
    assert rows["--max-duration of this plan"]["value"] == "34"  # 17,600 / 512
    assert rows["steps"]["value"].startswith(f"{ceil(2880 * 3600 / (34 * 512)):,} an epoch")


def test_the_average_takes_none_of_a_gpus_memory(reference):
    assert planning.IN_TRAINING == 5 * 4  # parameter, gradient, two moments, bucket
    assert planned(RUN)["memory beside"]["value"] == "1.6 of 32 GB"  # with 4 bytes for each of the teacher's


def test_disk_holds_the_checkpoints_of_epochs_and_steps_and_the_best_of_teacher_and_student(reference):
    rows = planned(RUN._replace(num_epochs=3, teacher_epochs=100))  # of 2,592 steps
    counted = {what: row["value"] for what, row in rows.items() if what.startswith("disk: checkpoints")}
    assert list(counted.values()) == [
        "137 GB: 100 of epochs, 2 best ones, 30 of steps, 1 GB each",
        "6.2 GB: 3 of epochs, 2 best ones, 1 of steps, 1 GB each",
    ]


def test_a_model_that_does_not_fit_is_said_to(monkeypatch):
    monkeypatch.setattr(planning, "look_at", lambda config: Model(2_000_000_000, 26e6, 26e6))
    assert planned(RUN._replace(gpu="t4", max_duration=0.0))["steps"]["value"] == "the model does not fit"


def test_a_model_is_looked_at_as_it_is():
    tiny = look_at(TINY)
    assert tiny.parameters == 2_842_100  # with 500 tokens
    assert look_at(TINY) == tiny  # whatever has been drawn before
    assert 1e6 < tiny.kept < look_at(replace(TINY, frontend_channels=(16, 64, 128))).kept
    ahead = replace(TINY, causal=True, chunk_size=(8,), left_context_frames=(32,), right_context_frames=(8,))
    assert look_at(replace(ahead, right_context_frames=(0,))).kept < look_at(ahead).kept
    with pytest.raises(UserError, match=r"right context"):
        look_at(replace(ahead, right_context_frames=(3,)))


def test_memory_is_that_of_the_heaviest_chunk_and_time_that_of_the_mean():
    sides = dict(left_context_frames=(32,), right_context_frames=(0, 8))
    kept = {chunks: look_at(replace(TINY, chunk_size=chunks, **sides)) for chunks in ((8,), (-1,), (8, -1))}
    assert kept[8,].kept < 0.9 * kept[8,].most and kept[-1,].kept == kept[-1,].most
    assert kept[8, -1].most == max(kept[8,].most, kept[-1,].most)
    assert kept[8, -1].kept == pytest.approx((kept[8,].kept + kept[-1,].kept) / 2)


def test_the_command_prints_a_table_and_reads_what_was_measured(reference, tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps([{"part": name, "ms": ms} for name, ms in zip(STEPS, (100, 150, 109), strict=True)]))
    flags = "--preset tiny --hours 960 --speeds 3 --gpu h100 --gpus 8".split()
    command.main([*flags, "--bench", str(path), "--speech-seconds-per-second", "1000"])
    out = capsys.readouterr().out
    assert "| what | value | known |" in out and "2,899 h" in out
    for what in ("steps", "disk: features", "disk: cache, tokens alone", "cached teacher: 1.09", "disk: checkpoints"):
        assert what in out
    path.write_text("[]")
    with pytest.raises(UserError, match="--bench .*: not a table of steps .*; give a file that kdstream bench-train"):
        command.main([*flags, "--bench", str(path)])
    path.unlink()
    with pytest.raises(UserError, match="--bench .*: no such file; give a file that kdstream bench-train"):
        command.main([*flags, "--bench", str(path)])
