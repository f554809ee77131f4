"""kdstream/data.py and the preparation of corpora."""

from __future__ import annotations

import logging
import random
import shutil
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, NumpyFilesWriter, SupervisionSegment

from kdstream.config.sections import DataConfig
from kdstream.corpus import bpe as train_bpe_model
from kdstream.corpus import fbank as fbank_script
from kdstream.corpus import manifests as prepare_manifests
from kdstream.data.batch import Batch, make_batch
from kdstream.data.features import compute_fbank
from kdstream.data.module import AsrDataModule
from kdstream.data.reading import read_audio
from kdstream.data.tokenizer import Tokenizer
from kdstream.errors import UserError
from kdstream.models.streaming import LOG_EPS
from support.data import WORDS, batches_of, make_part
from support.decoding import run_script
from support.training import make_cut


def store(root: Path, parts: tuple[str, ...], perturb_speed: bool = False) -> None:
    """Stages 1 and 3 of prepare.sh, in this process."""
    (root / "manifests").mkdir(exist_ok=True)
    (root / "fbank").mkdir(exist_ok=True)
    for part in parts:
        prepare_manifests.prepare_part(root / "LibriSpeech", part, root / "manifests")
        with ThreadPool(1) as pool:
            fbank_script.compute_part(root / "manifests", root / "fbank", part, pool, part == "train", perturb_speed)


