"""Mixtures of manifests by weight: what an epoch takes of each, in which order, and that it resumes."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from kdstream.config.sections import DataConfig
from kdstream.data.mixture import REPEATED, Mixture, ids_in_manifest
from kdstream.data.module import AsrDataModule
from kdstream.data.selection import Rules, Selection
from kdstream.data.tokenizer import Tokenizer
from kdstream.kd.cache_filling import all_cuts
from support.data import assert_same, batches_of, error_of
from support.training import make_corpus

SIZES = {"new": 12, "old": 40, "more": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    """Three manifests whose cuts are named after them; masks, so that augmentation counts too."""
    folder = tmp_path_factory.mktemp("corpora")
    config, paths = None, []
    for name, size in SIZES.items():
        (folder / name).mkdir()
        config = make_corpus(folder / name, size)
        cuts = CutSet.from_file(config.train_cuts[0])
        paths.append(str(folder / f"{name}.jsonl.gz"))
        CutSet.from_cuts(cut.with_id(f"{name}-{cut.id}") for cut in cuts).to_file(paths[-1])
    assert config is not None
    return replace(
        config, train_cuts=tuple(paths), mux_weights=(0.4, 0.4, 0.2), enable_spec_aug=True, spec_aug_time_warp_factor=0
    )


def ids_of(data: DataConfig, epoch: int = 1) -> list[str]:
    return [cut_id for batch in batches_of(data, epoch) for cut_id in batch.cut_ids]


def counts_of(ids: list[str]) -> dict[str, int]:
    return dict(Counter(cut_id.split("-")[0] for cut_id in ids))


@pytest.mark.parametrize(
    "weights, expected",
    [
        ((0.4, 0.4, 0.2), {"new": 12, "old": 12, "more": 6}),
        ((4.0, 4.0, 2.0), {"new": 12, "old": 12, "more": 6}),
        ((0.1, 0.1, 0.8), {"new": 2, "old": 2, "more": 20}),  # the third manifest ends the epoch
        ((12.0, 40.0, 20.0), SIZES),
    ],
)
def test_an_epoch_goes_once_through_the_first_manifest_that_ends_and_has_the_weights_of_the_others(
    data, weights, expected
):
    for epoch in (1, 2):
        assert counts_of(ids_of(replace(data, mux_weights=weights), epoch)) == expected


def test_epochs_go_on_in_the_manifests_that_did_not_end(data):
    epochs = [ids_of(data, epoch) for epoch in range(1, 11)]
    for name in ("new", "old", "more"):
        taken = Counter(cut_id.split("_repeat")[0] for ids in epochs for cut_id in ids if cut_id.startswith(name))
        assert len(taken) == SIZES[name] and max(taken.values()) - min(taken.values()) <= 1
    old = [{cut_id for cut_id in ids if cut_id.startswith("old")} for ids in epochs[:3]]
    assert not old[0] & old[1] and not old[1] & old[2]


def test_every_stretch_of_an_epoch_holds_the_weights(data):
    """The sampler reads through a window: 800 of a stream of 4000 must look like the whole."""
    cut = CutSet.from_file(data.train_cuts[0])[0]
    kept = Selection(Tokenizer(data.bpe_model), Rules(0.0, 20.0, False))
    kept.kept, kept.seconds = 3000, 3000.0
    cuts = {name: CutSet([cut.with_id(f"{name}-{n}") for n in range(3000)]) for name in "ab"}
    mixture = Mixture([(name, cuts[name], kept) for name in "ab"], [3.0, 1.0], seed=0)
    assert (mixture.num_cuts, mixture.seconds) == (4000, 4000.0)
    stream = iter(mixture.of_epoch(2))
    for _ in range(4):
        share = np.mean([cut.id.startswith("b") for cut in islice(stream, 800)])
        assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 800) ** 0.5)


def test_what_an_epoch_takes_depends_on_seed_and_epoch_alone(data):
    whole = batches_of(data, 3)
    assert_same(whole, batches_of(replace(data, num_workers=1), 3))
    assert sorted(ids_of(data, 3)) != sorted(ids_of(data, 4))
    other = AsrDataModule(data, seed=8).train_dataloader(3)
    assert sorted(i for b in other for i in b.cut_ids) != sorted(i for b in whole for i in b.cut_ids)


@pytest.mark.parametrize("epoch", [1, 4])
def test_one_process_and_two_resume_in_the_middle_of_an_epoch_to_the_last_bit(data, epoch):
    whole = batches_of(data, epoch)
    assert len(whole) > 6
    assert_same(whole[5:], batches_of(data, epoch, done=5))
    two = [batches_of(data, epoch, world_size=2, rank=rank) for rank in (0, 1)]
    pairs = len(whole) // 2
    assert_same([batch for pair in zip(*two, strict=True) for batch in pair][: 2 * pairs], whole[: 2 * pairs])
    for rank in (0, 1):
        assert_same(two[rank][2:], batches_of(data, epoch, world_size=2, rank=rank, done=4))


def test_pseudo_labelled_cuts_join_a_mixture(data, tmp_path):
    old = Path(data.train_cuts[1])
    mixed = replace(
        data,
        train_cuts=(data.train_cuts[0], data.train_cuts[2]),
        mux_weights=(0.5, 0.5),
        pseudo_cuts=(str(old),),
        pseudo_ratio=0.25,
    )
    assert counts_of(ids_of(mixed)) == {"new": 12, "more": 12, "old": 8}


def test_a_mixture_uses_the_selection_that_lies_beside_each_manifest(data, caplog, monkeypatch):
    first = ids_of(data)
    for path in data.train_cuts:
        assert Path(f"{path}.selection.npz").is_file()
    monkeypatch.setattr(Selection, "judge", lambda self, cuts: 1 / 0)
    with caplog.at_level(logging.INFO):
        assert ids_of(data) == first
    assert "new.jsonl.gz: training cuts: 12 kept" in caplog.text
    assert "An epoch takes 12 of the 40 cuts of old.jsonl.gz" in caplog.text


def test_a_teachers_cache_holds_all_cuts_of_a_mixture(data):
    every = replace(data, mux_weights=())
    assert sorted(AsrDataModule(data, 0).training_cut_ids()) == sorted(ids_of(every))
    assert sorted(ids_of(all_cuts(data))) == sorted(ids_of(every))


@pytest.mark.parametrize(
    "weights, train_cuts, message",
    [
        ((0.7, 0.3), 3, "--mux-weights 0.7,0.3: 2 weights for 3 manifests; give one for each"),
        ((1.0,), 1, "--mux-weights 1: 1 weights for 1 manifests; give one for each of two or more"),
    ],
)
def test_weights_that_are_not_those_of_the_manifests_are_an_error(data, weights, train_cuts, message):
    wrong = replace(data, mux_weights=weights, train_cuts=data.train_cuts[:train_cuts])
    assert message in error_of(lambda: batches_of(wrong))


def test_a_cut_of_two_manifests_is_refused(data, tmp_path):
    path = tmp_path / "again.jsonl.gz"
    CutSet.from_cuts(list(CutSet.from_file(data.train_cuts[0]))[:3]).to_file(path)
    twice = replace(data, train_cuts=(*data.train_cuts[:2], str(path)))
    message = error_of(lambda: batches_of(twice))
    assert message.startswith(f"--train-cuts: {path}: training cuts: two cuts have the id new-utterance-00; ")


def test_a_repetition_may_have_the_id_of_its_cut_in_the_manifest():
    assert ids_in_manifest(f"b{REPEATED}3") == [f"b{REPEATED}3", "b"]
    assert ids_in_manifest(f"b{REPEATED}able") == [f"b{REPEATED}able"] and ids_in_manifest("b") == ["b"]
