"""Layer maps: which teacher layer guides which student layer, and taps at another frame rate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kdstream.config.distillation import DistillConfig
from kdstream.errors import UserError
from kdstream.kd.layer_map import pair_layers
from kdstream.kd.taps import Tap, TapShape


def shapes(**strides):
    """Layers in running order: s2l0=4 is layer "2.0" with frames of 4 encoder frames."""
    return {name[1:].replace("l", "."): TapShape(8, 8, 8, 8, stride) for name, stride in strides.items()}


STUDENT = shapes(s0l0=1, s1l0=2, s2l0=4, s2l1=4, s3l0=2)
TEACHER = shapes(s0l0=1, s0l1=1, s1l0=2, s1l1=2, s2l0=4, s2l1=4, s2l2=4, s3l0=2, s3l1=2, s3l2=2)


def pairs(**config):
    return [(pair.student, pair.teacher) for pair in pair_layers(DistillConfig(**config), STUDENT, TEACHER)]


def test_same_map_pairs_last_layers_of_stacks_and_namesakes():
    assert pairs() == [("1.0", "1.1"), ("2.1", "2.2"), ("3.0", "3.2")]
    assert pairs(kd_layers=("1.0", "2.1")) == [("1.0", "1.0"), ("2.1", "2.1")]


def test_same_map_pairs_equal_shares_of_the_depth_where_stacks_differ():
    conformer = shapes(s0l0=2, s0l1=2, s0l2=2, s0l3=2)
    to_one_stack = pair_layers(DistillConfig(), STUDENT, conformer)
    assert [(p.student, p.teacher) for p in to_one_stack] == [("1.0", "0.1"), ("2.1", "0.3"), ("3.0", "0.3")]
    from_one_stack = pair_layers(DistillConfig(), conformer, TEACHER)
    assert [(p.student, p.teacher) for p in from_one_stack] == [("0.3", "3.2")]
    with pytest.raises(UserError, match="--kd-layers 1.0: the teacher has no such layer; .* or use --kd-layer-map"):
        pair_layers(DistillConfig(kd_layers=("1.0",)), STUDENT, conformer)


def test_uniform_map_pairs_equal_shares_of_the_depth():
    assert pairs(kd_layer_map="uniform", kd_layers=tuple(STUDENT)) == [
        ("0.0", "0.1"), ("1.0", "1.1"), ("2.0", "2.1"), ("2.1", "3.0"), ("3.0", "3.2"),
    ]  # fmt: skip


def test_last_map_pairs_the_last_layers():
    assert pairs(kd_layer_map="last") == [("1.0", "3.0"), ("2.1", "3.1"), ("3.0", "3.2")]
    assert pairs(kd_layer_map="last", kd_layers=("3.0", "1.0")) == [("3.0", "3.2"), ("1.0", "3.1")]
    one_stack = shapes(s0l0=2, s0l1=2, s0l2=2, s0l3=2, s0l4=2)
    guides = [pair.teacher for pair in pair_layers(DistillConfig(kd_layer_map="last"), STUDENT, one_stack)]
    assert guides == ["0.2", "0.3", "0.4"]
    with pytest.raises(UserError, match="--kd-layer-map last: 5 tapped layers, but the teacher has 1"):
        pair_layers(DistillConfig(kd_layer_map="last", kd_layers=tuple(STUDENT)), STUDENT, shapes(s0l0=2))


def test_similar_map_takes_the_most_similar_layer_of_the_file(tmp_path):
    rows = torch.rand(3, len(TEACHER), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "similarity.json"
    tapped = ["1.0", "2.1", "3.0"]
    path.write_text(json.dumps({"student_layers": tapped, "teacher_layers": list(TEACHER), "cka": rows.tolist()}))
    best = [list(TEACHER)[i] for i in rows.argmax(dim=1)]
    assert pairs(kd_layer_map="similar", kd_similarity_file=str(path)) == list(zip(tapped, best, strict=True))
    with pytest.raises(UserError, match="--kd-similarity-file .*KeyError: '2.0'.*kdstream layer-similarity for 2.0"):
        pairs(kd_layer_map="similar", kd_similarity_file=str(path), kd_layers=("2.0",))
    with pytest.raises(UserError, match="--kd-similarity-file .*FileNotFoundError"):
        pairs(kd_layer_map="similar", kd_similarity_file=str(tmp_path / "none.json"))
    with pytest.raises(
        UserError, match="--kd-layer-map similar: needs the similarities of the layers; give --kd-similarity-file"
    ):
        pairs(kd_layer_map="similar")
    rows[1, 0] = float("nan")
    path.write_text(json.dumps({"student_layers": tapped, "teacher_layers": list(TEACHER), "cka": rows.tolist()}))
    with pytest.raises(UserError, match="--kd-similarity-file .*not finite"):
        pairs(kd_layer_map="similar", kd_similarity_file=str(path))
    path.write_text(json.dumps({"student_layers": tapped, "teacher_layers": ["0.0", "9.9"], "cka": [[0.1, 0.9]] * 3}))
    with pytest.raises(UserError, match="--kd-similarity-file .*the teacher has layers 0.0, .* it has 0.0, 9.9"):
        pairs(kd_layer_map="similar", kd_similarity_file=str(path))


def test_learned_map_pairs_every_tapped_layer_with_every_layer_of_the_teacher():
    assert pairs(kd_layer_map="learned", kd_layers=("2.0",)) == [("2.0", name) for name in TEACHER]


def test_a_pair_that_is_named_goes_before_the_map():
    assert pairs(kd_layers=("1.0:3.2", "2.1")) == [("1.0", "3.2"), ("2.1", "2.1")]


@pytest.mark.parametrize(
    "config, message",
    [
        (
            dict(kd_layers=("7.0",)),
            "--kd-layers 7.0: the student has no such layer; it has 0.0, 1.0.*; name others, or leave",
        ),
        (
            dict(kd_layers=("1.0:9.0",)),
            "--kd-layers 9.0: the teacher has no such layer; .*; name another one behind the",
        ),
        (dict(kd_layers=("1.0:2.0", "1.0:3.0")), "--kd-layers: names 1.0 more than once; name each once"),
        (
            dict(kd_layers=("1.0", "2.0:3.1"), kd_layer_map="learned"),
            "--kd-layers 2.0:3.1: --kd-layer-map learned takes all layers of the teacher; name",
        ),
    ],
)
def test_layers_that_cannot_be_paired_are_clear_errors(config, message):
    with pytest.raises(UserError, match=message):
        pairs(**config)


def test_no_downsampling_stack_and_odd_frame_rates_are_clear_errors():
    with pytest.raises(UserError, match="no stack of the student downsamples; name the layers"):
        pair_layers(DistillConfig(), shapes(s0l0=1), TEACHER)
    with pytest.raises(UserError, match="1.0 has frames of 40 ms, teacher layer 1.0 of 60 ms"):
        pair_layers(DistillConfig(kd_layers=("1.0",)), STUDENT, shapes(s1l0=3))


def test_a_pair_is_compared_at_the_slower_rate():
    (pair,) = pair_layers(DistillConfig(kd_layers=("0.0:2.0",)), STUDENT, TEACHER)
    assert (pair.student_shape.stride, pair.teacher_shape.stride, pair.stride) == (1, 4, 4)


def test_a_tap_at_a_slower_rate_holds_means_over_valid_frames_whatever_the_padding():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 3, generator=generator, dtype=torch.float64)
    lens = torch.tensor([11, 6])
    slow = Tap(x, x, x, x, lens, stride=2).at_stride(8)
    assert slow.lens.tolist() == [3, 2] and slow.stride == 8
    for n, length in enumerate(lens.tolist()):
        for group in range(-(-length // 4)):
            expected = x[n, 4 * group : min(4 * group + 4, length)].mean(dim=0)
            torch.testing.assert_close(slow.key[n, group], expected, rtol=0, atol=1e-12)
    unchanged = Tap(x, x, x, x, lens, stride=2)
    assert unchanged.at_stride(2) is unchanged
    assert unchanged.first(4).lens.tolist() == [4, 4] and unchanged.first(4).value.shape == (2, 4, 3)
    assert replace(unchanged, stride=1).at_stride(2).features.shape == (2, 6, 3)


def test_a_map_that_chooses_nothing_is_not_asked():
    named = dict(kd_layers=("1.0:2.0",), kd_layer_map="similar")  # and no --kd-similarity-file
    assert pairs(**named) == pairs(kd_layers=("1.0:2.0",))
