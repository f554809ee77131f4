"""Batches of an epoch: their order, their augmentation, and who reads them."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut

from kdstream.corpus.fbank import compute_musan
from kdstream.data.augment import MUSAN_CUTS
from kdstream.data.batch import Batch
from kdstream.data.module import AsrDataModule
from kdstream.errors import UserError
from support.data import (
    assert_same,
    batches_of,
    config_of,
    error_of,
    feature_cut,
)
from support.training import make_corpus


def test_an_epoch_repeats_and_another_differs(corpus):
    config = config_of(corpus)
    first, second = batches_of(config, epoch=1), batches_of(config, epoch=2)
    assert_same(first, batches_of(config, epoch=1))
    assert sorted(i for b in first for i in b.cut_ids) == sorted(i for b in second for i in b.cut_ids)
    assert [b.cut_ids for b in first] != [b.cut_ids for b in second]
    by_id = {i: f for b in second for i, f in zip(b.cut_ids, b.features, strict=True)}
    assert any(
        not torch.equal(f[:100], by_id[i][:100]) for b in first for i, f in zip(b.cut_ids, b.features, strict=True)
    )


def test_a_resumed_epoch_gives_the_batches_and_the_augmentation_of_an_uninterrupted_one(corpus):
    config = config_of(corpus)
    whole = batches_of(config)
    assert len(whole) > 6
    plain = batches_of(replace(config, enable_spec_aug=False))
    assert not torch.equal(whole[-1].features, plain[-1].features)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert_same(whole[5:], batches_of(config, done=5))


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_epoch_goes_on_in_any_number_of_processes_without_a_cut_twice(corpus, world_size):
    """Left out is what an epoch that was not interrupted leaves out too: in the end, fewer cuts than processes."""
    config = config_of(corpus)
    whole = batches_of(config)
    for done in range(len(whole)):
        ranks = [batches_of(config, world_size=world_size, rank=rank, done=done) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        taken = [i for batches in ranks for b in batches for i in b.cut_ids]
        left = {i for b in whole[done:] for i in b.cut_ids}
        assert len(set(taken)) == len(taken) and set(taken) <= left and len(taken) > len(left) - world_size


def test_skipped_batches_are_not_read(corpus, monkeypatch):
    read = []
    original = MonoCut.load_features
    monkeypatch.setattr(MonoCut, "load_features", lambda self: read.append(self.id) or original(self))
    batches = batches_of(config_of(corpus), done=5)
    assert read == [i for b in batches for i in b.cut_ids]


def test_worker_processes_do_not_change_batches(corpus):
    assert_same(batches_of(config_of(corpus)), batches_of(config_of(corpus, num_workers=2)))


@pytest.mark.parametrize("max_duration", [7.0, 8.0, 9.0, 10.0])
def test_two_processes_see_the_batches_of_one_in_turn(corpus, max_duration):
    config = config_of(corpus, max_duration=max_duration)
    one = batches_of(config)
    two = [batches_of(config, world_size=2, rank=rank) for rank in (0, 1)]
    assert len(two[0]) == len(two[1])
    whole = len(one) // 2
    assert_same([b for pair in zip(two[0][:whole], two[1][:whole], strict=True) for b in pair], one[: 2 * whole])
    left_over = one[2 * whole].cut_ids if len(one) % 2 else []
    divided = [i for batches in two for b in batches[whole:] for i in b.cut_ids]
    assert sorted(divided) == (sorted(left_over) if len(left_over) > 1 else [])


def test_loading_leaves_the_random_generators_of_the_model_alone(corpus):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    batches_of(config_of(corpus))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("num_buckets", [1, 2, 30])
def test_every_epoch_holds_every_cut_once_in_batches_of_like_lengths(corpus, num_buckets):
    module = AsrDataModule(config_of(corpus, num_buckets=num_buckets), 0)
    for epoch in range(1, 11):
        batches = list(module.train_dataloader(epoch))
        assert sorted(i for b in batches for i in b.cut_ids) == [f"1-1-{i:04d}" for i in range(40)]
        assert all(batch.features.size(0) * batch.features.size(1) <= 800 for batch in batches)


def test_validation_reads_audio_only_for_a_teacher_that_listens_to_it(tmp_path):
    module = AsrDataModule(make_corpus(tmp_path, 4), 0, with_audio=True)  # of features alone
    assert all(batch.audio is None for batch in module.valid_dataloader())
    with pytest.raises(UserError, match=r"cut utterance-\d\d: no recording; give a manifest"):
        list(module.valid_dataloader(with_audio=True))


def test_valid_and_test_loaders_cover_their_sets_in_one_order_without_augmentation(corpus):
    module = AsrDataModule(config_of(corpus), 0)
    valid, again = list(module.valid_dataloader()), list(AsrDataModule(config_of(corpus), 5).valid_dataloader())
    assert_same(valid, again)
    assert sorted(i for b in valid for i in b.cut_ids) == [f"2-1-{i:04d}" for i in range(6)]
    split = [i for rank in (0, 1) for b in module.valid_dataloader(2, rank) for i in b.cut_ids]
    assert sorted(split) == sorted(i for b in valid for i in b.cut_ids)
    loader = module.test_dataloaders()["test"]
    batches = list(loader)
    assert len(batches) == loader.num_batches
    by_id = {u.cut_id: u for u in module.test_sets()["test"]}
    assert sorted(by_id) == sorted(i for b in batches for i in b.cut_ids)
    for batch in batches:
        for cut_id, text, features, length in zip(
            batch.cut_ids, batch.texts, batch.features, batch.feature_lens, strict=True
        ):
            assert text == by_id[cut_id].text
            assert torch.equal(features[:length], by_id[cut_id].features)


def make_noise(corpus, tmp_path) -> None:
    """Three cuts of noise beside the corpus, with their features."""
    folder = tmp_path / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", 0.1 * rng.standard_normal(12 * 16000), 16000)
    from lhotse.recipes.musan import scan_recordings

    scan_recordings(folder).to_file(tmp_path / "musan_recordings_noise.jsonl.gz")
    with ThreadPool(1) as pool:
        compute_musan(tmp_path, corpus / "fbank", pool)


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_noise_is_mixed_into_half_the_cuts_and_repeats(corpus, tmp_path, on_the_fly):
    make_noise(corpus, tmp_path)
    config = config_of(corpus, enable_spec_aug=False, on_the_fly_feats=on_the_fly)
    clean, noisy = batches_of(config), batches_of(replace(config, enable_musan=True))
    assert_same(noisy[2:], batches_of(replace(config, enable_musan=True), done=2))
    assert [b.cut_ids for b in clean] == [b.cut_ids for b in noisy]
    changed = [
        not torch.equal(a[:n], b[:n])
        for c, d in zip(clean, noisy, strict=True)
        for a, b, n in zip(c.features, d.features, c.feature_lens, strict=True)
    ]
    assert 10 <= sum(changed) <= 30


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("on_the_fly", [False, True])
def test_noise_that_cannot_be_read_is_blamed_itself(corpus, tmp_path, on_the_fly, num_workers):
    make_noise(corpus, tmp_path)
    path = corpus / "fbank" / MUSAN_CUTS
    cuts = CutSet.from_file(path).to_eager()
    for cut in cuts:
        cut.recording.sources[0].source = "/gone/noise.wav"
        cut.features.storage_path = "/gone/noise.lca"
    cuts.to_file(path)
    config = config_of(corpus, enable_musan=True, on_the_fly_feats=on_the_fly, num_workers=num_workers)
    message = error_of(lambda: batches_of(config))
    said = r"wav: no such file; restore .* cut \d-\d-0 out" if on_the_fly else r"lca: cannot read .* cut \d-\d-0; .*"
    assert re.fullmatch(rf"--enable-musan 1: noise for cut 1-1-\d{{4}}: /gone/noise\.{said}", message)


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_clean_features_have_neither_noise_nor_masks_and_change_nothing_else(corpus, tmp_path, on_the_fly):
    make_noise(corpus, tmp_path)
    plain = config_of(corpus, enable_spec_aug=False, on_the_fly_feats=on_the_fly)
    config = replace(plain, enable_musan=True, enable_spec_aug=True, spec_aug_time_warp_factor=0)
    with_clean = list(AsrDataModule(config, 7, with_clean=True).train_dataloader(1))
    assert_same(with_clean, batches_of(config))
    assert_same([batch.for_teacher()[0] for batch in with_clean], batches_of(plain))
    assert all(batch.clean_features is None and batch.for_teacher() == [batch] for batch in batches_of(config))


def test_clean_features_are_warped_as_those_that_are_masked(corpus):
    config = config_of(corpus)
    warped = 0
    plain = batches_of(replace(config, enable_spec_aug=False))
    for batch, still in zip(AsrDataModule(config, 7, with_clean=True).train_dataloader(1), plain, strict=True):
        assert batch.clean_features is not None
        for x, clean, length in zip(batch.features, batch.clean_features, batch.feature_lens.tolist(), strict=True):
            masked = x[:length] != clean[:length]
            assert masked.float().mean() < 0.9
            torch.testing.assert_close(x[:length][masked], clean[:length].mean().expand(int(masked.sum())))
        warped += int((batch.clean_features != still.features).flatten(1).any(1).sum())
    assert warped > 20  # of 40


def test_two_views_are_of_one_warp_and_each_has_masks_of_its_own(corpus):
    config = config_of(corpus)

    def batches(**changes) -> list[Batch]:
        module = AsrDataModule(replace(config, **changes), 7, with_clean=True)
        module.two_views = True
        return list(module.train_dataloader(1))

    shares, views = [], batches()
    for batch, again, mild in zip(views, batches(), batches(time_mask_ratio=1.0), strict=True):
        assert torch.equal(batch.features, again.features) and torch.equal(batch.second_view, again.second_view)
        assert not torch.equal(batch.features, batch.second_view)
        for x, y, clean, m, length in zip(
            batch.features, batch.second_view, batch.clean_features, mild.features, batch.feature_lens, strict=True
        ):
            for view in (x[:length], y[:length]):
                masked = view != clean[:length]  # the clean features are of the same warp
                torch.testing.assert_close(view[masked], clean[:length].mean().expand(int(masked.sum())))
            shares.append([(view != clean)[:length].all(dim=1).float().mean() for view in (x, m)])
    strong, mild = torch.tensor(shares).mean(dim=0)
    assert strong > 1.5 * mild > 0.05  # of all frames are masked
    assert all(batch.second_view is None for batch in batches_of(config))


def cuts_of_lengths(folder, lengths: list[float]) -> str:
    rng = np.random.default_rng(0)
    feats = [rng.standard_normal((round(100 * seconds), 80)).astype(np.float32) for seconds in lengths]
    CutSet.from_cuts(feature_cut(folder, f"c{i:03d}", x, "ONE") for i, x in enumerate(feats)).to_file(
        folder / "cuts.jsonl.gz"
    )
    return str(folder / "cuts.jsonl.gz")


@pytest.mark.parametrize("max_duration", [20.0, 40.0, 80.0, 200.0])
def test_one_long_cut_among_short_ones_makes_no_batch_larger_than_max_duration(corpus, tmp_path, max_duration):
    path = cuts_of_lengths(tmp_path, 62 * [1.0] + [18.0])
    module = AsrDataModule(config_of(corpus, train_cuts=(path,), max_duration=max_duration, enable_spec_aug=False), 0)
    for epoch in range(1, 9):
        batches = list(module.train_dataloader(epoch))
        assert sorted(i for b in batches for i in b.cut_ids) == [f"c{i:03d}" for i in range(63)]
        padded = [b.features.size(0) * b.features.size(1) / 100 for b in batches]
        assert max(padded) <= max_duration
        for world_size in (2, 3, 8):
            ranks = [list(module.train_dataloader(epoch, world_size, rank)) for rank in range(world_size)]
            together = [b for batches in ranks for b in batches]
            assert max(b.features.size(0) * b.features.size(1) / 100 for b in together) <= max_duration
            taken = sorted(i for b in together for i in b.cut_ids)
            assert 63 - world_size < len(taken) == len(set(taken))  # fewer than processes may be dropped
        assert_same(batches[2:], list(module.train_dataloader(epoch, done=2)))
