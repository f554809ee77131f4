"""Utterances without tokens: what is learned from them, and that they change nothing for the others."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from kdstream.commands import cache_teacher
from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.data.cuts import iterate
from kdstream.data.module import AsrDataModule
from kdstream.decoding.greedy import GreedySearch
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.several import Member, SeveralDistillers, SeveralTeachers
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter
from kdstream.kd.unlabelled import check_unlabelled, tokens_with_guesses
from kdstream.models.streaming import output_lens
from kdstream.models.transducer import Tokens
from kdstream.training.metrics import FRAMES, LABELLED_FRAMES, MetricsTracker
from kdstream.training.process import train_experiment
from kdstream.training.step import StudentWithBranches, compute_loss
from support.distillation import CHUNK, SMALL
from support.models import batch_of, random_batch, tiny_test_model
from support.training import experiment, make_corpus

CPU = torch.device("cpu")
LENS, KNOWN = (120, 100, 90, 80), (0, 2)  # the others are unlabelled
TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
OF_TRANSDUCER = ("simple_loss", "pruned_loss", "ctc_loss")


def mixed(rows=(0, 1, 2, 3)) -> Batch:
    """These utterances of a batch of four, padded as in it."""
    features, lens, _ = random_batch(LENS)
    rows = list(rows)
    batch = batch_of(features[rows], lens[rows], [f"cut-{row}" for row in rows])
    ids, counts = torch.zeros(len(LENS), 4, dtype=torch.int64), torch.zeros(len(LENS), dtype=torch.int64)
    ids[list(KNOWN)], counts[list(KNOWN)] = TOKENS, torch.tensor([4, 3])
    return replace(batch, tokens=ids[rows], token_lens=counts[rows])


def talking(seed: int = 1) -> TransducerTeacher:
    """A teacher whose greedy search finds tokens."""
    model = tiny_test_model(causal=False, seed=seed, use_ctc=True)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = -0.1
    return TransducerTeacher(model)


def student_of(distill: DistillConfig, teacher=None) -> StudentWithBranches:
    torch.manual_seed(2)
    model = tiny_test_model(causal=True, use_ctc=True)
    distiller = Distiller(distill, model, teacher or talking())
    return StudentWithBranches(model, distiller, TrainConfig(), unlabelled=True).eval()


def losses_and_gradient(student: StudentWithBranches, batch: Batch):
    student.zero_grad()
    total, sums = compute_loss(student, batch, CHUNK, 10_000, CPU)
    total.backward()
    return sums, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


LAYERS_ALONE = replace(SMALL, kd_relation_scale=0.0)
WITH_TOKENS = replace(LAYERS_ALONE, kd_token_scale=1.0, kd_ctc_scale=0.5)


@pytest.mark.parametrize("distill", [LAYERS_ALONE, WITH_TOKENS])
def test_the_labelled_part_of_a_batch_gives_what_it_gives_alone(distill):
    student = student_of(distill)
    both, _ = losses_and_gradient(student, mixed())
    labelled, _ = losses_and_gradient(student, mixed(KNOWN))
    unlabelled, _ = losses_and_gradient(student, mixed([1, 3]))
    assert both[LABELLED_FRAMES] == labelled[FRAMES] == 30 + 22 and both[FRAMES] == 30 + 25 + 22 + 20
    for name in OF_TRANSDUCER:
        assert both[name].item() == pytest.approx(labelled[name].item(), rel=1e-5), name
        assert unlabelled[name] == 0
    of_teacher = set(student.distiller.scales)
    assert len(of_teacher) == (4 if distill is WITH_TOKENS else 2)
    for name in of_teacher:
        expected = labelled[name].item() + unlabelled[name].item()
        assert both[name].item() == pytest.approx(expected, rel=1e-4), name
        assert unlabelled[name] > 0


def test_gradients_of_a_mixed_batch_are_those_of_its_parts():
    student = student_of(WITH_TOKENS)
    _, both = losses_and_gradient(student, mixed())
    parts = [losses_and_gradient(student, mixed(rows))[1] for rows in (KNOWN, [1, 3])]
    for name, gradient in both.items():
        expected = sum(part.get(name, torch.zeros_like(gradient)) for part in parts)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max()), msg=name)
    # no token is learned from a guess: of the predictor's heads the transducer loss alone has a gradient
    alone = losses_and_gradient(student_of(LAYERS_ALONE), mixed([1, 3]))[1]
    assert all(float(gradient.abs().max()) == 0 for name, gradient in alone.items() if "lm_proj" in name)


def test_a_batch_in_which_all_are_labelled_is_as_without_the_flag():
    student = student_of(WITH_TOKENS)
    with_flag, gradients = losses_and_gradient(student, mixed(KNOWN))
    student.unlabelled = False
    without, expected = losses_and_gradient(student, mixed(KNOWN))
    assert {name: loss.item() for name, loss in with_flag.items() if name != LABELLED_FRAMES} == pytest.approx(
        {name: loss.item() for name, loss in without.items()}, rel=1e-6
    )
    assert gradients.keys() == expected.keys()


def test_the_lattice_of_an_unlabelled_utterance_is_that_of_what_the_teacher_hears(tmp_path):
    teacher, batch = talking(), mixed()
    CacheWriter(tmp_path, teacher, ["1.1", "2.0"], "float16", "of the test").add(batch)
    cached = CachedTeacher(teacher, tmp_path, "of the test")
    student = tiny_test_model(causal=True, use_ctc=True)
    heard = teacher.listen(batch, []).encoder_out
    search = GreedySearch()
    state = search.start(teacher.model, 4)
    said = [r.tokens for r in search.advance(teacher.model, heard, output_lens(batch.feature_lens), state).results()]
    assert len(said[1]) > 2 and said[1] != said[3]
    expected = [TOKENS[0].tolist(), said[1], TOKENS[1, :3].tolist(), said[3]]
    for one in (teacher, cached):
        alone = Distiller(WITH_TOKENS, student, one)
        silent = Member(LAYERS_ALONE, TransducerTeacher(tiny_test_model(causal=False)))
        two = SeveralDistillers(SeveralTeachers([silent, Member(WITH_TOKENS, one)]), student)
        for distiller in (alone, two):
            given = Tokens(batch.tokens, batch.token_lens), batch.token_lens
            tokens, host_lens, _ = tokens_with_guesses(batch, *given, distiller, distiller.student_taps())
            found = [ids[:n] for ids, n in zip(tokens.ids.tolist(), host_lens.tolist(), strict=True)]
            assert found == expected and torch.equal(tokens.lens, host_lens)
            assert tokens.known.tolist() == [True, False, True, False]


def test_transducer_losses_are_shown_per_labelled_frame():
    sums = {"loss": 8.0, "pruned_loss": 6.0, "feature_loss": 8.0, FRAMES: 4.0, LABELLED_FRAMES: 2.0}
    shown = {"loss": 2.0, "pruned_loss": 3.0, "feature_loss": 2.0, LABELLED_FRAMES: 0.5}
    assert dict(MetricsTracker(sums).means()) == shown
    none = MetricsTracker({**sums, "pruned_loss": 0.0, LABELLED_FRAMES: 0.0})
    assert dict(none.means()) == {"loss": 2.0, "feature_loss": 2.0, LABELLED_FRAMES: 0.0}


@pytest.mark.parametrize(
    "distill, message",
    [
        (DistillConfig(), "--unlabelled-cuts u.jsonl: nothing is learned from them without a teacher's losses"),
        (
            DistillConfig(teacher_exp_dir="exp", kd_feature_scale=0.0, kd_apc_scale=0.0, init_from_teacher=True),
            "nothing is learned from them without",
        ),
        (
            DistillConfig(teacher_exp_dir="exp", mode_consistency_scale=1.0),
            "--unlabelled-cuts u.jsonl: --mode-consistency-scale compares posteriors after tokens",
        ),
    ],
)
def test_what_cannot_be_learned_from_unlabelled_speech_is_a_clear_error(distill, message):
    config = ExperimentConfig(data=DataConfig(unlabelled_cuts=("u.jsonl",)), distill=distill)
    with pytest.raises(UserError, match=message):
        check_unlabelled(config)
    check_unlabelled(replace(config, data=DataConfig()))


def halves(tmp_path: Path, num_utterances: int = 12) -> DataConfig:
    """A corpus of which every second utterance is given as unlabelled, with texts that would be wrong."""
    data = make_corpus(tmp_path, num_utterances)
    cuts = list(CutSet.from_file(data.train_cuts[0]))
    paths = [str(tmp_path / f"{name}.jsonl.gz") for name in ("labelled", "unlabelled")]
    for cut in cuts[1::2]:
        cut.supervisions[0].text = "" if random.Random(cut.id).random() < 0.5 else "A A A"
    for path, some in zip(paths, (cuts[::2], cuts[1::2]), strict=True):
        CutSet.from_cuts(some).to_file(path)
    return replace(data, train_cuts=(paths[0],), unlabelled_cuts=(paths[1],), unlabelled_ratio=0.5)


def test_unlabelled_cuts_are_mixed_in_at_their_ratio_and_without_their_texts(tmp_path):
    data = halves(tmp_path)
    module = AsrDataModule(data, seed=0)
    batches = list(module.train_dataloader(1))
    texts = {cut_id: text for batch in batches for cut_id, text in zip(batch.cut_ids, batch.texts, strict=True)}
    empty = {cut_id for cut_id, text in texts.items() if not text}
    assert len(texts) == 12 and empty == {cut.id for cut in iterate(CutSet.from_file(data.unlabelled_cuts[0]))}
    assert all((batch.token_lens == 0).tolist() == [not text for text in batch.texts] for batch in batches)
    assert set(module.training_cut_ids()) == set(texts)
    fewer = AsrDataModule(replace(data, unlabelled_ratio=0.25), seed=0).train_dataloader(1)
    assert sum(text == "" for batch in fewer for text in batch.texts) == 2
    both = replace(data, pseudo_cuts=data.train_cuts, train_cuts=(str(tmp_path / "few.jsonl.gz"),))
    with pytest.raises(UserError, match="two cuts have the id"):
        list(AsrDataModule(both, seed=0).train_dataloader(1))
    with pytest.raises(UserError, match="--unlabelled-ratio 1: must lie between 0 and 1.*leave out --unlabelled-cuts"):
        list(AsrDataModule(replace(data, unlabelled_ratio=1.0), seed=0).train_dataloader(1))


def test_unlabelled_cuts_have_their_share_of_all_others_and_pseudo_labelled_ones_of_those_with_texts(tmp_path):
    data = halves(tmp_path)
    cuts = CutSet.from_file(data.train_cuts[0])
    pseudo, unlabelled = (str(tmp_path / name) for name in ("pseudo.jsonl.gz", "more.jsonl.gz"))
    CutSet.from_cuts(cut.with_id(f"pseudo-{cut.id}") for cut in iterate(cuts)).to_file(pseudo)
    CutSet.from_cuts(cut.with_id(f"{cut.id}-{n}") for n in range(4) for cut in iterate(cuts)).to_file(unlabelled)
    data = replace(data, pseudo_cuts=(pseudo,), pseudo_ratio=0.25, unlabelled_cuts=(unlabelled,), unlabelled_ratio=0.6)
    (ids, texts) = ([], [])
    for batch in AsrDataModule(data, seed=0).train_dataloader(1):
        ids += batch.cut_ids
        texts += batch.texts
    assert len(cuts) == 6 and sum(cut_id.startswith("pseudo-") for cut_id in ids) == 2  # a quarter of 6 + 2
    assert texts.count("") == 12  # six tenths of 6 + 2 + 12


def test_a_training_refuses_unlabelled_cuts_that_no_teacher_hears_before_it_looks_at_any(tmp_path):
    data = replace(halves(tmp_path), unlabelled_cuts=("nowhere.jsonl.gz",))
    with pytest.raises(UserError, match="--unlabelled-cuts nowhere.jsonl.gz: nothing is learned from them without"):
        train_experiment(experiment(tmp_path / "student", data))


@pytest.mark.slow
def test_a_training_on_unlabelled_cuts_live_and_cached(tmp_path):
    data = halves(tmp_path)
    teacher = experiment(tmp_path / "teacher", replace(data, unlabelled_cuts=()), causal=False, num_epochs=2)
    train_experiment(teacher)
    flags = ["--teacher-exp-dir", str(tmp_path / "teacher"), "--output", str(tmp_path / "cache")]
    cache_teacher.main([*flags, "--unlabelled-cuts", data.unlabelled_cuts[0]])
    distill = DistillConfig(
        teacher_exp_dir=str(tmp_path / "teacher"), kd_branch_feedforward_dim=32, kd_apc_dim=16, kd_token_scale=0.5,
        kd_warmup_batches=0, teacher_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    seen = []
    for name, one in (("cached", distill), ("live", replace(distill, teacher_cache=""))):
        config = experiment(tmp_path / name, data, num_epochs=1, save_every_n=1000)
        train_experiment(replace(config, distill=one))
        log = next((tmp_path / name / "log").glob("log-train-*")).read_text()
        assert "labelled_frames=0." in log and "pruned_loss=" in log and "nan" not in log
        saved = torch.load(tmp_path / name / "epoch-1.pt", weights_only=True)
        seen.append((saved["best_train_loss"], saved["batch_idx_train"]))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-2) and seen[0][1] == seen[1][1] > 2


@pytest.mark.slow
def test_two_processes_train_on_unlabelled_cuts(tmp_path):
    data = halves(tmp_path, 16)
    train_experiment(experiment(tmp_path / "teacher", replace(data, unlabelled_cuts=()), causal=False, num_epochs=1))
    from kdstream.training.dist import launch

    config = experiment(tmp_path / "student", data, num_epochs=1, world_size=2, master_port=12391)
    distill = DistillConfig(teacher_exp_dir=str(tmp_path / "teacher"), kd_token_scale=0.5, kd_warmup_batches=0)
    launch(train_experiment, replace(config, distill=distill))
    assert (tmp_path / "student" / "epoch-1.pt").exists()
