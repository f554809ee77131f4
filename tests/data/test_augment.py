"""Transforms: one table entry and one flag each, in the order of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kdstream.config.flags import EXTENSIONS, extend, flag, with_settings
from kdstream.config.sections import DataConfig
from kdstream.data.augment import TRANSFORMS, Epoch, TransformSpec, active_transforms
from kdstream.data.batch import Utterance
from support.data import batches_of
from support.training import make_corpus


def louder(config: DataConfig, epoch: Epoch):
    """Adds --gain to every feature, and more in every epoch."""

    def change(utterance: Utterance) -> Utterance:
        return utterance._replace(features=utterance.features + config.gain * epoch.epoch)

    return change


@pytest.fixture
def gain() -> Iterator[None]:
    extend(DataConfig, gain=flag(0.0, "Added to log energies."))
    TRANSFORMS.add("gain", TransformSpec("gain", "utterance", louder))
    yield
    del TRANSFORMS._entries["gain"], EXTENSIONS[DataConfig]["gain"]


def test_a_transform_from_outside_changes_what_training_gets(tmp_path, gain):
    plain = make_corpus(tmp_path, 6)
    config = with_settings(plain, gain=0.5)
    assert active_transforms(plain) == [] and active_transforms(config) == ["gain"]
    for epoch in (1, 2):
        for before, after in zip(batches_of(plain, epoch), batches_of(config, epoch), strict=True):
            assert before.cut_ids == after.cut_ids
            for x, y, length in zip(before.features, after.features, before.feature_lens, strict=True):
                assert (y[:length] - x[:length] - 0.5 * epoch).abs().max() < 1e-5


def test_every_transform_has_its_flag_and_is_off_without_it():
    config = replace(DataConfig(), enable_spec_aug=False, enable_musan=False)
    assert active_transforms(config) == []
    assert active_transforms(replace(config, enable_spec_aug=True)) == ["spec-augment"]
    assert active_transforms(replace(config, enable_musan=True, enable_spec_aug=True)) == ["musan", "spec-augment"]