def train_tokenizer(root: Path, vocab_size: int = 30) -> Path:
    lang = root / f"lang_bpe_{vocab_size}"
    lang.mkdir()
    texts = train_bpe_model.of_parts(root / "manifests", "train")
    (lang / "transcript_words.txt").write_text("\n".join(texts))
    train_bpe_model.train(lang / "transcript_words.txt", lang, vocab_size)
    return lang / "bpe.model"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus: 40 training utterances, 6 of dev, 6 of test."""
    root = tmp_path_factory.mktemp("corpus")
    for speaker, (part, count) in enumerate([("train", 40), ("dev", 6), ("test", 6)], start=1):
        make_part(root, part, speaker, count, seed=speaker)
    store(root, ("train", "dev", "test"))
    train_tokenizer(root)
    return root


def test_tokens_of_cuts_are_those_of_their_supervisions(corpus, tmp_path, monkeypatch):
    same = ("--vocab-size", 30, "--lang-dir")
    cuts = corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"
    parts = ("--parts", "train", "--manifest-dir", corpus / "manifests")
    for name, flags in (("cuts", ("--cuts", cuts)), ("parts", parts)):
        assert run_script(monkeypatch, "local/train_bpe_model.py", *flags, *same, tmp_path / name) == ""
    assert (tmp_path / "cuts" / "tokens.txt").read_text() == (tmp_path / "parts" / "tokens.txt").read_text()
    for path, message in (
        (tmp_path / "none.jsonl.gz", "none.jsonl.gz: no such manifest"),
        (
            corpus / "manifests" / "librispeech_supervisions_train.jsonl.gz",
            "damaged or not a manifest of cuts (SupervisionSegment instead of a cut); give one of cuts",
        ),
    ):
        assert message in run_script(monkeypatch, "local/train_bpe_model.py", "--cuts", path, *same, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def config_of(root: Path, **changes) -> DataConfig:
    config = DataConfig(
        manifest_dir=str(root / "fbank"),
        bpe_model=str(root / "lang_bpe_30" / "bpe.model"),
        max_duration=8.0,
        num_buckets=3,
        num_workers=0,
        spec_aug_time_warp_factor=30,  # 80 would leave utterances below 1.6 s alone
    )
    return replace(config, **changes)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [b.cut_ids for b in ours] == [b.cut_ids for b in theirs]
    assert [b.texts for b in ours] == [b.texts for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.feature_lens, b.feature_lens)


# Features


def test_batches_are_padded_with_the_log_energy_of_silence(corpus):
    utterances = AsrDataModule(config_of(corpus), 0).test_sets()["test"]
    batch = make_batch(list(utterances))
    assert batch.features.shape == (6, int(batch.feature_lens.max()), 80)
    for features, length, utterance in zip(batch.features, batch.feature_lens, utterances, strict=True):
        assert torch.equal(features[:length], utterance.features)
        assert (features[length:] == LOG_EPS).all()
    assert batch.duration == pytest.approx(sum(len(u.features) for u in utterances) / 100)


def test_stored_features_equal_those_from_audio_up_to_their_compression(corpus):
    stored = batches_of(config_of(corpus, enable_spec_aug=False))
    computed = batches_of(config_of(corpus, enable_spec_aug=False, on_the_fly_feats=True))
    for a, b in zip(stored, computed, strict=True):
        assert a.cut_ids == b.cut_ids
        assert (a.features - b.features).abs().max() < 2**-5


def test_other_sampling_rates_are_resampled(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    folder = tmp_path / "LibriSpeech" / "test" / "1" / "1"
    folder.mkdir(parents=True)
    soundfile.write(folder / "1-1-0000.wav", tone, 44100)
    (folder / "1-1.trans.txt").write_text("1-1-0000 ONE\n")
    store(tmp_path, ("test",))
    cut = CutSet.from_file(tmp_path / "fbank" / "librispeech_cuts_test.jsonl.gz")[0]
    samples = read_audio(cut)
    assert samples.shape == (16000,) and cut.load_features().shape == (100, 80)
    expected = compute_fbank(0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))
    peak = expected.mean(dim=0).argmax()
    assert compute_fbank(samples)[5:-5, peak].sub(expected[5:-5, peak]).abs().max() < 0.1


# Order and augmentation


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
    assert_same(whole[5:], batches_of(config, start_batch=5))


def test_skipped_batches_are_not_read(corpus, monkeypatch):
    read = []
    original = MonoCut.load_features
    monkeypatch.setattr(MonoCut, "load_features", lambda self: read.append(self.id) or original(self))
    batches = batches_of(config_of(corpus), start_batch=5)
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


@pytest.mark.parametrize("num_buckets", [1, 2, 30])
def test_every_epoch_holds_every_cut_once_in_batches_of_like_lengths(corpus, num_buckets):
    module = AsrDataModule(config_of(corpus, num_buckets=num_buckets), 0)
    for epoch in range(1, 11):
        batches = list(module.train_dataloader(epoch))
        assert sorted(i for b in batches for i in b.cut_ids) == [f"1-1-{i:04d}" for i in range(40)]
        assert all(batch.duration <= 8.0 + 3.0 for batch in batches)  # it may go over by part of a cut


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


@pytest.mark.parametrize("on_the_fly", [False, True])
def test_noise_is_mixed_into_half_the_cuts_and_repeats(corpus, tmp_path, on_the_fly):
    folder = tmp_path / "noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", 0.1 * rng.standard_normal(12 * 16000), 16000)
    from lhotse.recipes.musan import scan_recordings

    scan_recordings(folder).to_file(tmp_path / "musan_recordings_noise.jsonl.gz")
    with ThreadPool(1) as pool:
        fbank_script.compute_musan(tmp_path, corpus / "fbank", pool)
    config = config_of(corpus, enable_spec_aug=False, on_the_fly_feats=on_the_fly)
    clean, noisy = batches_of(config), batches_of(replace(config, enable_musan=True))
    assert_same(noisy[2:], batches_of(replace(config, enable_musan=True), start_batch=2))
    assert [b.cut_ids for b in clean] == [b.cut_ids for b in noisy]
    changed = [
        not torch.equal(a[:n], b[:n])
        for c, d in zip(clean, noisy, strict=True)
        for a, b, n in zip(c.features, d.features, c.feature_lens, strict=True)
    ]
    assert 10 <= sum(changed) <= 30


# Tokens


def test_tokens_have_icefalls_ids(corpus):
    tokenizer = Tokenizer(corpus / "lang_bpe_30" / "bpe.model")
    assert tokenizer.vocab_size == len(tokenizer.tokens) == 30
    assert tokenizer.tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    text = "ONE TWELVE SEVEN"
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text and min(ids) > 2
    assert tokenizer.encode([text, ""])[1] == []


def test_each_word_ends_with_the_token_that_completes_it(corpus):
    tokenizer = Tokenizer(corpus / "lang_bpe_30" / "bpe.model")
    words = ["ONE", "ON", "ONE", "TWELVE", "TWELVE"]
    per_word = tokenizer.encode(words)
    ends = np.cumsum([len(ids) for ids in per_word]) - 1
    assert tokenizer.word_ends([token for ids in per_word for token in ids]) == ends.tolist()
    assert tokenizer.word_ends([]) == []
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever a model says, <unk> and word boundaries in a row included
        ids = rng.integers(2, tokenizer.vocab_size, rng.integers(1, 12)).tolist()
        said = tokenizer.decode(ids).split()
        ends = tokenizer.word_ends(ids)
        assert len(ends) == len(said) and ends == sorted(ends)
        for place, (word, end) in enumerate(zip(said, ends, strict=True)):
            assert tokenizer.decode(ids[: end + 1]).split()[place] == word
            assert tokenizer.decode(ids[:end]).split()[place : place + 1] != [word]


# Bad input: one clear line


def error_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ";" in message  # what; the fix
    return message


@pytest.fixture
def small(tmp_path) -> Path:
    """A corpus to spoil: 6 training utterances, manifests made."""
    make_part(tmp_path, "train", 1, 6, seed=0)
    return tmp_path


def test_missing_audio_names_the_file(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    path.unlink()
    assert f"{path}: no such file" in error_of(lambda: store(small, ("train",)))


def test_audio_lost_between_the_stages_names_the_file_and_leaves_nothing(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    kept = path.read_bytes()
    store(small, ("train",))
    shutil.rmtree(small / "fbank")
    path.unlink()
    (small / "fbank").mkdir()
    with ThreadPool(1) as pool:
        compute = partial(fbank_script.compute_part, small / "manifests", small / "fbank", "train", pool)
        assert str(path) in error_of(compute)
        assert list((small / "fbank").iterdir()) == []
        path.write_bytes(kept)
        compute()
    assert len(list(CutSet.from_file(small / "fbank" / "librispeech_cuts_train.jsonl.gz"))) == 6


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_audio_names_the_file(small, share):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1-0003.flac"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in error_of(lambda: store(small, ("train",)))
    assert not (small / "fbank").exists() or list((small / "fbank").iterdir()) == []


def test_nan_in_audio_names_the_file(tmp_path):
    folder = tmp_path / "LibriSpeech" / "train" / "1" / "1"
    folder.mkdir(parents=True)
    samples = np.zeros(32000, dtype=np.float32)
    samples[777] = np.nan
    soundfile.write(folder / "1-1-0000.wav", samples, 16000, subtype="FLOAT")
    (folder / "1-1.trans.txt").write_text("1-1-0000 ONE\n")
    assert "NaN" in error_of(lambda: store(tmp_path, ("train",)))


def test_speakers_behind_links_are_read_and_transcripts_may_begin_with_a_byte_order_mark(tmp_path):
    make_part(tmp_path, "train", 1, 3, seed=1)
    make_part(tmp_path / "elsewhere", "more", 2, 2, seed=2)
    (tmp_path / "LibriSpeech" / "train" / "2").symlink_to(tmp_path / "elsewhere" / "LibriSpeech" / "more" / "2")
    marked = tmp_path / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    store(tmp_path, ("train",))
    cuts = CutSet.from_file(tmp_path / "fbank" / "librispeech_cuts_train.jsonl.gz")
    assert sorted(cut.id for cut in cuts) == ["1-1-0000", "1-1-0001", "1-1-0002", "2-1-0000", "2-1-0001"]


def test_transcripts_in_a_wrong_place_or_encoding_are_named(small):
    part = small / "LibriSpeech" / "train"
    stray = part / "1-1.trans.txt"
    stray.write_text("1-1-0000 ONE\n")
    assert f"{stray}: lies beside the speakers' directories" in error_of(lambda: store(small, ("train",)))
    stray.unlink()
    path = part / "1" / "1" / "1-1.trans.txt"
    path.write_bytes("1-1-0000 CAF\u00c9\n".encode("latin-1"))
    assert f"{path}: is not in UTF-8" in error_of(lambda: store(small, ("train",)))


@pytest.mark.parametrize("line", ["1-1-0002", "1-1-0002 ", "1-1-0002 \t "])
def test_empty_transcript_names_the_line(small, line):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_text("\n".join(lines) + "\n")
    assert f"{path}:3: 1-1-0002" in error_of(lambda: store(small, ("train",)))


def test_repeated_utterance_names_the_line(small):
    path = small / "LibriSpeech" / "train" / "1" / "1" / "1-1.trans.txt"
    path.write_text(path.read_text() + "1-1-0001 ONE\n")
    assert f"{path}:7: 1-1-0001 appears twice" in error_of(lambda: store(small, ("train",)))


def test_missing_part_and_empty_part(small):
    assert "nowhere: no such directory" in error_of(lambda: store(small, ("nowhere",)))
    (small / "LibriSpeech" / "empty").mkdir()
    assert "empty: no *.trans.txt" in error_of(lambda: store(small, ("empty",)))


def test_vocabulary_larger_than_the_text_allows(small):
    store(small, ("train",))
    assert "--vocab-size 5000" in error_of(lambda: train_tokenizer(small, 5000))


def test_missing_and_damaged_manifests_name_themselves(corpus, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    config = config_of(corpus, train_cuts=(str(path),))
    assert f"{path}: no such manifest" in error_of(lambda: batches_of(config))
    content = (corpus / "fbank" / "librispeech_cuts_train.jsonl.gz").read_bytes()
    for damaged in (content[: len(content) // 2], b"{]", b""):
        path.write_bytes(damaged)
        error_of(lambda: batches_of(config))
    plain = tmp_path / "cuts.jsonl"
    plain.write_text('{"what": "is this"}\n')
    assert f"{plain}: damaged" in error_of(lambda: batches_of(replace(config, train_cuts=(str(plain),))))


def test_missing_and_broken_bpe_models_name_themselves(corpus, tmp_path):
    assert "no such file" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))
    (tmp_path / "x").write_bytes(b"nothing")
    assert "not a sentencepiece" in error_of(lambda: AsrDataModule(config_of(corpus, bpe_model=str(tmp_path / "x")), 0))


def test_text_in_the_wrong_case_is_noticed(corpus, tmp_path):
    cuts = [
        cut.map_supervisions(lambda s: s.transform_text(str.lower))
        for cut in CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz")
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    message = error_of(lambda: batches_of(config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),))))
    assert "40 of 40 transcripts" in message and "case" in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_features_name_file_and_cut(corpus, tmp_path, num_workers):
    store_dir = tmp_path / "librispeech_feats_train"
    shutil.copytree(corpus / "fbank" / "librispeech_feats_train", store_dir)
    cuts = list(CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"))
    for cut in cuts:
        cut.features.storage_path = str(store_dir / Path(cut.features.storage_path).name)
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    archive = store_dir / "feats-0.lca"
    archive.write_bytes(archive.read_bytes()[:2000])
    config = config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),), num_workers=num_workers)
    message = error_of(lambda: batches_of(config))
    assert str(archive) in message and "1-1-" in message
    archive.unlink()
    assert str(archive) in error_of(lambda: batches_of(config))
    assert len(batches_of(replace(config, on_the_fly_feats=True))) > 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nan_features_name_the_cut(corpus, tmp_path, num_workers):
    features = np.zeros((200, 80), dtype=np.float32)
    features[7, 3] = np.nan
    cut = feature_cut(tmp_path, "spoilt", features, "ONE TWO")
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    path = (str(tmp_path / "cuts.jsonl.gz"),)
    config = config_of(corpus, train_cuts=path, valid_cuts=path, test_cuts=path, num_workers=num_workers)
    module = AsrDataModule(config, 0)
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.train_dataloader(1)))
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.valid_dataloader()))
    assert "cut spoilt: features hold NaN" in error_of(lambda: list(module.test_dataloaders()["cuts"]))


def feature_cut(directory: Path, name: str, features: np.ndarray, text: str) -> MonoCut:
    """A cut with features and no audio."""
    return make_cut(name, features, text, NumpyFilesWriter(directory / "feats"))


def test_cuts_that_the_loss_cannot_take_are_left_out_with_one_line(corpus, tmp_path, caplog):
    frames = lambda n: np.zeros((n, 80), dtype=np.float32)  # noqa: E731
    tokenizer = Tokenizer(corpus / "lang_bpe_30" / "bpe.model")
    text = " ".join(3 * WORDS)
    need = len(tokenizer.encode([text])[0])  # output frames ((n - 7) // 2 + 1) // 2 - 2 must reach it
    fits = next(n for n in range(9, 3000) if ((n - 7) // 2 + 1) // 2 - 2 >= need)
    cuts = [
        feature_cut(tmp_path, "fits", frames(fits), text),
        feature_cut(tmp_path, "crowded", frames(fits - 1), text),
        feature_cut(tmp_path, "short", frames(99), "ONE"),
        feature_cut(tmp_path, "long", frames(2001), "ONE"),
        feature_cut(tmp_path, "longest", frames(2000), "ONE"),
        feature_cut(tmp_path, "shortest", frames(100), "ONE"),
        feature_cut(tmp_path, "silent", frames(200), " "),
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    config = config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),), enable_spec_aug=False)
    with caplog.at_level(logging.INFO):
        kept = [i for b in batches_of(config) for i in b.cut_ids]
    assert sorted(kept) == ["fits", "longest", "shortest"]
    lines = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(lines) == 1
    for expected in (
        "training cuts: 3 kept",
        "1 too short for their tokens (crowded)",
        "1 shorter than 1 s (short)",
        "1 longer than 20 s (long)",
        "1 with an empty transcript (silent)",
    ):
        assert expected in lines[0]
    only_bad = tmp_path / "bad.jsonl.gz"
    CutSet.from_cuts(cuts[1:4]).to_file(only_bad)
    assert "no training cut is left" in error_of(lambda: batches_of(replace(config, train_cuts=(str(only_bad),))))


def test_test_cuts_without_a_transcript_or_with_several_are_named(corpus, tmp_path):
    same = str(corpus / "fbank" / "librispeech_cuts_test.jsonl.gz")
    assert "named alike" in error_of(AsrDataModule(config_of(corpus, test_cuts=(same, same)), 0).test_sets)
    silent = feature_cut(tmp_path, "silent", np.zeros((200, 80), dtype=np.float32), "")
    double = feature_cut(tmp_path, "double", np.zeros((200, 80), dtype=np.float32), "ONE")
    double.supervisions = [*double.supervisions, SupervisionSegment("b", "double", 1, 0.5, text="TWO")]
    for name, cut in (("silent", silent), ("double", double)):
        CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
        module = AsrDataModule(config_of(corpus, test_cuts=(str(tmp_path / "cuts.jsonl.gz"),)), 0)
        assert f"cut {name}" in error_of(lambda module=module: list(module.test_dataloaders()["cuts"]))
