"""Distillation of CTC posteriors: values and gradients against plain forms, shifts, caches, and clear errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdstream.config.distillation import DistillConfig
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.taps import Taps, padding_mask
from kdstream.kd.teacher import Teacher, TransducerTeacher
from kdstream.kd.teacher_cache import CachedTeacher, CacheWriter, fingerprint
from kdstream.kd.token_shift import delayed
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import pad_to_whole_chunks
from kdstream.models.transducer import Tokens, Transducer
from support.distillation import CHUNK
from support.models import CHEAP_FRONT_END, batch_of, random_batch, tiny_test_model

CTC = DistillConfig(kd_feature_scale=0.0, kd_apc_scale=0.0, kd_ctc_scale=1.0)
SIZES = dict(encoder="conformer", use_ctc=True, **CHEAP_FRONT_END)


def student_of(**sizes) -> Transducer:
    return tiny_test_model(True, **{**SIZES, **sizes})


def teacher_of(**sizes) -> TransducerTeacher:
    return TransducerTeacher(tiny_test_model(False, seed=1, **{**SIZES, **sizes}))


def spoken(rows=slice(None)):
    """Features, lengths and tokens of some of two utterances: the same of each, alone or not."""
    features, lens, (ids, token_lens, _) = random_batch((120, 89))
    features, lens = pad_to_whole_chunks(features[rows, : lens[rows].max()], lens[rows], CHUNK.chunk)
    return features, lens, Tokens(ids[rows], token_lens[rows])


def distil(student: Transducer, teacher: Teacher, config: DistillConfig = CTC, batch=None):
    """The losses of the two utterances or of another batch, and what was recorded."""
    features, lens, tokens = batch or spoken()
    distiller = Distiller(config, student, teacher)
    taps = distiller.student_taps()
    student(features, lens, tokens, CHUNK, LossSettings(), taps=taps)
    return distiller(batch_of(features, lens, ["a", "b"][: len(lens)]), taps), taps


def posteriors(student: Transducer, teacher: TransducerTeacher):
    """Log posteriors of teacher and student, (N, T, V), and the valid frames (N, T) of the batch of `distil`."""
    features, lens, _ = spoken()
    out, out_lens, _ = student.encode(features, lens, CHUNK)
    heard = teacher.listen(batch_of(features, lens), ()).encoder_out[:, : out.size(1)]
    return teacher.ctc_log_probs(heard), student.ctc_output(out), ~padding_mask(out_lens, out.size(1))


@pytest.mark.parametrize("shift", [0, 3])
def test_loss_and_gradients_are_those_of_the_plain_form(shift):
    student, teacher = student_of(), teacher_of()
    losses, _ = distil(student, teacher, replace(CTC, kd_token_shift=shift))
    assert losses.keys() == {"kd_ctc_loss"}
    theirs, ours, valid = posteriors(student, teacher)
    valid[:, :shift] = False
    frames = F.kl_div(ours, delayed(theirs, shift), reduction="none", log_target=True).sum(dim=2)
    expected = frames[valid].sum()
    torch.testing.assert_close(losses["kd_ctc_loss"], expected, rtol=1e-5, atol=0)
    weight = student.ctc_output[1].weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (losses["kd_ctc_loss"], expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * float(gradients[1].abs().max()))
    assert expected.item() > 0.1


@pytest.mark.parametrize("delay", [0, 2, 4])
@pytest.mark.parametrize("auto", [False, True])
def test_a_student_that_says_what_the_teacher_said_costs_nothing(delay, auto):
    """At a fixed shift by as much as it is later, and with auto, which finds it."""
    student, teacher = student_of(), teacher_of()
    config = replace(CTC, kd_token_shift="auto:4" if auto else delay)
    theirs, _, valid = posteriors(student, teacher)
    late = delayed(theirs, delay).requires_grad_()
    features, lens, _ = spoken()
    distiller, taps = Distiller(config, student, teacher), Taps((), ctc=True)
    taps.record_ctc(valid.sum(dim=1), late)
    losses = distiller(batch_of(features, lens), taps)
    losses["kd_ctc_loss"].backward()
    assert abs(losses["kd_ctc_loss"].item()) < 1e-5 and float(late.grad.abs().max()) < 1e-6
    if auto:
        assert float(losses["ctc_shift"]) == delay * float((lens // 4).sum())


@pytest.mark.parametrize("shift", [2, "auto:3"])
def test_a_batch_costs_the_sum_of_its_utterances(shift):
    student, teacher, config = student_of(), teacher_of(), replace(CTC, kd_token_shift=shift)
    together, taps = distil(student, teacher, config)
    alone = [distil(student, teacher, config, spoken(slice(n, n + 1)))[0] for n in range(2)]
    for name, loss in together.items():
        assert float(loss) == pytest.approx(sum(float(one[name]) for one in alone), rel=1e-4), name
    (gradient,) = torch.autograd.grad(together["kd_ctc_loss"], taps.ctc.logits)
    lens = taps.ctc.encoder_lens.tolist()
    assert lens[1] < lens[0] and gradient[1, lens[1] :].abs().max() == 0
    assert gradient[1, 3 : lens[1]].abs().amax(dim=(1, 2)).min() > 0


@pytest.mark.parametrize("storage, tolerance", [("float16", 1e-3), ("int8", 1e-2)])
def test_a_cached_teacher_gives_the_losses_of_a_live_one(tmp_path, storage, tolerance):
    student, teacher, config = student_of(), teacher_of(), replace(CTC, kd_token_shift="auto:3")
    identity = fingerprint(teacher, {})
    spoken = random_batch((120, 89))
    CacheWriter(tmp_path, teacher, (), storage, identity).add(batch_of(*spoken[:2], ["a", "b"]))
    teachers = teacher, CachedTeacher(teacher, tmp_path, identity)
    live, cached = (distil(student, one, config, spoken)[0] for one in teachers)
    assert live.keys() == cached.keys() == {"kd_ctc_loss", "ctc_shift"}
    assert float(cached["ctc_shift"]) == float(live["ctc_shift"])
    assert float(cached["kd_ctc_loss"]) == pytest.approx(float(live["kd_ctc_loss"]), rel=tolerance)


def test_with_a_scale_of_0_nothing_is_asked_for_and_beside_tokens_each_keeps_its_value():
    student, teacher = student_of(), teacher_of()
    tokens = replace(CTC, kd_ctc_scale=0.0, kd_token_scale=1.0)
    without, taps = distil(student, teacher, tokens)
    assert without.keys() == {"token_loss"} and taps.ctc is None and taps.lattice is not None
    alone, taps = distil(student, teacher)
    assert taps.lattice is None  # the transducer loss then takes the faster way of a CPU
    both, _ = distil(student, teacher, replace(tokens, kd_ctc_scale=1.0))
    assert both.keys() == {"token_loss", "kd_ctc_loss"}
    torch.testing.assert_close(both, {**without, **alone}, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        (False, True, "--kd-ctc-scale: the student has no CTC head; give --use-ctc 1"),
        (True, False, "--kd-ctc-scale: the teacher has no CTC head; train it with --use-ctc 1"),
    ],
)
def test_a_model_without_a_ctc_head_is_a_clear_error(ours, theirs, message):
    with pytest.raises(UserError, match=message):
        Distiller(CTC, student_of(use_ctc=ours), teacher_of(use_ctc=theirs))
