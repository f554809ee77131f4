"""Five kinds of things are added from outside by one table entry each; support/toys.py has the things."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from kdstream.checkpoints.store import save_pretrained
from kdstream.commands import bench_train_step, cache_teacher, decode, streaming_decode, train
from kdstream.config.decoding import SEARCHES, SearchConfig
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.flags import EXTENSIONS, flag, flags_of, with_settings
from kdstream.config.sections import DataConfig, ModelConfig
from kdstream.data.augment import TRANSFORMS, active_transforms
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.evaluation.records import load_records
from kdstream.evaluation.scoring import read_recogs
from kdstream.evaluation.tables import wer_table
from kdstream.export.onnx import export_onnx
from kdstream.kd.loss_table import LOSSES, LayerLoss
from kdstream.kd.teachers import TEACHERS, flags_without_effect
from kdstream.models.encoders import ENCODERS
from kdstream.models.presets import resolve
from kdstream.models.streaming import ChunkConfig, pad_to_whole_chunks
from kdstream.models.transducer import build_model
from kdstream.reporting.sources import losses_in
from support import toys
from support.data import batches_of
from support.decoding import SCRIPTS, noise_test_set, run_script, talkative_model
from support.models import difference, run_chunks, tiny_test_config
from support.paths import ROOT
from support.training import make_corpus

STEPS = 3
SMALL = (
    "--preset tiny --decoder-dim 64 --joiner-dim 64 --num-encoder-layers 1,1 --downsampling-factor 1,2 "
    "--encoder-dim 32 --encoder-unmasked-dim 32 --feedforward-dim 32"
)


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """The tables and settings are what they were after each test."""
    for table in (LOSSES, ENCODERS, TEACHERS, SEARCHES, TRANSFORMS):
        monkeypatch.setattr(table, "_entries", dict(table))
        monkeypatch.setattr(table, "settings", dict(table.settings))
    for section in (DistillConfig, ModelConfig, SearchConfig, DataConfig):
        monkeypatch.setitem(EXTENSIONS, section, dict(EXTENSIONS.get(section, {})))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> DataConfig:
    return make_corpus(tmp_path_factory.mktemp("corpus"), 12)


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory) -> Path:
    """An experiment with a Zipformer of random weights."""
    exp_dir = tmp_path_factory.mktemp("teacher")
    model = build_model(tiny_test_config(False, Tokenizer(corpus.bpe_model).vocab_size))
    save_pretrained(exp_dir, model)
    ExperimentConfig(model=model.config, data=corpus).save(exp_dir)
    return exp_dir


def train_flags(exp_dir: Path, corpus: DataConfig, *more: str) -> list[str]:
    """Of a training of a few steps that leaves a checkpoint."""
    flags = (
        f"--exp-dir {exp_dir} --train-cuts {corpus.train_cuts[0]} --valid-cuts {corpus.valid_cuts[0]} "
        f"--test-cuts {corpus.test_cuts[0]} --bpe-model {corpus.bpe_model} --max-duration 5 --num-buckets 2 "
        f"--num-workers 0 --enable-spec-aug 0 --causal 1 --max-train-batches {STEPS} --save-every-n {STEPS} "
        "--log-interval 1 --tensorboard 0"
    )
    return [*flags.split(), *(word for text in more for word in text.split())]


def run_python(*args: str) -> str:
    """What another process prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *args], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def losses_of(exp_dir: Path, name: str) -> list[float]:
    """The values of a loss that the steps of a training have logged."""
    (log,) = (exp_dir / "log").glob("log-train-*")
    return [float(value) for value in re.findall(rf"loss\[.*?\b{name}=([^,]+),.*?tot_loss", log.read_text())]


