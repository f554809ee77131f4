"""An exp-dir is at home anywhere: moved, renamed and without the data's directory it serves every command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kdstream.checkpoints.store import load_checkpoint
from kdstream.config.distillation import DistillConfig
from kdstream.config.sections import DataConfig
from kdstream.errors import UserError
from kdstream.evaluation.records import load_records
from kdstream.training.process import train_experiment
from support.decoding import run_script, write_noise
from support.training import experiment, make_corpus


@pytest.fixture
def moved(tmp_path: Path, monkeypatch) -> tuple[Path, DataConfig]:
    """A trained experiment that has been moved and renamed, the data without its tokenizer, and another directory."""
    data = make_corpus(tmp_path, num_utterances=6)
    lang = tmp_path / "lang"
    lang.mkdir()
    for name in ("bpe.model", "tokens.txt"):
        (tmp_path / name).rename(lang / name)
    begun = replace(data, bpe_model="lang/bpe.model")
    monkeypatch.chdir(tmp_path)
    config = experiment(Path("here/trained"), begun, max_train_batches=2, average_period=1, save_every_n=1)
    model = replace(config.model, use_ctc=True, frontend_channels=(4, 8, 128))  # align.py and export.py want these
    train_experiment(replace(config, model=model))
    (tmp_path / "there").mkdir()
    exp_dir = (tmp_path / "here" / "trained").rename(tmp_path / "there" / "renamed")
    shutil.rmtree(lang)
    monkeypatch.chdir(tmp_path / "there")
    return exp_dir, data


@pytest.mark.slow
def test_it_decodes_transcribes_aligns_and_exports(moved, monkeypatch, capsys) -> None:
    exp_dir, data = moved
    weights = ("--exp-dir", exp_dir, "--iter", "2")
    test = ("--test-cuts", data.test_cuts[0])
    assert run_script(monkeypatch, "egs/librispeech/decode.py", *weights, *test) == ""
    assert run_script(monkeypatch, "egs/librispeech/streaming_decode.py", *weights, *test) == ""
    assert [record.system for record in load_records(exp_dir / "results.json")] == ["renamed"] * 2
    assert run_script(monkeypatch, "local/align.py", *weights, *test) == ""
    assert (exp_dir / "alignments.jsonl.gz").is_file()
    audio = write_noise(exp_dir.parent / "noise.wav", 2.0)
    capsys.readouterr()
    assert run_script(monkeypatch, "egs/librispeech/transcribe.py", *weights, audio) == ""
    assert capsys.readouterr().out.startswith(f"{audio}: ")
    tokens = (exp_dir / "tokens.txt").read_bytes()
    assert run_script(monkeypatch, "egs/librispeech/export.py", *weights) == ""
    assert list(exp_dir.glob("encoder-iter-2-avg-1-chunk-8-left-16*.onnx"))
    assert (exp_dir / "tokens.txt").read_bytes() == tokens


@pytest.mark.slow
def test_it_teaches_a_student_of_the_same_tokens_and_no_other(moved, tmp_path: Path) -> None:
    exp_dir, data = moved
    (tmp_path / "mine").mkdir()
    for name in ("bpe.model", "tokens.txt"):
        shutil.copy(exp_dir / name, tmp_path / "mine" / name)
    (exp_dir / "checkpoint-2.pt").rename(exp_dir / "epoch-1.pt")
    distill = DistillConfig(teacher_exp_dir=str(exp_dir), kd_token_scale=1.0)
    mine = replace(data, bpe_model=str(tmp_path / "mine" / "bpe.model"))
    train_experiment(replace(experiment(tmp_path / "student", mine, max_train_batches=1), distill=distill))
    assert "token_loss" in load_checkpoint(tmp_path / "student" / "checkpoint-1.pt")["tot_loss"]
    tokens = tmp_path / "mine" / "tokens.txt"
    tokens.write_text(tokens.read_text().replace("A", "Z"))
    with pytest.raises(UserError, match=f"{exp_dir}: the teacher has another vocabulary .{exp_dir}/tokens.txt: its t"):
        train_experiment(replace(experiment(tmp_path / "other", mine), distill=distill))


@pytest.mark.slow
def test_it_goes_on_training(moved, monkeypatch) -> None:
    exp_dir, data = moved
    flags = ("--exp-dir", exp_dir, "--resume", "1", "--max-train-batches", "3")
    assert run_script(monkeypatch, "egs/librispeech/train.py", *flags) == ""
    assert load_checkpoint(exp_dir / "checkpoint-3.pt")["batch_idx_train"] == 3
