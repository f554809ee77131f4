"""The headline of a report: the best system where latency is lowest, and what it admits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdstream.evaluation.compare import Reduction, compare
from kdstream.evaluation.records import Record
from kdstream.evaluation.scoring import bootstrap_wer, mean_and_deviation
from kdstream.evaluation.tables import interval_shown, wer_shown
from kdstream.reporting import findings
from support.records import make_record, trained


def reduction(percent: float, interval=None, system="distilled", **changes) -> Reduction:
    record = make_record(system=system, wer=20.0 * (1 - percent / 100), **changes)
    return Reduction([record], [make_record(wer=20.0, **changes)], percent, interval)


def test_the_headline_is_the_best_system_where_latency_is_lowest():
    full = make_record(system="teacher", mode="full", chunk_ms=None, wer=10.0)
    slow = reduction(90.0, chunk_ms=640)
    simulated = reduction(80.0, mode="simulated")
    wanted = reduction(27.0, (17.4, 36.1), mode="chunkwise")
    weaker = replace(wanted, records=[replace(wanted.record, system="weaker")], percent=3.0)
    (line,) = findings.headline([full], [slow, simulated, weaker, wanted])
    assert line == (
        "distilled has 27 % [17, 36] fewer word errors than baseline at 160 ms on test-clean: 14.6 % against 20.0 % "
        "WER (1 seed). teacher, which hears the whole utterance, has 10.0 %: 54 % of the gap is closed."
    )


def test_the_headline_is_of_a_system_that_was_decoded_on_every_test_set():
    once = reduction(30.0, system="once", test_set="clean")
    often = [reduction(percent, system="often", test_set=name) for name, percent in (("clean", 32.0), ("other", 6.0))]
    clean, other = findings.headline([], [once, *often])
    assert clean.startswith("often has 32 %") and other.startswith("often has 6 %")


def test_the_headline_says_how_much_each_was_trained_where_that_differs():
    teacher = make_record(system="teacher", mode="full", chunk_ms=None, wer=10.0, speech_hours=6.66)
    student = reduction(27.0)
    longer = [replace(student.base, speech_hours=hours) for hours in (9.0, 11.0)]
    student = replace(student, records=[replace(student.record, speech_hours=3.33)], bases=longer)
    told = "Speech that training went through, repetitions counted: baseline 10.0 h, distilled 3.3 h, teacher 6.7 h."
    assert findings.headline([teacher], [student])[1:] == [told]
    alike = replace(student, bases=[replace(student.base, speech_hours=3.33)])
    assert len(findings.headline([], [alike])) == 1
    assert findings.headline([teacher], [alike])[1:] == [told.replace("10.0", "3.3")]
    unknown = replace(student, bases=[replace(student.base, speech_hours=0.0)])
    assert len(findings.headline([teacher], [unknown])) == 1


def test_the_headline_admits_chance_harm_and_seeds():
    (line,) = findings.headline([], [reduction(2.0, (-1.0, 5.0))])
    assert "2 % [-1, 5] fewer word errors" in line and "may be chance" in line
    (line,) = findings.headline([], [reduction(-10.0, (-15.0, -5.0))])
    assert "10 % [5, 15] more word errors" in line and "chance" not in line
    seeds = [make_record(system="distilled", wer=wer, seed=seed) for seed, wer in ((1, 18.0), (2, 16.0))]
    bases = [make_record(wer=20.0, seed=seed) for seed in (1, 2, 3)]
    (line,) = findings.headline([], [Reduction(seeds, bases[:2], 15.0, (-2.0, 30.0))])
    assert (
        "15 % [-2, 30] fewer" in line and "17.0 % against 20.0 % WER (means of 2 seeds); the interval holds 0" in line
    )
    (line,) = findings.headline([], [Reduction(seeds, bases, 15.0, None)])
    assert line.endswith("17.0 % against 20.0 % WER (seeds: 2 and 3).")
    (line,) = findings.headline([make_record()], [])
    assert line.replace("\u00a0", " ").startswith("baseline has 12.50 [11.00, 14.25] % WER on test-clean")


def test_the_best_seed_alone_is_not_what_a_system_has():
    whole = [
        make_record(system="teacher", mode="full", chunk_ms=None, wer=wer, seed=s) for s, wer in enumerate((2, 12, 16))
    ]
    other = make_record(system="other", mode="full", chunk_ms=None, wer=11.0)
    (line,) = findings.headline([*whole, other], [reduction(27.0)])
    assert line.endswith("teacher, which hears the whole utterance, has 10.0 %: 54 % of the gap is closed.")
    lucky = [make_record(system="lucky", wer=wer, seed=seed) for seed, wer in enumerate((1.0, 30.0))]
    (line,) = findings.headline([*lucky, make_record(system="steady", wer=12.0)], [])
    assert line.startswith("steady has 12.00")


def scores(system: str, wer: float, **changes) -> Record:
    return make_record(system=system, wer=wer, **changes)


IN_CHINESE = {"test_set": "zh", "unit": "char"}
WHOLE = {"mode": "full", "chunk_ms": None, "left_ms": None, "latency_ms": None}


def test_the_headline_is_of_every_test_set_whatever_was_counted_on_it():
    wers = {"baseline": (20.0, 20.0), "a": (19.0, 5.0), "b": (18.0, 40.0)}
    records = [
        record
        for system, (chinese, english) in wers.items()
        for record in (scores(system, chinese, **IN_CHINESE), scores(system, english, test_set="en"))
    ]
    chinese, english = findings.headline(records, compare({Path("results.json"): records}, "baseline"))
    assert chinese.startswith("a has 5 % fewer character errors than baseline at 160 ms on zh: 19.0 % against 20.0 %")
    assert english.startswith("a has 75 % fewer word errors than baseline at 160 ms on en: 5.0 % against 20.0 % WER")
    chinese, english = findings.headline(records, [])  # without a baseline
    assert chinese.startswith("b has 18.00") and "% CER on zh" in chinese
    assert english.startswith("a has 5.00") and "% WER on en" in english


def test_the_gap_is_between_rates_of_one_kind():
    teacher = [scores("teacher", 3.0, unit="char", **WHOLE), scores("teacher", 10.0, **WHOLE)]
    (line,) = findings.headline(teacher, [reduction(25.0)])
    assert line.endswith("teacher, which hears the whole utterance, has 10.0 %: 50 % of the gap is closed.")


def test_one_way_of_decoding_has_one_row_with_a_column_for_whatever_was_counted():
    records = [
        record
        for system in ("baseline", "new")
        for record in (
            scores(system, 12.5, **IN_CHINESE),
            scores(system, 20.0, test_set="en"),
            scores(system, 30.0, test_set="zh"),
        )
    ]
    header, rows = findings.wer_rows(records, [], "baseline")
    assert header[3:] == ["zh CER %", "zh WER %", "en WER %"]
    assert [[cell.split(" ")[0] for cell in row[3:]] for row in rows] == [["12.50", "30.00", "20.00"]] * 2


def test_seeds_share_a_row_with_their_mean_deviation_and_intervals():
    seeds = [trained(system, seed, noise) for system, noise in (("baseline", 0.5), ("new", 0.2)) for seed in (1, 2)]
    alone = trained("new", 3, 0.2, chunk_ms=320)
    (pooled,) = compare({Path("results.json"): [*seeds, alone]}, "baseline")
    header, rows = findings.wer_rows([*seeds, alone], [pooled], "baseline")
    assert header[:2] == ["system", "seeds"]
    (_, base), (name, new), (_, one) = ((row[0], row) for row in rows)
    assert (base[1], new[1], one[1]) == ("2", "2", "1") and name == "new" and base[-1] == one[-1] == ""
    mean, deviation = mean_and_deviation([record.wer for record in seeds[2:]])
    low, high = bootstrap_wer(*(record.score for record in seeds[2:] if record.score))
    assert new[3].replace("\u00a0", " ") == f"{mean:.2f} ± {deviation:.2f} [{low:.2f}, {high:.2f}]"
    assert new[4].replace("\u00a0", " ") == f"{pooled.percent:.1f} {interval_shown(pooled.interval or (0.0, 0.0))}"
    assert one[3].replace("\u00a0", " ") == wer_shown(alone)


def test_models_name_the_weights_that_their_training_began_with_where_one_did():
    tuned = make_record(system="tuned", begins_with="exp/distilled")
    header, rows = findings.model_rows([make_record(), tuned])
    assert header[3:6] == ["distilled", "begins with", "checkpoint"]
    assert [row[3:6] for row in rows] == [["none", "-", "epoch-30_avg-9"], ["none", "exp/distilled", "epoch-30_avg-9"]]
    header, rows = findings.model_rows([make_record()])
    assert "begins with" not in header and len(rows[0]) == len(header)
