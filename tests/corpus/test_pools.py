"""Work in a pool gives its results in order, and its errors as they are."""

from __future__ import annotations

import multiprocessing

import pytest

from kdstream.corpus.pools import results_of
from kdstream.errors import UserError


def halve(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd", fix="take another")
    return number // 2


def test_results_come_in_order_until_one_is_an_error():
    found = []
    with multiprocessing.get_context("fork").Pool(2) as pool:
        with pytest.raises(UserError, match="^5 is odd; take another$") as caught:
            for half in results_of(pool.imap, halve, [8, 4, 2, 5, 6], chunksize=2):
                found.append(half)
        assert sorted(results_of(pool.imap_unordered, halve, [2, 4])) == [1, 2]
    assert found == [4, 2, 1] and caught.value.__cause__ is None
