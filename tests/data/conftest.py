"""Corpora that the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.data import (
    make_part,
    store,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus: 40 training utterances, 6 of dev, 6 of test."""
    root = tmp_path_factory.mktemp("corpus")
    for speaker, (part, count) in enumerate([("train", 40), ("dev", 6), ("test", 6)], start=1):
        make_part(root, part, speaker, count, seed=speaker)
    store(root, ("train", "dev", "test"))
    train_tokenizer(root)
    return root


@pytest.fixture
def small(tmp_path) -> Path:
    """A corpus to spoil: 6 training utterances, manifests made."""
    make_part(tmp_path, "train", 1, 6, seed=0)
    return tmp_path
