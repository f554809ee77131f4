"""local/pseudo_label.py on teachers with random weights, and training on what it writes."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem
from matplotlib.image import imread

from kdstream.checkpoints.store import load_checkpoint, save_checkpoint
from kdstream.config.decoding import DecodeConfig
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.data.tokenizer import Tokenizer
from kdstream.decoding.search import Search
from kdstream.decoding.settings import choose_search
from kdstream.decoding.stream import decode_whole
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks
from kdstream.models.transducer import Transducer
from kdstream.training.process import train_experiment
from support.decoding import log_probs, run_script, talkative_model
from support.training import experiment, make_corpus

UNKNOWN = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """10 utterances with transcripts."""
    return make_corpus(tmp_path_factory.mktemp("corpus"), 10)


def make_teacher(folder: Path, data: DataConfig, causal: bool, **bias: float) -> Path:
    """An exp-dir of a talkative model; `bias` of <unk> and blank, by default without the former."""
    model = talkative_model(causal, vocab_size=Tokenizer(data.bpe_model).vocab_size)
    with torch.no_grad():
        model.joiner.output_linear.bias[1:3] = -100.0
        model.joiner.output_linear.bias[UNKNOWN] = bias.get("unknown", -100.0)
        model.joiner.output_linear.bias[0] = bias.get("blank", 2.0)
    params = {"batch_idx_train": 10, "average_period": 1}
    save_checkpoint(folder / "epoch-1.pt", model, model_avg=model, params=params)
    ExperimentConfig(model.config, data, TrainConfig(exp_dir=str(folder))).save(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"), data, causal=False)


def model_of(exp_dir: Path) -> Transducer:
    config = ExperimentConfig.load(exp_dir).model
    model = talkative_model(config.causal, vocab_size=config.vocab_size)
    model.load_state_dict(load_checkpoint(exp_dir / "epoch-1.pt")["model"])
    return model


def label(monkeypatch, exp_dir: Path, cuts: Any, output: Path, min_confidence: float, *flags: Any) -> list[MonoCut]:
    """Runs the script, which succeeds, and reads what it wrote."""
    arguments = ("--exp-dir", exp_dir, "--cuts", cuts, "--output", output, "--min-confidence", min_confidence)
    assert run_script(monkeypatch, "local/pseudo_label.py", *arguments, *flags) == ""
    return list(CutSet.from_file(output))


@torch.no_grad()
def slow_labels(
    model: Transducer, data: DataConfig, chunk: ChunkConfig | None, search: Search
) -> dict[str, tuple[str, float | None]]:
    """By cut: text and confidence, from the log-softmax at each symbol that was emitted, one utterance at a time."""
    tokenizer, labels = Tokenizer(data.bpe_model), {}
    for cut in CutSet.from_file(data.test_cuts[0]):
        features = torch.from_numpy(cut.load_features()).unsqueeze(0)
        lens = torch.tensor([features.size(1)])
        result = decode_whole(model, features, lens, chunk, search)[0]
        padded, padded_lens = pad_to_whole_chunks(features, lens, chunk.chunk if chunk else model.max_downsampling)
        encoder_out = model.encode(padded, padded_lens, chunk)[0][0]
        total = 0.0
        for place, (token, time) in enumerate(zip(result.tokens, result.timestamps, strict=True)):
            total += float(log_probs(model, encoder_out[time], tuple(result.tokens[:place]))[token])
        text = tokenizer.decode(result.tokens)
        labels[cut.id] = text, math.exp(total / len(result.tokens)) if text else None
    return labels


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
@pytest.mark.parametrize("causal", [False, True], ids=["full-context", "chunks"])
def test_kept_are_the_cuts_whose_confidence_by_a_slow_reference_reaches_the_threshold(
    tmp_path, monkeypatch, data, causal, method
):
    teacher = make_teacher(tmp_path / "exp", data, causal)
    chunk = ChunkConfig(8, 32) if causal else None
    expected = slow_labels(model_of(teacher), data, chunk, choose_search(DecodeConfig(decoding_method=method)))
    ranked = sorted(confidence for _, confidence in expected.values() if confidence is not None)
    threshold = (ranked[4] + ranked[5]) / 2
    flags = ("--decoding-method", method, "--max-duration", 4)
    cuts = label(monkeypatch, teacher, data.test_cuts[0], tmp_path / "pseudo.jsonl.gz", threshold, *flags)
    assert {cut.id for cut in cuts} == {name for name, (_, c) in expected.items() if c is not None and c >= threshold}
    assert 0 < len(cuts) == len(ranked) - 5
    for cut in cuts:
        text, confidence = expected[cut.id]
        assert cut.supervisions[0].text == text
        assert cut.supervisions[0].custom["confidence"] == pytest.approx(confidence, rel=1e-3)
        assert 0 < confidence <= 1


@pytest.mark.slow
def test_a_higher_threshold_keeps_a_part_of_what_a_lower_one_does(tmp_path, monkeypatch, data, teacher):
    everything = label(monkeypatch, teacher, data.test_cuts[0], tmp_path / "0.jsonl", 0)
    confidences = sorted(cut.supervisions[0].custom["confidence"] for cut in everything)
    kept = {cut.id for cut in everything}
    assert kept == {cut.id for cut in CutSet.from_file(data.test_cuts[0])}
    for threshold in (confidences[3], confidences[7]):
        fewer = {cut.id for cut in label(monkeypatch, teacher, data.test_cuts[0], tmp_path / "t.jsonl", threshold)}
        assert fewer < kept
        kept = fewer


@pytest.mark.slow
def test_the_hypothesis_replaces_the_text_and_all_else_stays(tmp_path, monkeypatch, data, teacher):
    given = list(CutSet.from_file(data.test_cuts[0]))
    given[0].custom = {"quality": "good"}
    given[0].supervisions[0].speaker = "bob"
    given[0].supervisions[0].custom = {"room": "kitchen"}
    given[0].supervisions[0].alignment = {"word": [AlignmentItem("A", 0.0, 0.1)]}
    given[0].supervisions[0].duration = 0.2
    for cut in given[1:]:
        cut.supervisions = []
    CutSet.from_cuts(given).to_file(tmp_path / "given.jsonl.gz")
    cuts = label(monkeypatch, teacher, tmp_path / "given.jsonl.gz", tmp_path / "new" / "pseudo.jsonl.gz", 0)
    labelled = {cut.id: cut for cut in cuts}
    assert len(cuts) == len(labelled) == len(given)
    assert [cut.id for cut in cuts] != sorted(labelled, key=lambda name: -labelled[name].duration)
    for cut in given:
        ours = labelled[cut.id]
        assert (ours.features, ours.duration, ours.custom) == (cut.features, cut.duration, cut.custom)
        assert (ours.load_features() == cut.load_features()).all()
        supervision = ours.supervisions[0]
        assert len(ours.supervisions) == 1 and supervision.text and supervision.alignment is None
        assert (supervision.start, supervision.duration) == (0.0, cut.duration)
    first = labelled[given[0].id].supervisions[0]
    assert first.text != given[0].supervisions[0].text
    assert (first.id, first.speaker, first.custom["room"]) == (given[0].supervisions[0].id, "bob", "kitchen")
    again = label(monkeypatch, teacher, tmp_path / "given.jsonl.gz", tmp_path / "again.jsonl.gz", 0)
    assert again == cuts


@pytest.mark.slow
def test_it_prints_what_it_kept_and_error_rates_where_there_are_transcripts(
    tmp_path, monkeypatch, caplog, data, teacher
):
    given = list(CutSet.from_file(data.test_cuts[0]))
    cuts = label(monkeypatch, teacher, data.test_cuts[0], tmp_path / "pseudo.jsonl.gz", 0)
    threshold = sorted(cut.supervisions[0].custom["confidence"] for cut in cuts)[-3]
    caplog.set_level(logging.INFO)
    caplog.clear()
    label(monkeypatch, teacher, data.test_cuts[0], tmp_path / "pseudo.jsonl.gz", threshold)
    printed = caplog.text
    hours = sum(cut.duration for cut in given) / 3600
    assert "3 of 10 cuts kept (" in printed and f"of {hours:.2f} h)" in printed
    kept_words, all_words = (
        sum(len(cut.supervisions[0].text.split()) for cut in given if cut.id in {other.id for other in some})
        for some in (CutSet.from_file(tmp_path / "pseudo.jsonl.gz"), given)
    )
    assert f" / {kept_words}," in printed.split("[kept] %WER")[1].splitlines()[0]
    assert f" / {all_words}," in printed.split("[all] %WER")[1].splitlines()[0]
    assert imread(tmp_path / "pseudo.png").std() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pseudo.dropped.json", "pseudo.jsonl.gz", "pseudo.png"]

    for cut in given:
        cut.supervisions = []
    CutSet.from_cuts(given).to_file(tmp_path / "given.jsonl.gz")
    caplog.clear()
    label(monkeypatch, teacher, tmp_path / "given.jsonl.gz", tmp_path / "pseudo.jsonl.gz", threshold)
    printed = caplog.text
    assert "3 of 10 cuts kept (" in printed and "WER" not in printed


@pytest.mark.parametrize("bias", [{"blank": 1000.0}, {"unknown": 1000.0}], ids=["silence", "unknown"])
def test_a_hypothesis_without_a_text_is_left_out_at_any_threshold(tmp_path, monkeypatch, data, bias):
    teacher = make_teacher(tmp_path / "exp", data, causal=False, **bias)
    output = tmp_path / "pseudo.jsonl.gz"
    output.write_bytes(b"of before")
    arguments = ("--exp-dir", teacher, "--cuts", data.test_cuts[0], "--output", output, "--min-confidence", 0)
    error = run_script(monkeypatch, "local/pseudo_label.py", *arguments)
    assert error.startswith("error: --min-confidence 0: no cut reaches it") and "\n" not in error
    assert str(tmp_path / "pseudo.png") in error and (tmp_path / "pseudo.png").exists()
    assert output.read_bytes() == b"of before"


def test_cuts_that_cannot_be_labelled_are_named(tmp_path, monkeypatch, data, teacher):
    cut, other = list(CutSet.from_file(data.test_cuts[0]))[:2]
    double = replace(cut, supervisions=[*cut.supervisions, SupervisionSegment("b", cut.id, 0, 0.1, text="B")])
    spoilt = {
        f"two cuts have the id {cut.id}": [cut, cut],
        f"cut {cut.id} is a mix": [cut.mix(other, preserve_id="left")],
        f"cut {cut.id}: 2 supervisions": [double],
    }
    for expected, cuts in spoilt.items():
        CutSet.from_cuts(cuts).to_file(tmp_path / "given.jsonl.gz")
        arguments = ("--exp-dir", teacher, "--cuts", tmp_path / "given.jsonl.gz", "--output", tmp_path / "x.jsonl.gz")
        error = run_script(monkeypatch, "local/pseudo_label.py", *arguments)
        assert error.startswith("error: ") and expected in error and "\n" not in error
    assert not (tmp_path / "x.jsonl.gz").exists()


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("--output", "pseudo.json", "--output pseudo.json: must be named"),
        ("--output", "given.jsonl", "--output given.jsonl: is what --cuts names"),
        ("--cuts", "nowhere.jsonl", "nowhere.jsonl: no such manifest"),
        (
            "--cuts",
            "empty.jsonl,empty.jsonl",
            "empty.jsonl,empty.jsonl: no such manifest; only one is taken here: lhotse combine empty.jsonl empty.jsonl",
        ),
        ("--cuts", "empty.jsonl", "empty.jsonl: holds no cuts"),
        ("--exp-dir", "nowhere", "nowhere/config.json: no such file"),
        ("--model", "whisper", "--model whisper: is not read by --labeller teacher; add --labeller faster-whisper"),
    ],
)
def test_bad_flags_are_named_in_one_line(tmp_path, monkeypatch, teacher, flag, value, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    flags = {"--exp-dir": teacher, "--cuts": "given.jsonl", "--output": "pseudo.jsonl", flag: value}
    error = run_script(monkeypatch, "local/pseudo_label.py", *(text for item in flags.items() for text in item))
    assert error.startswith(f"error: {expected}") and "\n" not in error


@pytest.mark.slow
@pytest.mark.parametrize("distilled", [False, True], ids=["plain", "distilled"])
def test_a_student_trains_on_what_the_teacher_labelled(tmp_path, monkeypatch, data, teacher, distilled):
    pseudo = tmp_path / "pseudo.jsonl.gz"
    count = len(label(monkeypatch, teacher, data.test_cuts[0], pseudo, 0))
    labelled = [cut.with_id(f"labelled-{cut.id}") for path in data.valid_cuts for cut in CutSet.from_file(path)]
    CutSet.from_cuts(labelled).to_file(tmp_path / "labelled.jsonl.gz")  # a corpus of its own has ids of its own
    train = (str(tmp_path / "labelled.jsonl.gz"),)
    mixed = replace(data, train_cuts=train, pseudo_cuts=(str(pseudo),), pseudo_ratio=count / (count + 4))
    config = experiment(tmp_path / "student", mixed, num_epochs=1)
    if distilled:
        config = replace(config, distill=DistillConfig(teacher_exp_dir=str(teacher)))
    train_experiment(config)
    saved = load_checkpoint(tmp_path / "student" / "epoch-1.pt")
    seconds = sum(cut.duration for path in (pseudo, *data.valid_cuts) for cut in CutSet.from_file(path))
    assert saved["speech_seconds_trained"] == pytest.approx(seconds)
    assert math.isfinite(saved["best_train_loss"])
    assert bool(saved["branches"]) == distilled