@pytest.mark.slow
def test_a_loss_is_trained_with_and_known_by_its_flags_method_warnings_plots_and_benchmark(tmp_path, corpus, teacher):
    toys.add_loss()
    exp_dir = tmp_path / "exp"
    train.main(train_flags(exp_dir, corpus, SMALL, f"--teacher-exp-dir {teacher} --kd-toy-scale 0.5 --kd-toy-power 2"))
    assert len(losses_of(exp_dir, "toy_loss")) == STEPS and all(loss > 0 for loss in losses_of(exp_dir, "toy_loss"))

    distill = ExperimentConfig.load(exp_dir).distill
    assert (distill.kd_toy_scale, distill.kd_toy_power, distill.method) == (0.5, 2.0, "feature+apc+toy")
    code = (
        f"from kdstream.config.experiment import ExperimentConfig as E; print(E.load({str(exp_dir)!r}).distill.method)"
    )
    assert run_python("-c", code).strip() == distill.method  # where nobody has added the loss

    in_vain = with_settings(distill, kd_toy_scale=0.0)
    assert flags_without_effect(distill) == [] and flags_without_effect(in_vain) == ["kd_toy_power"]
    present = {"system": {name: {} for name in ("loss", "toy_loss", "apc_loss", "another", "pruned_loss")}}
    assert losses_in(present) == ["pruned_loss", "apc_loss", "toy_loss", "another", "loss"]
    bench = tmp_path / "bench.json"
    flags = f"--memory 0 --repetitions 1 --max-duration 2 --utterance-seconds 1 --json {bench} {SMALL} --kd-toy-scale 1"
    bench_train_step.main(flags.split())
    assert [row["part"] for row in json.loads(bench.read_text())][-3:] == ["feature loss", "apc loss", "toy loss"]


def test_a_loss_alone_needs_no_part_of_a_branch(tmp_path, corpus, teacher):
    toys.add_loss()
    alone = "--kd-feature-scale 0 --kd-apc-scale 0 --kd-toy-scale 1"
    train.main(train_flags(tmp_path, corpus, SMALL, f"--teacher-exp-dir {teacher} {alone}"))
    branches = torch.load(tmp_path / f"checkpoint-{STEPS}.pt", weights_only=True)["branches"]
    assert {name.split(".")[2] for name in branches} == {"projection"}
    assert ExperimentConfig.load(tmp_path).distill.method == "toy"


def test_a_loss_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="loss light: has no weight; bring the setting kd_light_scale along"):
        LOSSES.add("light", LayerLoss(toys.toy_loss))


def test_the_scale_of_a_loss_that_nobody_added_is_refused():
    distill = DistillConfig(teacher_exp_dir="exp", extensions={"kd_gone_scale": 0.5})
    with pytest.raises(UserError, match="--kd-gone-scale 0.5: there is no such loss here; import the module"):
        flags_without_effect(distill)


@pytest.mark.slow
def test_an_encoder_is_trained_under_a_teacher_and_decoded_in_both_ways(tmp_path, corpus, teacher):
    toys.add_encoder()
    train.main(train_flags(tmp_path, corpus, f"--encoder toy --toy-kernel 4 --teacher-exp-dir {teacher}"))
    assert ExperimentConfig.load(tmp_path).model.toy_kernel == 4
    assert len(losses_of(tmp_path, "feature_loss")) == STEPS
    flags = ["--exp-dir", str(tmp_path), "--iter", str(STEPS), "--use-averaged-model", "0"]
    decode.main(flags)
    streaming_decode.main([*flags, "--num-decode-streams", "5"])
    records = load_records(tmp_path / "results.json")
    assert {(r.mode, r.encoder, r.method) for r in records} == {
        ("simulated", "toy tiny", "feature+apc"), ("chunkwise", "toy tiny", "feature+apc"),
    }  # fmt: skip
    assert len({r.wer for r in records}) == 1


@torch.no_grad()
@pytest.mark.parametrize("chunk", [ChunkConfig(2, 4), ChunkConfig(8, 32)], ids=str)
def test_an_encoder_chunk_by_chunk_equals_simulated_streaming(chunk):
    toys.add_encoder()
    model = build_model(resolve(ModelConfig(encoder="toy", preset="tiny", causal=True, vocab_size=30))).eval()
    padded, lens = pad_to_whole_chunks(torch.randn(2, 131, 80) * 3 - 6, torch.tensor([131, 90]), chunk.chunk)
    simulated, out_lens, _ = model.encode(padded, lens, chunk)
    chunkwise, _ = run_chunks(model, padded, chunk)
    for n, frames in enumerate(out_lens.tolist()):
        assert difference(simulated[n, :frames], chunkwise[n, :frames]) < 1e-5


def test_what_an_encoder_has_not_is_refused_by_flag(tmp_path, capsys):
    toys.add_encoder()
    with pytest.raises(SystemExit):
        train.main(["--encoder", "nonsense"])
    assert re.search("--encoder: invalid choice: 'nonsense' .*toy", capsys.readouterr().err)
    with pytest.raises(UserError, match="--toy-kernel: a zipformer has no such setting; leave it out"):
        resolve(with_settings(ModelConfig(), toy_kernel=5))
    with pytest.raises(UserError, match="--num-heads: a toy has no such setting"):
        resolve(ModelConfig(encoder="toy", num_heads=(2,)))
    model = build_model(resolve(ModelConfig(encoder="toy", causal=True, vocab_size=30)))
    with pytest.raises(UserError, match="--encoder toy: sherpa-onnx cannot run it"):
        export_onnx(model, ChunkConfig(8, 32), tmp_path, "toy")


