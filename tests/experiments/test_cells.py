"""One training and its decodings: their commands, what they leave, and flags with which they are refused."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import ModelConfig
from kdstream.errors import UserError
from kdstream.evaluation.records import add_record
from kdstream.experiments.cells import Cell, CommandLine, seen_from
from kdstream.experiments.flags import CHECKOUT_RECIPE, shared_flags
from kdstream.experiments.runner import run_cells
from support.checkpoints import make_model, save_model
from support.experiments import events, make_cell, make_recipe, run
from support.paths import ROOT
from support.training import make_corpus


@pytest.fixture()
def recipe(tmp_path) -> Path:
    return make_recipe(tmp_path / "egs" / "recipe")


def test_a_cell_is_trained_then_decoded_with_its_last_epoch(recipe):
    cell = make_cell(recipe, "a", "--seed", 7, decodings=(("decode", "--avg", "2"),))
    run([cell])
    assert [line[0] for line in events(recipe)] == ["train", "epoch", "epoch", "trained", "decode"]
    (command,) = cell.decode_commands()
    assert command.typed == "python decode.py --exp-dir exp/a --epoch 2 --avg 2"
    assert [(r.test_set, r.seed) for r in cell.records(command)] == [("clean", 7), ("other", 7)]
    (command,) = make_cell(recipe, "a", decodings=(("decode", "--epoch", "1"),)).decode_commands()
    assert command.typed == "python decode.py --exp-dir exp/a --epoch 1"


def test_an_experiment_that_exists_is_only_decoded(recipe):
    run([make_cell(recipe, "a", "--seed", 3)])
    decodings = (("decode", "--results-json", "exp/elsewhere.json"),)
    cell = make_cell(recipe, "a", train_flags=None, decodings=decodings)
    run([cell])
    (command,) = cell.decode_commands()
    assert command.flags[2:4] == ("--epoch", "2") and [r.seed for r in cell.records(command)] == [3, 3]
    assert cell.results_json(command) == recipe / "exp" / "elsewhere.json" and len(events(recipe, "train")) == 1
    (cell.folder / "epoch-3.pt").touch()  # trained further since
    assert cell.decode_commands()[0].flags[2:4] == ("--epoch", "3") and not cell.is_finished()
    with pytest.raises(UserError, match="nowhere.*--exp-dir"):
        run_cells([make_cell(recipe, "nowhere", train_flags=None)], 1)


def test_a_decoding_that_left_records_of_two_checkpoints_counts_once(recipe):
    cell = make_cell(recipe, "a")
    run([cell])
    (command,) = cell.decode_commands()
    for record in cell.records(command):
        add_record(cell.results_json(command), replace(record, checkpoint="epoch-9_avg-9", wer=1.0))
    assert [(r.test_set, r.wer) for r in cell.records(command)] == [("clean", 1.0), ("other", 1.0)]
    assert cell.is_finished()


def test_other_flags_in_a_used_directory_are_refused_before_anything_runs(recipe):
    run([make_cell(recipe, "a", "--seed", 1)])
    before = events(recipe)
    with pytest.raises(UserError, match="train-flags.txt.*--exp-root"):
        run_cells([make_cell(recipe, "new"), make_cell(recipe, "a", "--seed", 2)], 1)
    assert events(recipe) == before


def test_a_start_that_came_to_no_checkpoint_leaves_no_settings_behind(recipe):
    assert run_cells([make_cell(recipe, "a", "--base-lr", 666)], 1)
    folder = recipe / "exp" / "a"
    ExperimentConfig(model=ModelConfig(causal=True)).save(folder)  # as of a start that failed after that
    cell = make_cell(recipe, "a", "--base-lr", 0.1)
    cell.check_flags()
    cell.note_flags()
    assert not (folder / "config.json").exists()
    run([cell])
    assert "0.1" in (folder / "train-flags.txt").read_text()


def test_a_training_that_was_stopped_in_its_last_validation_is_not_finished(recipe):
    cell = make_cell(recipe, "a")
    path = cell.folder / "epoch-2.pt"
    for batch, is_trained in ((4, False), (0, True)):
        save_model(path, make_model(), sampler={"epoch": 2, "batch": batch})
        assert cell.is_trained() == is_trained
    path.write_bytes(b"")  # decoding will say that it is damaged
    assert cell.is_trained()


@pytest.mark.parametrize("flags", [("--beam", "3", "--chunk", "16"), ("--preset", "tiny")])
def test_flags_that_decoding_does_not_have_are_refused_before_anything_runs(recipe, flags):
    unknown = " ".join(flags[-2:])
    with pytest.raises(UserError, match=f"^{unknown}: decode has no such flag; "):
        run_cells([make_cell(recipe, "a"), make_cell(recipe, "b", decodings=(("decode", *flags),))], 1)
    assert events(recipe) == []


@pytest.mark.parametrize(
    "flags, problem",
    [
        ("--avg 3", "--epoch 2 --avg 3: averages more epochs than there are; lower --avg"),
        ("--epoch 3", "--epoch 3: there are 2 epochs; lower it"),
        ("--decoding-method modified_beam_search --nbest 8", "--nbest 8: --beam-size 4 has fewer paths"),
        ("--hotwords-file names.txt", "--hotwords-file names.txt: greedy_search takes no hotwords"),
    ],
)
def test_what_no_decoding_could_do_is_refused_before_anything_runs(recipe, flags, problem):
    with pytest.raises(UserError, match=problem):
        run_cells([make_cell(recipe, "a", decodings=(("decode", *flags.split()),))], 1)
    assert events(recipe) == []


@pytest.mark.parametrize("flag, instead", [("--exp-dir foo", "--exp-root"), ("--seed=7", "--seeds")])
def test_what_each_cell_has_for_itself_is_no_shared_flag(flag, instead):
    with pytest.raises(UserError, match=f"each cell has its own; leave it out, and give {instead}$"):
        shared_flags(f"--base-lr 0.1 {flag}")
    assert shared_flags("--base-lr 0.1") == ["--base-lr", "0.1"]
    with pytest.raises(argparse.ArgumentTypeError, match="^--system 'a b: no closing quotation$"):
        shared_flags("--system 'a b")


def test_a_command_is_the_recipes_script_where_it_has_one_and_else_kdstreams(recipe):
    decode, streaming = (CommandLine(recipe, name, ("--system", "a b")) for name in ("decode", "streaming-decode"))
    (recipe / "streaming_decode.py").unlink()
    assert decode.typed == "python decode.py --system 'a b'" and decode.arguments == ["decode.py", "--system", "a b"]
    assert streaming.typed == "kdstream streaming-decode --system 'a b'"
    assert streaming.arguments == ["-m", "kdstream", "streaming-decode", "--system", "a b"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["recipe", "elsewhere"])
def test_the_real_commands_make_a_finished_cell(tmp_path, monkeypatch, where):
    """The record has the command, the checkpoint and the test set that the runner looks for."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    recipe = CHECKOUT_RECIPE if where == "recipe" else tmp_path
    data = make_corpus(tmp_path, 6)
    cuts, bpe_model = (seen_from(recipe, Path(path)) for path in (data.train_cuts[0], data.bpe_model))
    flags = f"""--train-cuts {cuts} --valid-cuts {cuts} --test-cuts {cuts} --bpe-model {bpe_model} --num-workers 0
        --max-duration 10 --num-buckets 2 --enable-spec-aug 0 --num-epochs 1 --average-period 1 --tensorboard 0 --seed 5
        --causal 1 --num-encoder-layers 1,1 --downsampling-factor 1,2 --encoder-dim 32 --encoder-unmasked-dim 32
        --feedforward-dim 32 --cnn-module-kernel 15"""
    decoding = ("decode", "--system", "a b", "--chunk-size", "16")
    cell = Cell(recipe, seen_from(recipe, tmp_path / "exp"), tuple(flags.split()), (decoding,))
    run([cell])
    assert cell.is_finished()
    (record,) = cell.all_records()
    assert (record.system, record.seed, record.checkpoint, record.test_set) == ("a b", 5, "epoch-1_avg-1", "cuts")
    assert (record.chunk_ms, record.mode) == (320, "simulated")
    program = "python decode.py" if where == "recipe" else "kdstream decode"
    assert record.command.startswith(f"{program} --exp-dir ")
