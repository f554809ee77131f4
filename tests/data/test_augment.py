"""Transforms: each is on where its flag says so, in the order of the table."""

from __future__ import annotations

from dataclasses import replace

from kdstream.config.sections import DataConfig
from kdstream.data.augment import active_transforms, without_transforms


def test_every_transform_has_its_flag_and_is_off_without_it():
    config = replace(DataConfig(), enable_spec_aug=False, enable_musan=False)
    assert active_transforms(config) == []
    assert active_transforms(replace(config, enable_spec_aug=True)) == ["spec-augment"]
    assert without_transforms(replace(config, enable_musan=True, enable_spec_aug=True)) == config
    assert active_transforms(replace(config, enable_musan=True, enable_spec_aug=True)) == ["musan", "spec-augment"]