def toy_teacher(folder: Path) -> str:
    """A file with the weights of one."""
    torch.save({"weight": torch.randn(80, 16, generator=torch.Generator().manual_seed(0))}, folder / "toy.pt")
    return f"--teacher-type toy --teacher-checkpoint {folder / 'toy.pt'}"


def refused(argv: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train.main(argv)


def test_a_type_of_teacher_is_learnt_from_and_refused_what_it_cannot_do(tmp_path, corpus, teacher):
    toys.add_teacher()
    flags = train_flags(tmp_path / "exp", corpus, SMALL, toy_teacher(tmp_path), "--kd-layers 1.0:0.0")
    train.main([*flags, "--teacher-toy-gain", "2", "--kd-relation-scale", "0.1"])
    for name in ("feature_loss", "relation_loss", "apc_loss"):
        assert len(losses_of(tmp_path / "exp", name)) == STEPS
    distill = ExperimentConfig.load(tmp_path / "exp").distill
    assert (distill.teacher_toy_gain, distill.method) == (2.0, "feature+relation+apc")
    assert flags_without_effect(distill) == []
    ours = replace(distill, teacher_type="kdstream", teacher_exp_dir=str(teacher), teacher_checkpoint="")
    assert flags_without_effect(ours) == ["teacher_toy_gain"]

    again = [*flags, "--exp-dir", str(tmp_path / "refused")]
    refused([*again, "--teacher-cache", "cache"], "--teacher-type toy: does not go with --teacher-cache")
    refused([*again, "--init-from-teacher", "1"], "--teacher-type toy: does not go with --init-from-teacher")
    refused([*again, "--kd-token-scale", "1"], "--kd-token-scale: this teacher writes no tokens")
    with pytest.raises(UserError, match="--teacher-type toy: such a teacher cannot be stored"):
        cache_teacher.main([*toy_teacher(tmp_path).split(), "--output", str(tmp_path / "cache")])


@pytest.fixture()
def exp_dir(tmp_path) -> Path:
    data = noise_test_set(tmp_path)
    vocab_size = Tokenizer(data.bpe_model).vocab_size
    model = talkative_model(causal=True, vocab_size=vocab_size, chunk_size=(8,))
    folder = tmp_path / "exp"
    folder.mkdir()
    ExperimentConfig(model.config, data).save(folder)
    save_pretrained(folder, model)
    return folder


@pytest.mark.slow
def test_both_commands_decode_with_a_search_under_its_own_name(exp_dir, monkeypatch):
    toys.add_sparse_search()
    flags = ("--exp-dir", exp_dir, "--decoding-method", "sparse_search", "--sparse-step", 3)
    for script in SCRIPTS.values():
        assert run_script(monkeypatch, script, *flags) == ""
    simulated, chunkwise = load_records(exp_dir / "results.json")
    assert simulated.search == chunkwise.search == "sparse_search_sparse-step-3"
    assert Path(simulated.recogs).parts == (
        "sparse_search",
        "recogs-noise-pretrained_chunk-8_left-context-32_sparse_search_sparse-step-3_use-averaged-model.txt",
    )
    assert Path(chunkwise.recogs).parts == (
        "streaming",
        "sparse_search",
        "recogs-noise_sparse_search_sparse-step-3_pretrained_chunk-8_left-context-32-use-averaged-model.txt",
    )
    first, second = (read_recogs(exp_dir / record.recogs) for record in (simulated, chunkwise))
    assert first == second and any(transcript.hyp for transcript in first)
    assert wer_table([simulated, chunkwise]).count("| sparse_search_sparse-step-3 |") == 2


def test_results_of_other_settings_of_a_search_stand_beside_each_other(exp_dir, monkeypatch):
    toys.add_sparse_search()
    for script in SCRIPTS.values():
        for step in (2, 3):
            flags = ("--exp-dir", exp_dir, "--decoding-method", "sparse_search", "--sparse-step", step)
            assert run_script(monkeypatch, script, *flags) == ""
    records = load_records(exp_dir / "results.json")
    assert [record.search for record in records] == ["sparse_search_sparse-step-2", "sparse_search_sparse-step-3"] * 2
    assert len({record.recogs for record in records}) == 4
    for folder in (exp_dir, exp_dir / "streaming"):
        for kind in ("recogs", "errs", "wer-summary"):
            assert len([*(folder / "sparse_search").glob(f"{kind}*")]) == 2


@pytest.mark.parametrize("of", ["greedy_search", "modified_beam_search", "ctc_greedy_search", "ctc_prefix_beam_search"])
def test_what_a_search_adds_to_one_of_ours_stands_in_all_its_names(of):
    @dataclass(frozen=True)
    class Careful(SEARCHES[of]):
        method = "careful_search"
        my_care: float = flag(0.5, "How careful it is.")
        my_lists: str = flag("", "Files that it reads.")
        my_steps: tuple[int, ...] = flag((), "Steps that it takes.")

    searches = (Careful(), Careful(my_care=2.0), Careful(my_lists="lists/a b.txt"), Careful(my_steps=(1, 2)))
    for names in (
        [search.name for search in searches],
        [search.streaming_name for search in searches],
        [search.file_suffix(2) for search in searches],
    ):
        assert len(set(names)) == 4 and not any(set("/ ()") & set(name) for name in names)
        assert "my-care-0.5" in names[0] and "my-care-2.0" in names[1] and "my-lists-lists-a-b.txt" in names[2]
        assert "my-steps-1,2" in names[3]


def test_the_flag_of_a_search_has_its_default_and_is_left_out_with_those_of_others(exp_dir, monkeypatch):
    toys.add_sparse_search()
    flags = ("--exp-dir", exp_dir, "--decoding-method", "sparse_search")
    assert run_script(monkeypatch, SCRIPTS["whole"], *flags) == ""
    (record,) = load_records(exp_dir / "results.json")
    assert record.search == "sparse_search_sparse-step-2"
    assert "sparse_step" in {item.name for item in flags_of(SearchConfig)}


def test_help_lists_a_search_with_its_flag(monkeypatch, capsys):
    toys.add_sparse_search()
    run_script(monkeypatch, SCRIPTS["whole"], "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "ctc_prefix_beam_search,sparse_search}" in shown
    assert "Frames from one at which sparse_search looks to the next. (default: 2)" in shown


def test_a_search_is_added_once():
    toys.add_sparse_search()
    with pytest.raises(ValueError, match="sparse"):
        toys.add_sparse_search()


def test_a_transform_changes_what_training_gets(corpus):
    toys.add_transform()
    config = with_settings(corpus, toy_gain=0.5)
    assert active_transforms(corpus) == [] and active_transforms(config) == ["louder"]
    for epoch in (1, 2):
        for before, after in zip(batches_of(corpus, epoch), batches_of(config, epoch), strict=True):
            assert before.cut_ids == after.cut_ids
            for x, y, length in zip(before.features, after.features, before.feature_lens, strict=True):
                assert difference(y[:length], x[:length] + 0.5 * epoch) < 1e-5


def test_training_takes_the_flag_of_a_transform(tmp_path, corpus):
    toys.add_transform()
    train.main(train_flags(tmp_path / "plain", corpus, SMALL))
    train.main(train_flags(tmp_path / "loud", corpus, SMALL, "--toy-gain 3"))
    assert ExperimentConfig.load(tmp_path / "loud").data.toy_gain == 3.0
    assert losses_of(tmp_path / "plain", "loss") != losses_of(tmp_path / "loud", "loss")


def test_the_examples_of_contributing_add_what_they_say(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), {"__name__": "my_train"})
    added = ("squares" in LOSSES, "my" in ENCODERS, "my" in TEACHERS, "my_search" in SEARCHES, "gain" in TRANSFORMS)
    assert all(added), added
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--kd-squares-scale", "--my-kernel", "--teacher-my-size", "--gain"))


@pytest.mark.slow
def test_the_loss_of_contributing_is_trained_with(tmp_path, corpus, teacher):
    block = re.search(r"### A loss.*?```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    script = tmp_path / "my_train.py"
    script.write_text(block[1])
    flags = train_flags(tmp_path / "exp", corpus, SMALL, f"--teacher-exp-dir {teacher} --kd-squares-scale 1")
    run_python(str(script), *flags)
    assert all(loss > 0 for loss in losses_of(tmp_path / "exp", "squares_loss"))
    assert ExperimentConfig.load(tmp_path / "exp").distill.method == "feature+apc+squares"
