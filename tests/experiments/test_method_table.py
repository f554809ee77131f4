"""What the methods of a comparison are trained and decoded with."""

from __future__ import annotations

from kdstream.config.distillation import DistillConfig
from kdstream.config.experiment import ExperimentConfig
from kdstream.config.sections import DataConfig, ModelConfig, TrainConfig
from kdstream.experiments import methods
from kdstream.experiments.method_table import IN_FULL_CONTEXT, METHODS, WITHOUT_TEACHER
from kdstream.experiments.train_flags import read_section
from kdstream.training.start import check_views


def test_a_student_that_is_trained_in_both_modes_is_decoded_in_both(tmp_path):
    flags = ("--kd-token-shift", "3", "--kd-layers", "1.0", "--full-context-scale", "2")
    comparison = methods.Comparison(
        tmp_path, tmp_path / "exp", list(METHODS), [1], 2, 3, 1, train_flags=flags, decode_flags=("--chunk-size", "16")
    )
    by_name = {cell.folder.name: cell for cell in comparison.cells()}
    for method in METHODS:
        ways = [dict(zip(way[1::2], way[2::2], strict=True)) for way in by_name[f"{method}-1"].decodings]
        shown = [(way["--chunk-size"], way["--system"]) for way in ways]
        assert shown == [("16", method), *([("-1", IN_FULL_CONTEXT[method])] if method in IN_FULL_CONTEXT else [])]
    alone, both, *masked = (read_section(DistillConfig, by_name[f"{name}-1"].train_flags) for name in WITHOUT_TEACHER)
    assert (both.method, both.kd_token_shift, both.full_context_scale) == ("mode-consistency", 3, 0.5)
    assert [alone, *masked] == [DistillConfig()] * 3 and not both.has_teacher and both.kd_layers == ()


def test_two_views_are_of_features_with_masks(tmp_path):
    (cell,) = methods.Comparison(tmp_path, tmp_path / "exp", ["cr-ctc"], [1], 2, 3, 1).cells()
    train, data, model = (read_section(of, cell.train_flags) for of in (TrainConfig, DataConfig, ModelConfig))
    assert train.cr_ctc_scale == train.ctc_loss_scale / 5
    check_views(ExperimentConfig(model, data, train))
