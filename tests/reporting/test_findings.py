"""The headline of a report: the best system where latency is lowest, and what it admits."""

from __future__ import annotations

from dataclasses import replace

from kdstream.evaluation.compare import Reduction
from kdstream.reporting import findings
from support.records import make_record


def reduction(percent: float, interval=None, **changes) -> Reduction:
    record = make_record(system="distilled", wer=20.0 * (1 - percent / 100), **changes)
    return Reduction(record, make_record(wer=20.0, **changes), percent, interval)


def test_the_headline_is_the_best_system_where_latency_is_lowest():
    full = make_record(system="teacher", mode="full", chunk_ms=None, wer=10.0)
    slow = reduction(90.0, chunk_ms=640)
    simulated = reduction(80.0, mode="simulated")
    wanted = reduction(27.0, (17.4, 36.1), mode="chunkwise")
    weaker = replace(wanted, record=replace(wanted.record, system="weaker"), percent=3.0)
    (line,) = findings.headline([full], [slow, simulated, weaker, wanted])
    assert line == (
        "distilled has 27 % [17, 36] fewer word errors than baseline at 160 ms on test-clean: 14.6 % against 20.0 % "
        "WER. teacher, which hears the whole utterance, has 10.0 %: 54 % of the gap is closed."
    )


def test_the_headline_admits_chance_harm_and_seeds():
    (line,) = findings.headline([], [reduction(2.0, (-1.0, 5.0))])
    assert "2 % [-1, 5] fewer word errors" in line and "may be chance" in line
    (line,) = findings.headline([], [reduction(-10.0, (-15.0, -5.0))])
    assert "10 % [5, 15] more word errors" in line and "chance" not in line
    (line,) = findings.headline([], [reduction(10.0, (5.0, 15.0), seed=1), reduction(20.0, (5.0, 30.0), seed=2)])
    assert "15 % [10, 20] fewer" in line and "17.0 % against 20.0 % WER (mean and range of 2 seeds)" in line
    (line,) = findings.headline([make_record()], [])
    assert line.startswith("baseline has 12.50 [11.00, 14.25] % WER on test-clean")
