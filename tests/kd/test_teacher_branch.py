"""The teacher's own layers as branches: they are the teacher's, hear everything, teach, and are never learned."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller
from kdstream.kd.taps import Taps
from kdstream.kd.teacher import Teacher, TransducerTeacher
from kdstream.models.streaming import pad_to_whole_chunks
from support.distillation import CHUNK, SMALL
from support.models import CHEAP_FRONT_END, SETTINGS, batch_of, random_batch, tiny_test_model
from support.toys import ToyTeacher

TEACHERS_LAYER = replace(SMALL, kd_branch="teacher")
WIDE = {"zipformer": {"encoder_dim": (32, 64, 48)}, "conformer": {"encoder_dim": (64,)}}


def model_of(encoder: str, causal: bool, **overrides):
    return tiny_test_model(causal, seed=int(not causal), encoder=encoder, **{**CHEAP_FRONT_END, **overrides})


def distil(distiller, student, features, lens):
    taps = distiller.student_taps()
    student.encode(features, lens, CHUNK, taps=taps)
    return taps, distiller(batch_of(features, lens), taps)


@pytest.mark.parametrize("encoder", SETTINGS)
def test_a_layer_run_alone_makes_what_it_makes_in_its_place(encoder):
    model = model_of(encoder, False)
    features, lens, _ = random_batch((121, 90))
    taps = Taps()
    with torch.no_grad():
        model.encode(features, lens, taps=taps)
        for name in taps.names():
            tap = taps[name]
            made, of_attention = model.encoder.run_layer(model.encoder.layer(name), tap.inputs, tap.lens)
            for ours, theirs in (
                (made, tap.features),
                *zip(of_attention, (tap.query, tap.key, tap.value), strict=True),
            ):
                for n, frames in enumerate(tap.lens.tolist()):
                    torch.testing.assert_close(ours[n, :frames], theirs[n, :frames], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", SETTINGS)
def test_a_student_that_gives_the_layer_what_the_teacher_does_has_no_feature_distance(encoder):
    """Teacher and student are one model; in full context both hear the same."""
    teacher = model_of(encoder, False)
    distiller = Distiller(replace(TEACHERS_LAYER, kd_distance="l2"), teacher, TransducerTeacher(teacher))
    features, lens, _ = random_batch((120,))
    batch = batch_of(features, lens)
    heard, taps = distiller.teacher.listen(batch, [pair.teacher for pair in distiller.pairs]), Taps()
    with torch.no_grad():
        teacher.encode(*pad_to_whole_chunks(features, lens, teacher.max_downsampling), taps=taps)
    for pair, branch in zip(distiller.pairs, distiller.branches, strict=True):
        ours, theirs = pair.align(taps[pair.student], heard.layers[pair.teacher])
        frames = int(theirs.lens.min())
        torch.testing.assert_close(branch(ours).z[:, :frames], theirs.features[:, :frames], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", SETTINGS)
@pytest.mark.parametrize("widths", [{}, WIDE])
def test_the_layer_teaches_what_is_below_it_and_stays_as_it_is(encoder, widths):
    student = model_of(encoder, True)
    teacher = model_of(encoder, False, **widths.get(encoder, {}))
    before = copy.deepcopy(teacher.state_dict())
    distiller = Distiller(replace(TEACHERS_LAYER, kd_apc_scale=0.0), student, TransducerTeacher(teacher))
    trained = list(distiller.parameters())
    projected = [pair for pair in distiller.pairs if pair.student_shape.features != pair.teacher_shape.features]
    assert len(trained) == 2 * len(projected) and bool(projected) == bool(widths)
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in trained}
    assert not any("layer" in name for name in distiller.state_dict())
    features, lens, _ = random_batch()
    optimizer = torch.optim.Adam([*student.parameters(), *trained], lr=0.003)
    history = []
    for _ in range(10):
        losses = distil(distiller, student, features, lens)[1]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[0].keys() == {"feature_loss", "relation_loss"}
    for name, first in history[0].items():
        assert history[-1][name] < 0.97 * first, name
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_branch_hears_the_whole_utterance_and_the_predictor_the_past_alone():
    student = model_of("conformer", True)
    distiller = Distiller(TEACHERS_LAYER, student, TransducerTeacher(model_of("conformer", False)))
    features, lens, _ = random_batch((150,))
    features.requires_grad_()
    taps = distiller.student_taps()
    student.encode(features, lens, CHUNK, taps=taps)
    out = distiller.branches[0](taps[distiller.pairs[0].student])
    heard = CHUNK.input_frames  # once the first chunk is computed
    z, r = (torch.autograd.grad(x[0, :4].sum(), features, retain_graph=True)[0] for x in (out.z, out.r))
    assert z[0, heard:].abs().max() > 0 == r[0, heard:].abs().max()


@pytest.mark.parametrize("ours, theirs", [("zipformer", "conformer"), ("conformer", "zipformer")])
def test_a_layer_of_another_encoder_runs_where_its_frames_are_long_enough(ours, theirs):
    student, teacher = model_of(ours, True), TransducerTeacher(model_of(theirs, False))
    pair = {"zipformer": "1.1:0.1", "conformer": "0.1:2.0"}[ours]
    distiller = Distiller(replace(TEACHERS_LAYER, kd_layers=(pair,)), student, teacher)
    features, lens, _ = random_batch((120, 90))
    assert all(torch.isfinite(loss) for loss in distil(distiller, student, features, lens)[1].values())
    too_long = {"zipformer": "2.0:0.1", "conformer": "0.1:0.0"}[ours]
    with pytest.raises(UserError, match="--kd-branch teacher: the student's layer .* has longer frames"):
        Distiller(replace(TEACHERS_LAYER, kd_layers=(too_long,)), student, teacher)


@pytest.mark.parametrize("encoder", SETTINGS)
def test_a_copy_begins_as_the_teachers_layer_and_is_learned_without_dropout(encoder):
    student, teacher = model_of(encoder, True), TransducerTeacher(model_of(encoder, False))
    before = copy.deepcopy(teacher.state_dict())
    lent, copied = (
        Distiller(replace(TEACHERS_LAYER, kd_branch=kind, kd_apc_scale=0.0), student, teacher).train()
        for kind in ("teacher", "teacher-copy")
    )
    features, lens, _ = random_batch()
    first = [distil(distiller, student, features, lens)[1] for distiller in (lent, copied)]
    torch.testing.assert_close(first[1], first[0], rtol=1e-6, atol=0)
    names = {name.split(".")[2] for name, _ in copied.named_parameters()}
    assert names == {"copy"} and not list(lent.parameters())
    optimizer = torch.optim.Adam(copied.parameters(), lr=0.003)
    for _ in range(3):
        optimizer.zero_grad()
        sum(distil(copied, student, features, lens)[1].values()).backward()
        optimizer.step()
    assert distil(copied, student, features, lens)[1]["feature_loss"] < first[1]["feature_loss"]
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(distil(lent, student, features, lens)[1], first[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_prediction_alone_needs_no_layer_of_the_teacher(causal):
    config = DistillConfig(kd_branch="teacher", kd_feature_scale=0.0, kd_apc_dim=8)
    student, teacher = model_of("conformer", True), TransducerTeacher(model_of("conformer", causal))
    features, lens, _ = random_batch()
    assert distil(Distiller(config, student, teacher), student, features, lens)[1].keys() == {"apc_loss"}


def test_teachers_whose_layers_cannot_be_run_alone_are_refused():
    student = model_of("conformer", True)
    with pytest.raises(UserError, match="--kd-branch teacher: a streaming teacher's layers would hear where"):
        Distiller(TEACHERS_LAYER, student, TransducerTeacher(model_of("conformer", True)))
    with pytest.raises(UserError, match="--kd-branch teacher: this teacher's layers cannot be run alone; give --kd-b"):
        Teacher.check_layers(ToyTeacher.__new__(ToyTeacher))
