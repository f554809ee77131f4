"""The distiller through real models: no leak, no cost at inference, a teacher that nothing changes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdstream.config.distillation import TOKEN_FORMS, DistillConfig
from kdstream.errors import UserError
from kdstream.kd.distiller import Distiller, check_shifts
from kdstream.kd.loss_table import LOSSES, logged_as
from kdstream.kd.losses import DISTANCES, apc_loss, feature_loss, frame_weights, relation_loss
from kdstream.kd.taps import Taps, tap_shapes
from kdstream.kd.teacher import TransducerTeacher
from kdstream.kd.token_losses import token_loss
from kdstream.kd.token_shift import delayed
from kdstream.models.rnnt_loss import LossSettings
from kdstream.models.streaming import pad_to_whole_chunks
from kdstream.models.transducer import build_model
from kdstream.units import FEATURE_FRAMES_PER_OUTPUT_FRAME
from support.distillation import CHUNK, SMALL
from support.models import CHEAP_FRONT_END, SETTINGS, batch_of, random_batch, tiny_test_model

AHEAD = replace(CHUNK, right=8)


def build(config: DistillConfig = SMALL, student_encoder: str = "zipformer", **teacher_overrides):
    """A student, a teacher of other widths, and a distiller between them; all in eval mode."""
    use_ctc = config.kd_ctc_scale > 0
    student = tiny_test_model(causal=True, encoder=student_encoder, use_ctc=use_ctc)
    sizes = {"encoder_dim": (32, 64, 48), "use_ctc": use_ctc, **teacher_overrides}
    teacher = tiny_test_model(causal=False, seed=1, **sizes)
    torch.manual_seed(2)
    return student, teacher, Distiller(config, student, TransducerTeacher(teacher)).eval()


def distil(student, distiller, features, lens, tokens=None, chunk=CHUNK) -> dict[str, torch.Tensor]:
    """The losses of a batch; those on the lattice too where there are tokens."""
    taps = distiller.student_taps()
    if tokens is None:
        student.encode(features, lens, chunk, taps=taps)
    else:
        student(features, lens, tokens, chunk, LossSettings(), taps=taps)
    return distiller(batch_of(features, lens), taps)


@pytest.mark.slow
def test_default_layers_are_the_last_of_every_stack_with_frames_of_40_ms_or_longer():
    _, _, distiller = build()
    assert [(pair.student, pair.teacher) for pair in distiller.pairs] == [("1.1", "1.1"), ("2.0", "2.0")]
    _, _, deeper = build(num_encoder_layers=(1, 3, 2))
    assert [(pair.student, pair.teacher) for pair in deeper.pairs] == [("1.1", "1.2"), ("2.0", "2.1")]


def test_named_layers_are_paired_at_the_same_position():
    _, _, distiller = build(replace(SMALL, kd_layers=("0.0", "1.0")))
    assert [(pair.student, pair.teacher) for pair in distiller.pairs] == [("0.0", "0.0"), ("1.0", "1.0")]
    assert [pair.student_shape.stride for pair in distiller.pairs] == [1, 2]


@pytest.mark.parametrize(
    "config, teacher, message",
    [
        (replace(SMALL, kd_layers=("7.0",)), {}, "--kd-layers 7.0: the student has no such layer; it has 0.0, 1.0"),
        (SMALL, {"downsampling_factor": (1, 3, 4)}, "1.1 has frames of 40 ms, teacher layer 1.1 of 60 ms"),
        (replace(SMALL, kd_relation_heads=8), {"encoder_dim": (32, 60, 48)}, "heads 8: .* widths 32, 32, 24, 60 of"),
        (replace(SMALL, kd_relation_heads=5), {}, "--kd-relation-heads 5: does not divide"),
        (replace(SMALL, kd_branch_heads=7), {}, "--kd-branch-heads 7: does not divide"),
        (replace(SMALL, kd_feature_scale=0, kd_relation_scale=0, kd_apc_scale=0), {}, "all 0 with a teacher"),
    ],
)
def test_settings_that_cannot_work_are_clear_errors(config, teacher, message):
    with pytest.raises(UserError, match=message):
        build(config, **teacher)


def test_looking_at_tap_shapes_leaves_mode_and_random_state_alone():
    model = tiny_test_model(causal=True).train()
    before = torch.get_rng_state()
    shapes = tap_shapes(model)
    assert torch.equal(torch.get_rng_state(), before) and all(module.training for module in model.modules())
    assert list(shapes) == ["0.0", "1.0", "1.1", "2.0"]
    assert (shapes["1.1"].features, shapes["1.1"].query, shapes["1.1"].value, shapes["1.1"].stride) == (48, 32, 24, 2)


def test_weights_rise_linearly_to_their_scales():
    _, _, distiller = build(replace(SMALL, kd_warmup_batches=100, kd_feature_scale=2.0, kd_apc_scale=0.0))
    assert distiller.weights(0) == {"feature_loss": 0.0, "relation_loss": 0.0}
    assert distiller.weights(50) == pytest.approx({"feature_loss": 1.0, "relation_loss": 0.05})
    assert distiller.weights(1000) == pytest.approx({"feature_loss": 2.0, "relation_loss": 0.1})
    _, _, at_once = build(replace(SMALL, kd_warmup_batches=0))
    assert at_once.weights(0)["apc_loss"] == SMALL.kd_apc_scale


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [CHUNK, AHEAD], ids=str)
def test_apc_predicts_from_what_the_streaming_student_has_heard_and_nothing_later(chunk):
    student, _, distiller = build()
    features, lens, _ = random_batch((100,))
    features.requires_grad_()
    taps = distiller.student_taps()
    student.encode(features, lens, chunk, taps=taps)
    for branch, pair in zip(distiller.branches, distiller.pairs, strict=True):
        tap = taps[pair.student]
        out = branch(tap)
        frames = chunk.chunk // tap.stride
        for index in range(4):
            heard = index * chunk.shift + chunk.input_frames  # feature frames, once chunk `index` is computed
            r, z = (
                torch.autograd.grad(y[0, index * frames : (index + 1) * frames].sum(), features, retain_graph=True)[0]
                for y in (out.r, out.z)
            )
            assert r[0, heard:].abs().max() == 0, f"layer {pair.student}, chunk {index}: APC has seen the future"
            assert r[0, heard - 1].abs().max() > 0  # the bound is sharp
            assert z[0, heard:].abs().max() > 0  # z does see the future, so the test can fail


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [CHUNK, AHEAD], ids=str)
def test_a_batch_costs_the_sum_of_its_utterances_through_both_models(chunk):
    student, _, distiller = build()
    features, lens, _ = random_batch((170, 100))
    together = distil(student, distiller, *pad_to_whole_chunks(features, lens, CHUNK.chunk), chunk=chunk)
    alone = [
        distil(student, distiller, *pad_to_whole_chunks(features[n : n + 1], lens[n : n + 1], CHUNK.chunk), chunk=chunk)
        for n in range(2)
    ]
    for name, loss in together.items():
        assert loss.item() == pytest.approx(sum(one[name].item() for one in alone), rel=1e-5), name


@pytest.mark.slow
def test_a_loss_with_scale_0_is_left_out_with_its_part_of_the_branch():
    student, _, distiller = build(replace(SMALL, kd_relation_scale=0.0, kd_apc_scale=0.0))
    features, lens, _ = random_batch()
    assert list(distil(student, distiller, features, lens)) == ["feature_loss"]
    assert not any("predictor" in name for name, _ in distiller.named_parameters())
    _, _, only_apc = build(replace(SMALL, kd_feature_scale=0.0, kd_relation_scale=0.0))
    assert list(distil(student, only_apc, features, lens)) == ["apc_loss"]
    assert not any(".layer." in name for name, _ in only_apc.named_parameters())


@pytest.mark.slow
def test_a_step_changes_student_and_branches_but_not_the_teacher():
    student, teacher, distiller = build()
    teacher_before = copy.deepcopy(teacher.state_dict())
    trained = [*student.encoder.parameters(), *distiller.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    student.train()
    distiller.train()
    features, lens, _ = random_batch()
    sum(distil(student, distiller, features, lens).values()).backward()
    optimizer.step()
    assert all(p.grad is not None for p in distiller.parameters())
    # whichever layers this draw skips
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.encoder.encoders[1].parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    torch.testing.assert_close(teacher.state_dict(), teacher_before, rtol=0, atol=0)


def test_neither_the_distiller_nor_the_student_owns_the_teacher_or_each_other():
    student, teacher, distiller = build()
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"branches"}
    assert student.state_dict().keys() == build_model(student.config).state_dict().keys()
    outsiders = {id(p) for p in [*teacher.parameters(), *student.parameters()]}
    assert not outsiders & {id(p) for p in distiller.parameters()}


NOTHING = replace(SMALL, kd_feature_scale=0.0, kd_relation_scale=0.0, kd_apc_scale=0.0)
METHODS = {
    "feature_loss": SMALL,
    "relation_loss": SMALL,
    "apc_loss": replace(SMALL, kd_apc_shift=4),
    "direct feature_loss": replace(SMALL, kd_branch="none"),
    "direct relation_loss": replace(SMALL, kd_branch="none"),
    "teacher's feature_loss": replace(SMALL, kd_branch="teacher"),
    "teacher's relation_loss": replace(SMALL, kd_branch="teacher"),
    "shared feature_loss": replace(SMALL, kd_share_branches=True),
    "learned feature_loss": replace(SMALL, kd_layer_map="learned"),
    "kd_ctc_loss": replace(NOTHING, kd_ctc_scale=1.0),
    "full token_loss": replace(NOTHING, kd_token_scale=1.0, kd_token_temperature=2.0),
    "collapsed token_loss": replace(NOTHING, kd_token_scale=1.0, kd_token_form="collapsed"),
    "one-best token_loss": replace(NOTHING, kd_token_scale=1.0, kd_token_form="one-best", kd_token_shift=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_its_own_loss_on_a_fixed_batch_within_20_steps(method):
    student, _, distiller = build(METHODS[method])
    features, lens, tokens = random_batch((60, 45))
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.01)
    history = []
    for _ in range(20):
        loss = distil(student, distiller, features, lens, tokens)[method.split()[-1]]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("distance", DISTANCES)
def test_losses_between_layers_are_those_that_the_flags_name(distance, shift, heads):
    flags = dict(kd_distance=distance, kd_apc_shift=shift, kd_relation_heads=heads)
    student, _, distiller = build(replace(SMALL, kd_layers=("1.0",), **flags))
    features, lens, _ = random_batch((100, 80))
    taps = distiller.student_taps()
    student.encode(features, lens, CHUNK, taps=taps)
    batch, ours = batch_of(features, lens), taps["1.0"]
    frames, output_frames = ours.features.size(1), lens // FEATURE_FRAMES_PER_OUTPUT_FRAME
    theirs = distiller.teacher.listen(batch, {"1.0"}).layers["1.0"].first(frames)
    out = distiller.branches[0](ours)
    weights = frame_weights(ours.lens, frames, output_frames)
    relations = (theirs.query, theirs.key, theirs.value), (out.query, out.key, out.value)
    expected = {
        "feature_loss": feature_loss(theirs.features, out.z, weights, distance),
        "relation_loss": relation_loss(*relations, weights, heads),
        "apc_loss": apc_loss(theirs.features, out.r, ours.lens, output_frames, shift, distance),
    }
    torch.testing.assert_close(distiller(batch, taps), expected, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("form", TOKEN_FORMS)
def test_the_token_loss_is_the_one_that_the_flags_name(form, temperature, shift):
    flags = dict(kd_token_form=form, kd_token_temperature=temperature, kd_token_shift=shift)
    student, _, distiller = build(replace(NOTHING, kd_token_scale=1.0, **flags))
    features, lens, tokens = random_batch((100, 80))
    taps = distiller.student_taps()
    student(features, lens, tokens, CHUNK, LossSettings(), taps=taps)
    batch, lattice, teacher = batch_of(features, lens), taps.lattice, distiller.teacher
    heard = teacher.listen(batch, ()).encoder_out[:, : lattice.ranges.size(1)]
    logits = teacher.lattice_logits(delayed(heard, shift), lattice.tokens, lattice.ranges)
    expected = token_loss(logits, lattice.logits, lattice, student.config.blank_id, form, temperature, shift)
    torch.testing.assert_close(distiller(batch, taps), {"token_loss": expected}, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("theirs", SETTINGS)
@pytest.mark.parametrize("ours", SETTINGS)
def test_every_pair_of_encoders_lowers_every_loss_on_a_fixed_batch(ours, theirs):
    student = tiny_test_model(causal=True, encoder=ours, **CHEAP_FRONT_END)
    teacher = tiny_test_model(causal=False, seed=1, encoder=theirs, **CHEAP_FRONT_END)
    torch.manual_seed(2)
    distiller = Distiller(replace(SMALL, kd_token_scale=1.0), student, TransducerTeacher(teacher))
    features, lens, tokens = random_batch((60, 45))
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.003)
    history = []
    for _ in range(20):
        losses = distil(student, distiller, features, lens, tokens)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    assert history[0].keys() == distiller.scales.keys()
    for name, first in history[0].items():
        assert history[-1][name] < 0.9 * first, name


@pytest.mark.parametrize("chunk", [CHUNK, AHEAD], ids=str)
def test_all_methods_together_give_every_loss_and_every_branch_a_gradient(chunk):
    config = replace(SMALL, kd_token_scale=1.0, kd_ctc_scale=1.0, kd_layer_map="learned")
    student, _, distiller = build(config)
    features, lens, tokens = random_batch()
    losses = distil(student, distiller, features, lens, tokens, chunk)
    assert losses.keys() == distiller.scales.keys() == {logged_as(name) for name in LOSSES}
    sum(losses.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in distiller.parameters())


def test_branches_of_equal_width_share_their_layer_and_predictor_where_asked():
    student, _, apart = build(replace(SMALL, kd_layers=("1.0", "1.1", "2.0")))
    _, _, shared = build(replace(SMALL, kd_layers=("1.0", "1.1", "2.0"), kd_share_branches=True))
    assert shared.branches[0].layer is shared.branches[1].layer is not shared.branches[2].layer
    assert shared.branches[0].predictor is shared.branches[1].predictor
    assert shared.branches[0].projection is not shared.branches[1].projection
    sizes = [sum(p.numel() for p in distiller.parameters()) for distiller in (shared, apart)]
    assert sizes[0] < 0.75 * sizes[1]


def test_a_learned_layer_map_weighs_all_layers_of_the_teacher_equally_to_begin_with():
    _, _, distiller = build(replace(SMALL, kd_layer_map="learned"))
    assert [pair.teacher for pair in distiller.pairs] == 2 * ["0.0", "1.0", "1.1", "2.0"]
    torch.testing.assert_close(distiller.pair_weights(), torch.full((8,), 0.25))


def exported(student, path):
    """The student as a user of its checkpoint gets it: a fresh model with the saved parameters."""
    torch.save({"model": student.state_dict()}, path)
    model = build_model(student.config).eval()
    model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=True)
    return model


def inference_flops(model) -> int:
    """Of one chunk through encoder, predictor and joiner."""
    counter = pytest.importorskip("torch.utils.flop_counter", reason="this torch counts no flops")
    with torch.no_grad(), counter.FlopCounterMode(display=False) as flops:
        features = torch.zeros(1, CHUNK.input_frames, 80)
        state = model.init_state(1, CHUNK, torch.device("cpu"))
        encoder_out, _, _ = model.encode(features, torch.tensor([CHUNK.input_frames]), CHUNK, state)
        decoder_out = model.decoder(torch.zeros(1, model.config.context_size, dtype=torch.int64), need_pad=False)
        model.joiner(encoder_out, decoder_out)
    return flops.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", SETTINGS)
def test_a_distilled_student_costs_at_inference_exactly_what_the_baseline_costs(tmp_path, encoder):
    student, _, distiller = build(student_encoder=encoder)
    features, lens, _ = random_batch()
    optimizer = torch.optim.SGD([*student.encoder.parameters(), *distiller.parameters()], lr=0.01)
    sum(distil(student, distiller, features, lens).values()).backward()
    optimizer.step()
    distilled, baseline = exported(student, tmp_path / "distilled.pt"), build_model(student.config).eval()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (distilled, baseline)]
    assert sizes[0] == sizes[1] and sum(p.numel() for p in distiller.parameters()) > 0
    flops = [inference_flops(model) for model in (distilled, baseline)]
    assert flops[0] == flops[1] > 0


def test_taps_record_only_what_is_wanted():
    model = tiny_test_model(causal=True)
    features, lens, _ = random_batch()
    taps = Taps(["1.0"])
    model.encode(features, lens, CHUNK, taps=taps)
    tap = taps["1.0"]
    assert taps.names() == ["1.0"] and "1.1" not in taps and taps.wants("1.0") and not taps.wants("1.1")
    encoder_lens = (lens - 7) // 2
    assert tap.stride == 2 and tap.lens.tolist() == ((encoder_lens + 1) // 2).tolist()
    assert tap.features.shape == (2, int(tap.lens.max()), 48) and tap.query.shape == tap.key.shape == (2, 28, 32)


@pytest.mark.parametrize(
    "changes, seconds, message",
    [
        ({"kd_token_shift": 500}, 20.0, "--kd-token-shift 500: frames of 40 ms leave nothing to compare in .* 20 s"),
        ({"kd_token_shift": 499}, 20.0, ""),
        ({"kd_token_shift": "auto:9"}, 0.3, ""),
        ({"kd_token_shift": 500, "kd_token_scale": 0.0}, 20.0, ""),  # which nothing reads
        ({"kd_apc_shift": 250}, 20.0, "--kd-apc-shift 250: frames of 80 ms leave nothing to compare in utterances of"),
        ({"kd_apc_shift": 249}, 20.0, ""),
        ({"kd_apc_shift": 250, "kd_apc_scale": 0.0}, 20.0, ""),
    ],
)
def test_a_shift_beyond_the_longest_utterance_is_refused(changes, seconds, message):
    # the second layer has frames of 80 ms
    config = replace(SMALL, **{"kd_token_scale": 1.0, "kd_layers": ("1.1", "2.0"), **changes})
    distiller = Distiller(config, tiny_test_model(causal=True), TransducerTeacher(tiny_test_model(causal=False)))
    with pytest.raises(UserError, match=f"^{message}") if message else nullcontext():
        check_shifts(config, nn.ModuleList([distiller]), seconds)


def test_the_shift_between_the_modes_of_a_student_is_looked_at_too():
    config = DistillConfig(mode_consistency_scale=0.1, kd_token_shift=500)
    with pytest.raises(UserError, match="--kd-token-shift 500"):
        check_shifts(config, None, 20.0)
    check_shifts(replace(config, mode_consistency_scale=0.0), None, 20.0)
