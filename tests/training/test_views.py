"""Two SpecAugment views of a batch (CR-CTC): what a step computes on them, with and without a teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.data.batch import Batch
from kdstream.errors import UserError
from kdstream.kd.consistency import both_modes, view_consistency
from kdstream.kd.distiller import Distiller
from kdstream.kd.taps import Taps
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.models.streaming import ChunkConfig
from kdstream.training.start import check_views
from kdstream.training.step import StudentWithBranches
from support.models import CHEAP_FRONT_END, batch_of, random_batch, tiny_test_model
from support.recording import record
from support.training import experiment

CHUNK = ChunkConfig(8, 16)
TRAIN = TrainConfig(cr_ctc_scale=0.2)
SIZES = dict(encoder="conformer", use_ctc=True, **CHEAP_FRONT_END)
GUIDED = DistillConfig(
    kd_branch_feedforward_dim=32, kd_apc_dim=16, kd_token_scale=0.5, kd_ctc_scale=0.5, kd_warmup_batches=0,
    kd_token_shift="auto:2",
)  # fmt: skip
STEP = 10**6  # all weights have risen


def two_views() -> Batch:
    features, lens, (ids, token_lens, _) = random_batch((120, 90))
    noise = 0.3 * random_batch((120, 90), seed=1)[0]
    batch = batch_of(features, lens, ["a", "b"])
    batch.tokens, batch.token_lens, batch.second_view = ids, token_lens, features + noise
    return batch


def student_of(distiller: Distiller | None = None, causal: bool = True, modes=None, model=None) -> StudentWithBranches:
    model = model or tiny_test_model(causal, **SIZES)
    return StudentWithBranches(model, distiller, TRAIN, modes=modes and both_modes(modes, model)).eval()


@pytest.mark.parametrize("causal", [True, False], ids=["student", "teacher"])
def test_a_step_costs_the_mean_of_its_views_and_their_divergence(causal):
    student, batch, chunk = student_of(causal=causal), two_views(), CHUNK if causal else None
    total, losses = student(batch, chunk, STEP)
    alone = [student(view, chunk, STEP)[1] for view in batch.views()]
    assert losses.keys() == {*alone[0], "cr_ctc_loss"}
    for name in ("simple_loss", "pruned_loss", "ctc_loss"):
        torch.testing.assert_close(losses[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-5, atol=0)
    of_views = (alone[0]["loss"] + alone[1]["loss"]) / 2
    torch.testing.assert_close(total, of_views + 0.2 * losses["cr_ctc_loss"], rtol=1e-5, atol=0)
    assert losses["cr_ctc_loss"] > 0.01


def test_the_divergence_and_its_gradients_are_those_of_the_plain_form():
    """Of all utterances in both views, sum KL(other view, held fixed || this view) over valid frames, halved."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 7, 6, generator=generator).log_softmax(dim=2).requires_grad_()
    lens, taps = torch.tensor([7, 5, 7, 5]), Taps((), ctc=True)
    taps.record_ctc(lens, log_probs)
    loss = view_consistency(taps.ctc)
    frames = F.kl_div(log_probs, log_probs.detach().roll(2, dims=0), reduction="none", log_target=True).sum(dim=2)
    expected = 0.5 * frames[torch.arange(7) < lens.unsqueeze(1)].sum()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    ours, theirs = (torch.autograd.grad(x, log_probs)[0] for x in (loss, expected))
    # kl_div's gradient is that of log-probabilities; these are those of logits
    theirs = theirs - log_probs.exp() * theirs.sum(dim=2, keepdim=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours[1, 5:].abs().max() == 0 < ours[1, :5].abs().amax(dim=1).min()


def test_equal_views_cost_what_one_costs():
    student, batch = student_of(), two_views()
    batch.second_view = batch.features
    total, losses = student(batch, CHUNK, STEP)
    expected, alone = student(batch.views()[0], CHUNK, STEP)
    assert abs(losses.pop("cr_ctc_loss").item()) < 1e-5
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close({**losses, "loss": total.detach()}, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("hears", ["clean", "augmented", "cached"])
def test_each_view_learns_from_the_teacher_and_from_full_context(tmp_path, hears):
    model, teacher = tiny_test_model(True, **SIZES), TransducerTeacher(tiny_test_model(False, seed=1, **SIZES))
    batch = two_views()
    if hears == "clean":
        batch.clean_features = random_batch((120, 90), seed=2)[0]
    if hears == "cached":
        identity = fingerprint(teacher, {})
        CacheWriter(tmp_path, teacher, ["0.2"], "float16", identity).add(batch)
        teacher = CachedTeacher(teacher, tmp_path, identity)
    torch.manual_seed(0)
    distiller = Distiller(replace(GUIDED, kd_layers=("0.2",)) if hears == "cached" else GUIDED, model, teacher)
    if distiller.read_stored is not None:
        batch.stored = distiller.read_stored(batch)
    heard = []
    listen = teacher.listen
    teacher.listen = lambda *args: heard.append(args[0]) or listen(*args)
    modes = DistillConfig(full_context_scale=0.5, mode_consistency_scale=0.5, kd_warmup_batches=0)
    student = student_of(distiller, modes=modes, model=model)
    total, losses = student(batch, CHUNK, STEP)
    assert len(heard) == (2 if hears == "augmented" else 1)
    alone = [student(view, CHUNK, STEP) for view in batch.views()]
    expected = {name: (loss + alone[1][1][name]) / 2 for name, loss in alone[0][1].items() if name != "loss"}
    consistency = losses.pop("cr_ctc_loss")
    assert {"feature_loss", "apc_loss", "token_loss", "kd_ctc_loss", "ctc_shift"} <= expected.keys()
    assert {"full_context_loss", "mode_consistency_loss"} <= expected.keys()
    del losses["loss"]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(total, (alone[0][0] + alone[1][0]) / 2 + 0.2 * consistency, rtol=1e-4, atol=0)


def test_validation_is_of_one_view():
    student, batch = student_of(), two_views().views()[0]
    assert student(batch, CHUNK, None)[1].keys() == {"loss", "simple_loss", "pruned_loss", "ctc_loss"}


@pytest.mark.parametrize(
    "model, data, message",
    [
        (ModelConfig(), DataConfig(), "--cr-ctc-scale: compares posteriors of a CTC head; give --use-ctc 1"),
        (ModelConfig(use_ctc=True), DataConfig(enable_spec_aug=False), "SpecAugment's masks; give --enable-spec-aug 1"),
    ],
)
def test_what_it_needs_is_a_clear_error(model, data, message):
    with pytest.raises(UserError, match=message):
        check_views(ExperimentConfig(model=model, data=data, train=TRAIN))
    check_views(ExperimentConfig(model=model, data=data))


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_it_had_not_been_killed(tmp_path, data):
    def config(name: str, **train) -> ExperimentConfig:
        settings = dict(cr_ctc_scale=0.2, accum_grad=2, save_every_n=1, **train)
        whole = experiment(tmp_path / name, replace(data, enable_spec_aug=True), **settings)
        return replace(whole, model=replace(whole.model, use_ctc=True))

    expected = record(config("whole"))
    begun = record(config("killed"), kill_before=3)
    resumed = record(config("killed", resume=True))
    assert {**begun, **resumed} == expected and len(expected) > len(begun) > 0
