"""The selection of training cuts: kept beside its manifest, and made again when anything that it depends on changes."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from kdstream.config.sections import DataConfig
from kdstream.data import selection
from kdstream.data.selection import Rules, Selection, select
from kdstream.data.tokenizer import Tokenizer
from support.data import batches_of, config_of, error_of, feature_cut


@pytest.fixture
def data(corpus, tmp_path) -> DataConfig:
    """Six cuts, of which training takes three; one of these has letters that no token spells."""
    frames = {"fits": 200, "tall": 300, "unknown": 250, "short": 50, "long": 2100, "silent": 200}
    texts = {"silent": " ", "unknown": "ONE 2"}
    cuts = [
        feature_cut(tmp_path, name, np.zeros((count, 80), dtype=np.float32), texts.get(name, "ONE TWO"))
        for name, count in frames.items()
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    return config_of(corpus, train_cuts=(str(tmp_path / "cuts.jsonl.gz"),), enable_spec_aug=False)


@pytest.fixture
def looks(monkeypatch) -> list[str]:
    """The ids of the cuts that a selection has looked at."""
    seen: list[str] = []
    takes = Selection._takes
    monkeypatch.setattr(Selection, "_takes", lambda self, cut, tokens: seen.append(cut.id) or takes(self, cut, tokens))
    return seen


def kept_in(data: DataConfig) -> Path:
    return Path(data.train_cuts[0] + ".selection.npz")


def ids_and_lines(data: DataConfig, caplog) -> tuple[list[str], list[str]]:
    """The cuts of an epoch, and what the log says of them."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        ids = [cut_id for batch in batches_of(data) for cut_id in batch.cut_ids]
    return ids, [record.getMessage() for record in caplog.records]


def test_the_second_training_looks_at_no_cut_and_takes_the_same_ones(data, looks, caplog):
    first = ids_and_lines(data, caplog)
    assert sorted(first[0]) == ["fits", "tall", "unknown"] and len(looks) == 6
    assert any("3 kept" in line and "1 have <unk>" in line and "(silent)" in line for line in first[1])
    looks.clear()
    assert ids_and_lines(data, caplog) == first and not looks


@pytest.mark.parametrize("change", ["manifest", "tokenizer", "settings", "rules", "damage", "lost"])
def test_a_selection_holds_for_its_manifest_its_tokenizer_and_its_settings_alone(data, looks, monkeypatch, change):
    batches_of(data)
    looks.clear()
    if change == "manifest":
        cuts = [cut for cut in CutSet.from_file(data.train_cuts[0]) if cut.id != "fits"]
        CutSet.from_cuts(cuts).to_file(data.train_cuts[0])
    elif change == "tokenizer":
        build = Tokenizer.__init__
        other = {"fingerprint": "of another model"}
        monkeypatch.setattr(Tokenizer, "__init__", lambda self, path: (build(self, path), vars(self).update(other))[0])
    elif change == "settings":
        data = replace(data, max_utterance_seconds=2.6)
    elif change == "rules":
        monkeypatch.setattr(selection, "RULES", selection.RULES + 1)
    elif change == "damage":
        kept_in(data).write_bytes(kept_in(data).read_bytes()[:-200])
    else:
        kept_in(data).unlink()
    taken = sorted(cut_id for batch in batches_of(data) for cut_id in batch.cut_ids)
    expected = {"manifest": ["tall", "unknown"], "settings": ["fits", "unknown"]}
    assert taken == expected.get(change, ["fits", "tall", "unknown"])
    assert len(looks) == (5 if change == "manifest" else 6)


def test_where_it_cannot_be_kept_every_training_looks(data, looks, caplog):
    kept_in(data).mkdir()
    for _ in range(2):
        lines = ids_and_lines(data, caplog)[1]
        assert any("cannot be written" in line and "will look at every cut again" in line for line in lines)
    assert len(looks) == 12


def test_kept_selections_of_two_manifests_still_refuse_one_id_in_both(data, tmp_path):
    batches_of(data)
    other = tmp_path / "other.jsonl.gz"
    CutSet.from_cuts([cut for cut in CutSet.from_file(data.train_cuts[0]) if cut.id == "tall"]).to_file(other)
    batches_of(replace(data, train_cuts=(str(other),)))
    both = replace(data, train_cuts=(*data.train_cuts, str(other)))
    assert "training cuts: two cuts have the id tall" in error_of(lambda: batches_of(both))


def test_texts_are_encoded_together_as_they_are_alone(data, monkeypatch):
    path, tokenizer, rules = Path(data.train_cuts[0]), Tokenizer(data.bpe_model), Rules(1.0, 20.0, False)
    accounts = []
    for together in (1, 2, 1000):
        monkeypatch.setattr(selection, "TOGETHER", together)
        kept_in(data).unlink(missing_ok=True)
        accounts.append(select(path, tokenizer, rules, "training cuts")[0].account())
    assert accounts[0] == accounts[1] == accounts[2]
    assert Selection.from_account(accounts[0], tokenizer, rules).account() == accounts[0]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled):
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), selection.no_garbage_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
