"""Manifests that a data module refuses, and cuts that it leaves out."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

import numpy as np
from lhotse import CutSet, SupervisionSegment

from kdstream.data.module import AsrDataModule, names_of
from kdstream.data.tokenizer import Tokenizer
from support.data import (
    WORDS,
    batches_of,
    config_of,
    error_of,
    feature_cut,
)


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


def test_two_cuts_with_one_id_are_refused_in_every_set(corpus, tmp_path):
    cuts = list(CutSet.from_file(corpus / "fbank" / "librispeech_cuts_train.jsonl.gz"))[:5]
    path = tmp_path / "twice.jsonl.gz"
    CutSet.from_cuts([*cuts, cuts[2]]).to_file(path)
    config = config_of(corpus, valid_cuts=(str(path),), test_cuts=(str(path),))
    module = AsrDataModule(config, 0)
    for what, call in (("validation cuts", module.valid_dataloader), ("test set twice", module.test_sets)):
        assert f"{what}: two cuts have the id {cuts[2].id}; rename one with cut.with_id()" in error_of(call)


def test_a_cut_longer_than_a_batch_is_one_of_its_own_without_a_warning(corpus, tmp_path):
    path = tmp_path / "long.jsonl.gz"
    frames = np.zeros((1000, 80), dtype=np.float32)
    CutSet.from_cuts(feature_cut(tmp_path, name, frames, "ONE") for name in "ab").to_file(path)
    module = AsrDataModule(config_of(corpus, valid_cuts=(str(path),), max_duration=8.0), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [batch.cut_ids for batch in module.valid_dataloader()] == [["a"], ["b"]]


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
        feature_cut(tmp_path, "blank", frames(200), "ONE <blk> TWO"),
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
        "1 with <blk> in their transcript (blank)",
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


def test_a_part_is_found_whatever_its_corpus_unless_two_have_it(corpus, tmp_path):
    for name in ("librispeech_cuts_test-clean", "aishell_cuts_test", "musan_cuts", "tedlium_cuts_dev"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes((corpus / "fbank" / "librispeech_cuts_dev.jsonl.gz").read_bytes())
    module = AsrDataModule(config_of(corpus, manifest_dir=str(tmp_path), test_parts=("test", "test-clean")), 0)
    assert [path.name.split("_")[0] for path in module.paths("test")] == ["aishell", "librispeech"]
    assert list(module.test_sets()) == ["aishell-test", "test-clean"]
    (tmp_path / "tedlium_cuts_test.jsonl.gz").touch()
    message = error_of(lambda: module.paths("test"))
    assert (
        "has part test of 2 corpora: aishell_cuts_test.jsonl.gz, tedlium_cuts_test.jsonl.gz; name manifests" in message
    )
    lacking = AsrDataModule(config_of(corpus, manifest_dir=str(tmp_path), train_parts=("other",)), 0)
    assert f"{tmp_path}/librispeech_cuts_other.jsonl.gz: no such manifest" in error_of(
        lambda: lacking.train_dataloader(1)
    )


def test_test_sets_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / "fbank" / "librispeech_cuts_test.jsonl.gz" for folder in ("ted", "swb", "deep/ted")]
    assert names_of(paths[:2]) == ["ted-test", "swb-test"]
    assert names_of(paths) == ["ted-test", "swb-test", "deep-ted-test"]
    assert names_of([paths[0], tmp_path / "aishell_cuts_test.jsonl.gz", tmp_path / "other.jsonl"]) == [
        "test", "aishell-test", "other",
    ]  # fmt: skip
    assert "named alike" in error_of(lambda: names_of([paths[0], paths[0]]))
