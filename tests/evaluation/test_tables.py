"""Records as Markdown tables."""

from __future__ import annotations

from dataclasses import replace

from kdstream.evaluation import tables
from kdstream.evaluation.latency import COMPUTE, FRAME, MEASURES, SHOWN, Spread
from kdstream.evaluation.records import add_record
from kdstream.evaluation.tables import wer_table
from support.records import LATENCY, make_record


def test_table_has_a_row_per_way_of_decoding_and_a_column_per_test_set():
    records = [
        make_record(),
        make_record(test_set="test-other", wer=30.0, interval=(28.0, 32.0)),
        make_record(mode="chunkwise"),
    ]
    lines = wer_table(records).splitlines()
    assert len(lines) == 4
    assert (
        "test-clean WER %" in lines[0] and "test-other WER %" in lines[0] and lines[0].startswith("| system | seed |")
    )
    assert "| 12.50 [11.00, 14.25] | 30.00 [28.00, 32.00] | 100.00 | 2.50 |" in lines[2]
    assert "| 12.50 [11.00, 14.25] | - |" in lines[3]


def test_one_way_of_decoding_has_one_row_whatever_was_counted_on_a_test_set():
    in_chinese = make_record(test_set="zh", unit="char")
    records = [in_chinese, make_record(test_set="en"), replace(in_chinese, unit="word", wer=30.0)]
    header, _, row = wer_table(records).splitlines()
    assert "| search | zh CER % | zh WER % | en WER % | speech (h) |" in header
    assert "| 12.50 [11.00, 14.25] | 30.00 [11.00, 14.25] | 12.50 [11.00, 14.25] | 100.00 |" in row


def test_what_weights_alone_do_not_tell_of_their_training_is_a_dash():
    (row,) = wer_table([make_record(speech_hours=0.0, compute_hours=0.0)]).splitlines()[2:]
    assert row.endswith("| - | - |")


def test_table_tells_seeds_apart():
    lines = wer_table([make_record(), make_record(seed=7)]).splitlines()
    assert len(lines) == 4 and "| seed |" in lines[0] and "| 7 |" in lines[3]


def test_table_tells_checkpoints_apart():
    lines = wer_table([make_record(), make_record(checkpoint="epoch-5_avg-1", test_set="x")]).splitlines()
    assert [line.split(" | ")[7:9] for line in lines[2:]] == [
        ["12.50 [11.00, 14.25]", "-"],
        ["-", "12.50 [11.00, 14.25]"],
    ]


def test_table_tells_right_contexts_apart():
    lines = wer_table([make_record(), make_record(right_ms=80), make_record(right_ms=80, left_ms=-1)]).splitlines()
    assert [line.split(" | ")[5] for line in lines[2:]] == ["160 / 640", "160 + 80 / 640", "160 + 80 / all"]


def test_commands_are_listed_once():
    block = tables.commands_block([make_record(), make_record(test_set="x"), make_record(command="other.py")])
    assert block == "```bash\ndecode.py --exp-dir exp/baseline\nother.py\n```\n"


def test_latency_table_has_columns_for_what_was_measured_alone():
    full = make_record(mode="full", chunk_ms=None, left_ms=None, latency_ms=None)
    (row,) = tables.latency_rows([full, make_record()])  # full context has no latency to speak of
    assert list(row) == ["system", "test set", "mode", "chunk / left (ms)", "algorithmic"]
    assert row["algorithmic"] == 255
    teacher = replace(full, latency={FRAME: Spread(99, -80.4, -40.0, 0.0, 40.0)})
    rows = tables.latency_rows([teacher, make_record(latency=LATENCY), make_record(search="other")])
    assert [row["algorithmic"] for row in rows] == [None, 255, 255]
    assert [row["words"] for row in rows] == [99, None, None]
    assert [row[MEASURES[SHOWN].label] for row in rows] == [None, "151 (175 / 255 / 376)", None]
    assert [row[MEASURES[FRAME].label] for row in rows] == ["-80 (-40 / 0 / 40)", None, None]
    assert [row[MEASURES[COMPUTE].label] for row in rows] == [None, "8.5 (8.5 / 9.0 / 36.0)", None]
    assert "final text" not in rows[0] and "search" in rows[0] and "seed" not in rows[0]


def test_latencies_of_words_and_of_characters_are_told_apart():
    rows = tables.latency_rows([make_record(latency=LATENCY), make_record(latency=LATENCY, unit="char")])
    assert [row["counted"] for row in rows] == ["word", "char"] and "counted" in tables.latency_notes(rows)
    rows = tables.latency_rows([make_record(latency=LATENCY), make_record(latency=LATENCY, unit="word")])
    assert "counted" not in rows[0]


def test_every_column_of_measurements_is_explained_and_no_other():
    everything = {name: Spread(1, 1.0, 1.0, 1.0, 1.0) for name in MEASURES}
    rows = tables.latency_rows([make_record(latency=everything)])
    plain = {"system", "test set", "mode", "chunk / left (ms)"}
    assert set(tables.latency_notes(rows)) == set(rows[0]) - plain
    assert set(tables.latency_notes(tables.latency_rows([make_record()]))) == {"algorithmic"}


def test_published_records_show_their_latency_where_there_is_any(tmp_path):
    path = tmp_path / "run.json"
    add_record(path, make_record())
    assert "Latency" not in tables.render(path)
    add_record(path, make_record(mode="chunkwise", latency=LATENCY))
    text = tables.render(path)
    assert f"<summary>{tables.LATENCY_CELLS}</summary>" in text and "| 151 (175 / 255 / 376) |" in text
    assert text.index("test-clean WER %") < text.index("151 (175") < text.index("```bash")
    assert text.count("<details>") == text.count("</details>") == 2  # in Markdown, blank lines begin and end a table
    assert "</summary>\n\n| system" in text and "|\n\n</details>\n" in text
