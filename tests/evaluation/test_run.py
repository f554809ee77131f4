"""decode.py and streaming_decode.py on an experiment directory with random weights and a test set of noise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lhotse
import pytest
import sentencepiece
import torch
from lhotse.supervision import AlignmentItem

from kdstream.checkpoints.average import CheckpointChoice, load_averaged
from kdstream.checkpoints.store import load_checkpoint, save_checkpoint, save_pretrained
from kdstream.config.command_line import read_flags
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.errors import UserError
from kdstream.evaluation import tables
from kdstream.evaluation.latency import FRAME
from kdstream.evaluation.records import Record, load_records
from kdstream.evaluation.scoring import read_recogs
from kdstream.lm.bigram import BIGRAM_FILE
from support.decoding import NOISE_CUTS, SCRIPTS, TEXTS, noise_test_set, run_script, talkative_model
from support.lm import random_bigram, tiny_lm
from support.paths import ROOT
from support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return noise_test_set(tmp_path_factory.mktemp("data"))


@pytest.fixture()
def exp_dir(tmp_path, data) -> Path:
    """Streaming student "distilled" after two epochs."""
    return make_exp_dir(tmp_path / "distilled", data, causal=True)


def make_aligned(folder: Path, recogs: Path, data: DataConfig) -> Path:
    """The cuts of "noise" with what was heard as their text, where that is something, every word of it ending at 0."""
    heard = {t.cut_id: t.hyp for t in read_recogs(recogs) if t.hyp}
    cuts = [cut for cut in lhotse.CutSet.from_file(Path(data.manifest_dir, NOISE_CUTS)) if cut.id in heard]
    for cut in cuts:
        (supervision,) = cut.supervisions
        supervision.text = " ".join(heard[cut.id])
        supervision.alignment = {"word": [AlignmentItem(word, 0.0, 0.0) for word in heard[cut.id]]}
    lhotse.CutSet.from_cuts(cuts).to_file(folder / "heard.jsonl.gz")
    return folder / "heard.jsonl.gz"


def make_exp_dir(folder: Path, data: DataConfig, causal: bool) -> Path:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=data.bpe_model)
    for epoch in (1, 2):
        model = talkative_model(causal, seed=epoch, vocab_size=tokenizer.get_piece_size(), chunk_size=(8, 16, -1))
        params = {
            "batch_idx_train": 10 * epoch,
            "average_period": 1,
            "speech_seconds_trained": 7200.0,
            "compute_seconds": 1800.0,
        }
        save_checkpoint(folder / f"epoch-{epoch}.pt", model, model_avg=model, params=params)
    distill = DistillConfig(teacher_exp_dir="teacher" if causal else "")
    ExperimentConfig(model.config, data, TrainConfig(exp_dir=str(folder), seed=7), distill).save(folder)
    return folder


def decode(monkeypatch, how: str, exp_dir: Path, *flags: Any) -> Record:
    """Runs a script that succeeds; returns the record that it added last."""
    assert run_script(monkeypatch, SCRIPTS[how], "--exp-dir", exp_dir, *flags) == ""
    return load_records(exp_dir / "results.json")[-1]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--decoding-method", "modified_beam_search"),
        ("--chunk-size", "16", "--left-context-frames", "64"),
        ("--right-context-frames", "8"),
    ],
    ids=str,
)
def test_both_scripts_write_the_same_hypotheses(exp_dir, monkeypatch, flags):
    simulated = decode(monkeypatch, "whole", exp_dir, *flags)
    chunkwise = decode(monkeypatch, "chunkwise", exp_dir, "--num-decode-streams", 2, *flags)
    first, second = (read_recogs(exp_dir / record.recogs) for record in (simulated, chunkwise))
    assert first == second
    assert [t.cut_id for t in first] == sorted(t.cut_id for t in first)
    assert {" ".join(t.ref) for t in first} == set(TEXTS)
    assert any(t.hyp for t in first)
    assert (simulated.mode, chunkwise.mode) == ("simulated", "chunkwise")
    assert simulated.wer == chunkwise.wer and simulated.search == chunkwise.search
    ahead = "--right-context-frames" in flags
    assert simulated.right_ms == chunkwise.right_ms == (160 if ahead else 0)
    assert simulated.latency_ms == simulated.chunk_ms + simulated.right_ms + 95
    assert all(("_right-context-8" in record.recogs) == ahead for record in (simulated, chunkwise))
    assert simulated.score.errors == simulated.errors == sum(simulated.utterance_errors)
    assert list(simulated.utterance_words) == [len(t.ref) for t in first]


@pytest.mark.parametrize(
    "init, named",
    [
        ({}, ""),
        ({"init_checkpoint": "exp/old"}, "exp/old"),
        ({"init_checkpoint": "a/b.pt", "init_modules": ("encoder_embed", "encoder")}, "a/b.pt: encoder_embed,encoder"),
    ],
)
def test_a_record_names_the_weights_that_training_began_with(exp_dir, monkeypatch, init, named):
    config = ExperimentConfig.load(exp_dir)
    replace(config, train=replace(config.train, **init)).save(exp_dir)
    assert decode(monkeypatch, "whole", exp_dir).begins_with == named


def test_hotwords_of_another_file_of_one_name_do_not_replace_results_in_silence(exp_dir, tmp_path, monkeypatch, capfd):
    inputs = set()
    for name, phrase in (("a", TEXTS[0]), ("b", TEXTS[0]), ("c", TEXTS[1])):
        path = tmp_path / name / "names.txt"
        path.parent.mkdir()
        path.write_text(f"{phrase}\n")
        beam = ("--decoding-method", "modified_beam_search", "--hotwords-file", path)
        record = decode(monkeypatch, "whole", exp_dir, *beam)
        inputs.add(record.inputs)
        assert ("is of other files of these names" in capfd.readouterr().err) == (name == "c")
    assert len(inputs) == 2 and "" not in inputs
    assert decode(monkeypatch, "whole", exp_dir).inputs == ""


def test_the_bigram_is_among_the_files_of_a_record_where_it_is_asked(exp_dir, data, tmp_path, monkeypatch):
    size = sentencepiece.SentencePieceProcessor(model_file=data.bpe_model).get_piece_size()
    save_pretrained(tmp_path / "lm", tiny_lm(size))
    inputs: dict[float, list[str]] = {0.0: [], -0.3: []}
    for seed in (0, 1):
        random_bigram(size, seed).save(tmp_path / "lm" / BIGRAM_FILE)
        for scale, found in inputs.items():
            beam = ("--decoding-method", "modified_beam_search", "--lm-exp-dir", tmp_path / "lm", "--lodr-scale", scale)
            found.append(decode(monkeypatch, "whole", exp_dir, *beam).inputs)
    assert [len(set(found)) for found in inputs.values()] == [1, 2]


def names_under(folder: Path) -> list[str]:
    return sorted(re.sub(r"\d{4}(-\d\d){5}$", "DATE", p.name) for p in folder.iterdir())


def test_files_of_decode_py_have_icefalls_names(exp_dir, monkeypatch):
    decode(monkeypatch, "whole", exp_dir, "--epoch", 2, "--avg", 1)
    suffix = "epoch-2_avg-1_chunk-8_left-context-32_context-2_max-sym-per-frame-1_use-averaged-model"
    assert names_under(exp_dir / "greedy_search") == [
        f"errs-noise-{suffix}.txt",
        f"log-decode-{suffix}-DATE",
        f"recogs-noise-{suffix}.txt",
        f"wer-summary-noise-{suffix}.txt",
    ]
    decode(monkeypatch, "whole", exp_dir, "--decoding-method", "modified_beam_search", "--use-averaged-model", 0)
    suffix = "epoch-2_avg-1_chunk-8_left-context-32__modified_beam_search__beam-size-4"
    assert f"recogs-noise-{suffix}.txt" in names_under(exp_dir / "modified_beam_search")
    summary = (exp_dir / "modified_beam_search" / f"wer-summary-noise-{suffix}.txt").read_text()
    assert summary.startswith("settings\tWER\nmodified_beam_search_beam-size-4\t")


def test_files_of_streaming_decode_py_have_icefalls_names(exp_dir, monkeypatch):
    decode(monkeypatch, "chunkwise", exp_dir)
    suffix = "epoch-2_avg-1_chunk-8_left-context-32-use-averaged-model"
    assert names_under(exp_dir / "streaming" / "greedy_search") == [
        f"errs-noise_greedy-search_{suffix}.txt",
        f"log-decode-{suffix}-DATE",
        f"recogs-noise_greedy-search_{suffix}.txt",
        f"wer-summary_noise_greedy-search_{suffix}.txt",
    ]
    decode(monkeypatch, "chunkwise", exp_dir, "--decoding-method", "modified_beam_search", "--beam-size", 2)
    files = names_under(exp_dir / "streaming" / "modified_beam_search")
    assert f"recogs-noise_num-active-paths-2_{suffix}.txt" in files


def test_a_record_tells_what_was_decoded_and_what_it_cost(exp_dir, monkeypatch):
    monkeypatch.chdir(ROOT)
    record = decode(monkeypatch, "chunkwise", exp_dir)
    assert (record.system, record.encoder, record.method, record.seed) == (
        "distilled",
        "zipformer small",
        "feature+apc",
        7,
    )
    assert (record.checkpoint, record.test_set, record.search) == ("epoch-2_avg-1", "noise", "greedy_search")
    assert (record.chunk_ms, record.left_ms, record.latency_ms) == (160, 640, 255)
    assert (record.speech_hours, record.compute_hours) == (2.0, 0.5)
    assert record.words == sum(len(text.split()) for text in TEXTS)
    assert record.errors == record.insertions + record.deletions + record.substitutions
    assert record.interval[0] <= record.wer <= record.interval[1]
    assert record.command == f"python egs/librispeech/streaming_decode.py --exp-dir {exp_dir}"
    weights = load_checkpoint(exp_dir / "epoch-2.pt")["model"]
    assert (
        0.99 * sum(w.numel() for w in weights.values()) < record.parameters <= sum(w.numel() for w in weights.values())
    )


@pytest.fixture()
def foreign(tmp_path) -> DataConfig:
    """The test set "noise" in Chinese, full width and case of another, with the tokens of its normalised texts."""
    data = noise_test_set(tmp_path)
    cuts = list(lhotse.CutSet.from_file(tmp_path / NOISE_CUTS))
    for cut, text in zip(cuts, ("今天天气很好", "我有ＯＫ手机", "今天 有天气", "好"), strict=True):
        cut.supervisions[0].text = text
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / NOISE_CUTS)
    tiny_tokenizer(Path(data.bpe_model), ["今天天气很好", "我有OK手机", "今天 有天气"], model_type="bpe")
    return data


def test_characters_are_scored_where_a_script_has_no_blanks(tmp_path, foreign, monkeypatch, capsys):
    exp_dir = make_exp_dir(tmp_path / "exp", foreign, causal=True)
    mixed = decode(monkeypatch, "whole", exp_dir)
    assert (mixed.unit, mixed.rate, mixed.words, mixed.normalisation) == ("mixed", "MER", 17, "nmt_nfkc, upper case")
    chars, words = (decode(monkeypatch, "whole", exp_dir, "--score-by", by) for by in ("char", "word"))
    assert (chars.unit, chars.words, words.unit, words.words) == ("char", 18, "word", 5)
    assert [r.unit for r in load_records(exp_dir / "results.json")] == ["mixed", "char", "word"]
    files = {record.unit: exp_dir / record.recogs for record in (mixed, chars, words)}
    assert len(set(files.values())) == 3 and files["char"].name.endswith("_score-by-char.txt")
    refs = {unit: {t.cut_id[:4]: t.ref for t in read_recogs(path)} for unit, path in files.items()}
    assert refs["mixed"]["utt1"] == ["我", "有", "OK", "手", "机"] and refs["char"]["utt1"] == list("我有OK手机")
    assert refs["word"]["utt2"] == ["今天", "有天气"]
    assert {unit: sum(map(len, some.values())) for unit, some in refs.items()} == {"mixed": 17, "char": 18, "word": 5}
    lines = re.findall(r"\[noise-greedy_search\] %(\w+) ([\d.]+)% \[\d+ / (\d+)", capsys.readouterr().err)
    assert [(rate, words) for rate, _, words in lines] == [
        *[("MER", "17"), ("CER", "18"), ("WER", "5")],  # of the first decoding
        *[("CER", "18"), ("WER", "5")],
        ("WER", "5"),
    ]
    assert mixed.other_rates == {"CER": chars.wer, "WER": words.wer} and chars.other_rates == {"WER": words.wer}
    assert words.other_rates == {} and load_records(exp_dir / "results.json")[0].other_rates == mixed.other_rates
    table = tables.wer_table([mixed])
    assert "| noise MER % |" in table and f"; CER {chars.wer:.2f}; WER {words.wer:.2f} |" in table


def test_delays_are_measured_on_characters(tmp_path, foreign, monkeypatch):
    exp_dir = make_exp_dir(tmp_path / "exp", foreign, causal=True)
    recogs = exp_dir / decode(monkeypatch, "chunkwise", exp_dir).recogs
    aligned = make_aligned(tmp_path, recogs, foreign)
    flags = ("--test-cuts", aligned, "--alignments", aligned)
    record = decode(monkeypatch, "chunkwise", exp_dir, *flags)
    assert record.errors == 0 and record.latency[FRAME].count == record.words > 10


def test_records_of_other_checkpoints_stay(exp_dir, monkeypatch):
    for flags in ((), ("--avg", 2), ("--epoch", 1), ("--use-averaged-model", 0), ("--avg", 2)):
        decode(monkeypatch, "whole", exp_dir, *flags)
    names = [record.checkpoint for record in load_records(exp_dir / "results.json")]
    assert names == ["epoch-2_avg-1", "epoch-1_avg-1", "epoch-2_avg-1_use-averaged-model-0", "epoch-2_avg-2"]


def test_a_bare_checkpoint_is_decoded_like_the_epochs_it_was_averaged_from(exp_dir, tmp_path, monkeypatch):
    averaged = decode(monkeypatch, "whole", exp_dir, "--epoch", 2, "--avg", 1)
    bare = tmp_path / "mine.pt"
    torch.save({"model": load_averaged(CheckpointChoice(exp_dir, epoch=2)).weights}, bare)
    record = decode(monkeypatch, "whole", exp_dir, "--checkpoint", bare)
    assert record.checkpoint == "mine" and "-mine_chunk-8" in record.recogs
    assert read_recogs(exp_dir / record.recogs) == read_recogs(exp_dir / averaged.recogs)


def test_a_teacher_is_decoded_in_full_context(tmp_path, data, monkeypatch):
    folder = make_exp_dir(tmp_path / "teacher", data, causal=False)
    record = decode(monkeypatch, "whole", folder, "--system", "the teacher", "--results-json", folder / "results.json")
    assert (record.system, record.mode, record.method, record.chunk_ms) == ("the teacher", "full", "none", None)
    assert "chunk" not in Path(record.recogs).name


def test_a_streaming_model_can_be_decoded_in_full_context(exp_dir, monkeypatch):
    record = decode(monkeypatch, "whole", exp_dir, "--chunk-size", -1)
    assert record.mode == "full" and "_chunk--1_left-context--1_" in record.recogs


@pytest.mark.parametrize(
    "how, flags, named",
    [
        (
            "whole",
            ("--chunk-size", 2),
            "chunk 2: not a multiple of 4, the largest downsampling factor; use --chunk-size 4,8",
        ),
        ("chunkwise", ("--chunk-size", 6, "--left-context-frames", 12), "chunk 6: not a multiple of 4"),
        ("chunkwise", ("--chunk-size", -1), "--chunk-size"),
        ("chunkwise", ("--left-context-frames", -1), "--left-context-frames"),
        ("whole", ("--left-context-frames", 12), "--left-context-frames"),
        ("whole", ("--epoch", 5), "epoch-5.pt"),
        ("whole", ("--checkpoint", "none.pt"), "none.pt: no such checkpoint"),
        ("whole", ("--decoding-method", "modified_beam_search", "--nbest", 5), "--nbest 5: --beam-size 4 has fewer"),
        ("whole", ("--test-parts", "nothing"), "librispeech_cuts_nothing"),
        ("whole", ("--bpe-model", "none.model"), "none.model"),
        ("whole", ("--device", "abacus"), "--device abacus"),
        ("whole", ("--alignments", "none.jsonl.gz"), "--alignments none.jsonl.gz"),
    ],
)
def test_bad_input_gets_one_line_and_no_record(exp_dir, monkeypatch, how, flags, named):
    error = run_script(monkeypatch, SCRIPTS[how], "--exp-dir", exp_dir, *flags)
    assert not list(exp_dir.rglob("recogs*"))  # known before anything is decoded
    assert error.startswith("error: ") and re.search(named, error) and "\n" not in error
    assert not (exp_dir / "results.json").exists()


def test_an_exp_dir_without_config_json_is_named(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        read_flags("", ["--exp-dir", str(tmp_path)])


def test_flags_go_before_config_json(exp_dir):
    config, decode = read_flags("", ["--exp-dir", str(exp_dir), "--test-parts", "a,b", "--max-duration", "5"])
    assert (config.data.test_parts, config.data.max_duration, config.data.num_workers) == (("a", "b"), 5.0, 0)
    assert decode.exp_dir == str(exp_dir)


def test_test_parts_on_the_command_line_go_before_test_cuts_in_config_json(exp_dir):
    config = ExperimentConfig.load(exp_dir)
    replace(config, data=replace(config.data, test_cuts=("old.jsonl.gz",))).save(exp_dir)
    assert read_flags("", ["--exp-dir", str(exp_dir)])[0].data.test_cuts == ("old.jsonl.gz",)
    assert read_flags("", ["--exp-dir", str(exp_dir), "--test-parts", "a"])[0].data.test_cuts == ()


@pytest.mark.parametrize(
    "flags, named",
    [
        ({"kd_relation_scale": 0.1}, "feature+relation+apc"),
        ({"init_from_teacher": True, "kd_token_scale": 0.5}, "init+feature+apc+token-full"),
        ({"kd_branch": "none"}, "direct-feature+apc"),
        ({"kd_branch": "none", "kd_token_scale": 0.5, "kd_ctc_scale": 0.5}, "direct-feature+apc+token-full+ctc"),
        ({"kd_branch": "none", "kd_feature_scale": 0, "kd_relation_scale": 0.1, "kd_apc_scale": 0}, "direct-relation"),
        (
            {"kd_feature_scale": 0, "kd_apc_scale": 0, "kd_token_scale": 0.5, "kd_branch": "none"},
            "token-full",
        ),
        (
            {"teacher_type": "kdstream,icefall", "teacher_losses": ("token", "token+apc"), "kd_token_scale": 0.5},
            "apc+token-full",
        ),
        ({"teacher_losses": ("apc",)}, "feature+apc"),  # of one teacher they have no effect
    ],
)
def test_the_method_names_the_losses_that_distilled(flags, named):
    assert DistillConfig(**flags).method == "none"
    assert DistillConfig(teacher_exp_dir="t", **flags).method == named
    assert DistillConfig(full_context_scale=1, **flags).method == "full-context"
    both = DistillConfig(teacher_exp_dir="t", full_context_scale=1, mode_consistency_scale=1, **flags)
    assert both.method == f"{named}+mode-consistency"


def test_corpora_with_parts_of_one_name_keep_their_own_results(monkeypatch, exp_dir, data, tmp_path):
    cuts = list(lhotse.CutSet.from_file(Path(data.manifest_dir, NOISE_CUTS)))
    paths = [tmp_path / corpus / "fbank" / "test.jsonl.gz" for corpus in ("ted", "swb")]
    for path, some in zip(paths, (cuts[:1], cuts[1:2]), strict=True):
        path.parent.mkdir(parents=True)
        lhotse.CutSet.from_cuts(some).to_file(path)
    decode(monkeypatch, "whole", exp_dir, "--epoch", 2, "--avg", 1, "--test-cuts", ",".join(map(str, paths)))
    assert [record.test_set for record in load_records(exp_dir / "results.json")] == ["ted-test", "swb-test"]
    flags = ("--epoch", 2, "--avg", 1, "--test-cuts")
    decode(monkeypatch, "whole", exp_dir, *flags, paths[0])
    message = run_script(monkeypatch, SCRIPTS["whole"], "--exp-dir", exp_dir, *flags, paths[1])
    assert "results.json: its results of test set test are of other cuts" in message
    assert len(load_records(exp_dir / "results.json")) == 3


@pytest.mark.parametrize("how", SCRIPTS)
def test_a_shar_directory_is_decoded_as_its_manifest(monkeypatch, exp_dir, data, tmp_path, how):
    manifest, shar = Path(data.manifest_dir, NOISE_CUTS), tmp_path / "noise-shar"
    shar.mkdir()
    lhotse.CutSet.from_file(manifest).to_shar(shar, fields={"recording": "flac"}, shard_size=1)
    flags = ("--epoch", 2, "--avg", 1, "--chunk-size", 8, "--left-context-frames", 32, "--test-cuts")
    expected, found = (decode(monkeypatch, how, exp_dir, *flags, path) for path in (manifest, shar))
    assert found.test_set == "noise-shar" and found.cuts == expected.cuts
    texts = [[t.hyp for t in read_recogs(exp_dir / record.recogs)] for record in (expected, found)]
    assert texts[0] == texts[1] and any(texts[0])
