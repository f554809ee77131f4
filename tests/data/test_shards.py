"""Training cuts in Shar directories and indexed manifests: read without a pass over them, and from any window on."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from kdstream.config.sections import DataConfig
from kdstream.corpus.bpe import transcripts_of_cuts
from kdstream.corpus.lines import copy_of
from kdstream.corpus.pseudo_labels import Hypothesis, labelled, read_cuts
from kdstream.corpus.validate import check_cut
from kdstream.data import shar, shards
from kdstream.data.augment import Epoch
from kdstream.data.checks import check_readable
from kdstream.data.cuts import iterate, read_manifest, write_cuts
from kdstream.data.mixture import REPEATED
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_audio, read_utterance
from kdstream.evaluation.scoring import Transcript
from support.data import assert_same, batches_of, config_of, error_of

OF_SHARD = 4  # cuts


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory) -> dict[str, Path]:
    """The training cuts of the corpus (40) in shards of 4: with audio, with features, and as an indexed manifest."""
    root = tmp_path_factory.mktemp("shards")
    cuts = CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")
    for name, fields in (("audio", {"recording": "flac"}), ("features", {"features": "lilcom"})):
        (root / name).mkdir()
        cuts.to_shar(root / name, fields=fields, shard_size=OF_SHARD)
    manifest = root / "cuts.jsonl"
    cuts.to_file(manifest)
    shar.write_index(manifest)
    return {"audio": root / "audio", "features": root / "features", "manifest": manifest}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch) -> None:
    """Of three shards: 12 cuts."""
    monkeypatch.setattr(shards, "WINDOW", 3 * OF_SHARD)
    monkeypatch.setattr(shar, "LINES", OF_SHARD)


def of_shards(corpus, path: Path, **changes) -> DataConfig:
    return config_of(corpus, train_cuts=(str(path),), enable_spec_aug=False, **changes)


@pytest.mark.parametrize("kind", ["audio", "features", "manifest"])
def test_cuts_in_shards_are_the_cuts_of_the_manifest(corpus, folders, kind: str) -> None:
    plain = config_of(corpus, enable_spec_aug=False, on_the_fly_feats=kind == "audio")
    expected = {i: (f[:n], t) for b in batches_of(plain) for i, f, n, t in zip(
        b.cut_ids, b.features, b.feature_lens, b.texts, strict=True)}  # fmt: skip
    config = of_shards(corpus, folders[kind], on_the_fly_feats=kind == "audio")
    first, second = batches_of(config), batches_of(config, epoch=2)
    for epoch in (first, second):
        assert Counter(i for b in epoch for i in b.cut_ids) == Counter(expected.keys())
    assert [b.cut_ids for b in first] != [b.cut_ids for b in second]
    for batch in first:
        for cut_id, features, length, text in zip(
            batch.cut_ids, batch.features, batch.feature_lens, batch.texts, strict=True
        ):
            assert text == expected[cut_id][1]
            # lilcom is written anew, with another rounding; FLAC has 16 bits
            torch.testing.assert_close(features[:length], expected[cut_id][0], atol=0.2, rtol=0)
    assert_same(first, batches_of(config))
    assert_same(first, batches_of(replace(config, num_workers=2)))


@pytest.mark.parametrize("kind", ["audio", "manifest"])
def test_a_resumed_epoch_opens_no_shard_that_came_before_its_window(corpus, folders, tmp_path, kind, monkeypatch):
    path = tmp_path / folders[kind].name
    if kind == "audio":
        shutil.copytree(folders[kind], path)
    else:
        shutil.copyfile(folders[kind], path)
        shar.write_index(path)
    config = of_shards(corpus, path, on_the_fly_feats=kind == "audio")
    module = AsrDataModule(config, 7)
    whole, windows = [], []
    loader = module.train_dataloader(1)
    for batch in loader:
        whole.append(batch)
        windows.append(loader.window_of(len(whole)))
    number = next(index for index, window in enumerate(windows) if window[0] == 6) + 1  # batches that were used
    assert [*dict.fromkeys(first for first, _ in windows)] == [0, 3, 6, 9]
    opened: list[shar.CutShard] = []
    original = shards._ShardReader.__init__
    monkeypatch.setattr(shards._ShardReader, "__init__", lambda self, shard, *a: (
        opened.append(shard), original(self, shard, *a))[1])  # fmt: skip
    resumed = AsrDataModule(config, 7)
    resumed.look_at_training_cuts()
    opened.clear()
    for world_size in (1, 2):
        where = number, windows[number - 1]
        loaders = [resumed.train_dataloader(1, world_size, rank, *where) for rank in range(world_size)]
        batches = [*map(list, loaders)]
        if world_size == 1:
            assert_same(batches[0], whole[number:])
            assert loaders[0].window_of(number) == windows[number - 1]
            assert len(opened) == 10 - 2 * 3
    assert sorted(i for rank in batches for b in rank for i in b.cut_ids) == sorted(
        i for b in whole[number:] for i in b.cut_ids
    )


def test_a_few_shards_spread_over_all_are_read_before_the_first_window(corpus, folders, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shards, "LOOKED_AT", 4)
    path, numbers = tmp_path / "shar", (0, 3, 6, 9)
    shutil.copytree(folders["features"], path)
    kept = [f"{what}.{n:06d}.{end}" for n in numbers for what, end in (("cuts", "jsonl.gz"), ("features", "tar"))]
    for file in path.iterdir():
        if file.name not in kept:
            file.write_bytes(b"")
    module = AsrDataModule(of_shards(corpus, path), 7)
    with caplog.at_level(logging.INFO):
        train = module.look_at_training_cuts()
    assert "training (4 of 10 shards) cuts: 16 kept" in caplog.text
    cuts = list(iterate(CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")))
    seconds = [cut.duration for index, cut in enumerate(cuts) if index // OF_SHARD in numbers]
    assert train.seconds == pytest.approx(10 / 4 * sum(seconds))


def indexed(folder: Path, name: str, corpus: Path, count: int, with_text: bool = True) -> str:
    """An indexed manifest of so many cuts of the corpus, one after the other and then again."""
    cuts = list(iterate(CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")))
    manifest = folder / f"{name}.jsonl"
    some = [cuts[index % len(cuts)].with_id(f"{name}-{index}") for index in range(count)]
    CutSet.from_cuts(some if with_text else (cut.drop_supervisions() for cut in some)).to_file(manifest)
    shar.write_index(manifest)
    return str(manifest)


def test_windows_are_filled_by_the_cuts_of_their_shards(corpus, tmp_path, monkeypatch) -> None:
    """Whatever the first shard has.  Cuts that are left out do not count."""
    monkeypatch.setattr(shar, "LINES", 10)
    monkeypatch.setattr(shards, "WINDOW", 30)
    small, large = indexed(tmp_path, "small", corpus, 1), indexed(tmp_path, "large", corpus, 120)
    unusable = indexed(tmp_path, "unusable", corpus, 40, with_text=False)
    for paths in ((small, large, unusable), (unusable, large, small)):
        train = AsrDataModule(config_of(corpus, train_cuts=paths), 7).look_at_training_cuts()
        order = Epoch(7, 1)
        numbers, sizes = zip(*((number, len(list(cuts))) for number, cuts in train.windows(1, order, 0)), strict=True)
        assert sum(sizes) == 121 and all(30 <= size < 40 for size in sizes[:-1])
        for index, number in enumerate(numbers):
            assert [(n, len(list(cuts))) for n, cuts in train.windows(1, order, number)] == [
                *zip(numbers[index:], sizes[index:], strict=True)
            ]


def test_training_is_refused_where_no_shard_that_is_looked_at_has_a_usable_cut(corpus, tmp_path) -> None:
    usable, unusable = (
        indexed(tmp_path, "usable", corpus, 80),
        indexed(tmp_path, "unusable", corpus, 4, with_text=False),
    )
    train = AsrDataModule(config_of(corpus, train_cuts=(unusable, usable)), 7).look_at_training_cuts()
    assert train.seconds > 0
    message = error_of(lambda: batches_of(config_of(corpus, train_cuts=(unusable,))))
    assert message.startswith(f"{unusable}: no training cut is left in 1 of 1 shards")


def test_cuts_that_the_loss_cannot_take_are_left_out_while_they_are_read(corpus, folders, caplog) -> None:
    config = of_shards(corpus, folders["manifest"], min_utterance_seconds=2.0)
    with caplog.at_level(logging.INFO):
        batches = batches_of(config)
    kept = sum(len(b.cut_ids) for b in batches)
    assert 0 < kept < 40 and all(n >= 200 for b in batches for n in b.feature_lens.tolist())
    lines = [line for line in caplog.messages if line.startswith("Epoch 1: training cuts")]
    assert len(lines) == 1 and f"training cuts: {kept} kept" in lines[0] and f"{40 - kept} shorter than 2 s" in lines[0]


def test_what_is_wrong_with_shards_is_named(corpus, folders, tmp_path) -> None:
    manifest = tmp_path / "cuts.jsonl"
    manifest.write_bytes(folders["manifest"].read_bytes()[:-10])
    np.fromfile(f"{folders['manifest']}.idx", "<u8").tofile(f"{manifest}.idx")
    assert f"{manifest}.idx: is not the index" in error_of(lambda: batches_of(of_shards(corpus, manifest)))
    for name in ("lone", "damaged", "lacking"):
        shutil.copytree(folders["features"], tmp_path / name)
    (tmp_path / "lone" / "features.000003.tar").unlink()
    assert "neither recording.000003.tar nor" in error_of(lambda: batches_of(of_shards(corpus, tmp_path / "lone")))
    (tmp_path / "damaged" / "features.000003.tar").write_bytes(b"x" * 2000)
    message = error_of(lambda: batches_of(of_shards(corpus, tmp_path / "damaged")))
    assert f"{tmp_path}/damaged/features.000003.tar: cannot read the data of cut" in message
    (tmp_path / "lacking" / "features.000003.tar").write_bytes(
        (tmp_path / "lacking" / "features.000002.tar").read_bytes()
    )
    assert "(it is not there)" in error_of(lambda: batches_of(of_shards(corpus, tmp_path / "lacking")))


@pytest.mark.parametrize("kind", ["audio", "features"])
def test_a_shar_directory_serves_wherever_a_manifest_does(corpus, folders, tmp_path, kind):
    plain, shar_dir = str(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"), str(folders[kind])
    (expected,), (found,) = (
        AsrDataModule(config_of(corpus, valid_cuts=(path,), test_cuts=(path,)), 0).test_sets().values()
        for path in (plain, shar_dir)
    )
    texts = {utterance.cut_id: utterance for utterance in expected}
    assert len(found) == len(texts) == 40
    for utterance in found:
        assert utterance.text == texts[utterance.cut_id].text
        if kind == "audio":
            torch.testing.assert_close(utterance.features, texts[utterance.cut_id].features, atol=0.2, rtol=0)
    valid = AsrDataModule(config_of(corpus, valid_cuts=(shar_dir,), on_the_fly_feats=kind == "audio"), 0)
    assert sorted(name for batch in valid.valid_dataloader() for name in batch.cut_ids) == sorted(texts)
    assert sorted(transcripts_of_cuts(shar_dir)) == sorted(utterance.text for utterance in texts.values())
    cuts = read_cuts(Path(shar_dir))
    manifest = tmp_path / "pseudo.jsonl.gz"
    write_cuts([labelled(Hypothesis(cut, Transcript(cut.id, [], []), "ONE", 0.9)) for cut in cuts], manifest)
    for cut in iterate(read_manifest(manifest)):
        check_cut(cut, manifest)
        utterance = read_utterance(cut, from_audio=kind == "audio")
        assert utterance.text == "ONE" and len(utterance.features) == texts[cut.id].features.shape[0]


@pytest.mark.parametrize("kind", ["audio", "features"])
def test_cuts_of_shards_are_read_under_other_ids_too(corpus, folders, tmp_path, kind):
    cut = next(iter(iterate(read_manifest(folders[kind]))))
    expected = read_utterance(cut, from_audio=kind == "audio").features
    manifest = tmp_path / "cuts.jsonl.gz"
    write_cuts([cut.with_id("other"), cut.truncate(duration=0.5).with_id("part")], manifest)
    other, part = iterate(read_manifest(manifest))
    for changed, of_expected in ((other, expected), (part, expected[:40])):
        check_readable(changed, kind == "audio", manifest)
        features = read_utterance(changed, from_audio=kind == "audio").features
        torch.testing.assert_close(features[: len(of_expected)], of_expected, atol=1e-5, rtol=0)
    if kind == "audio":
        assert len(read_audio(copy_of(cut, "narrowband", tmp_path))) == len(read_audio(cut))


@pytest.mark.parametrize("kind", ["audio", "features"])
def test_cuts_of_shards_may_come_twice_in_an_epoch(corpus, folders, kind):
    plain = str(corpus / "fbank" / "librispeech_cuts_dev.jsonl.gz")
    beside = of_shards(corpus, plain, pseudo_cuts=(str(folders[kind]),), pseudo_ratio=0.95)
    names = [name for batch in batches_of(replace(beside, on_the_fly_feats=kind == "audio")) for name in batch.cut_ids]
    assert any(name.endswith(f"{REPEATED}1") for name in names)


def test_cuts_in_shards_are_counted_where_they_are_mixed(corpus, folders):
    """As manifests: each once without weights, by weight with them."""
    plain = str(corpus / "fbank" / "librispeech_cuts_dev.jsonl.gz")
    both = (str(folders["features"]), plain)
    batches = batches_of(config_of(corpus, train_cuts=both))
    others = [cut.id for cut in iterate(read_manifest(Path(plain)))]
    names = [name for batch in batches for name in batch.cut_ids]
    assert len(names) == len(set(names)) == 40 + len(others) and set(others) <= set(names)
    mixed = [i for b in batches_of(config_of(corpus, train_cuts=both, mux_weights=(0.5, 0.5))) for i in b.cut_ids]
    assert len(mixed) == 2 * len(others) and set(others) <= set(mixed)
