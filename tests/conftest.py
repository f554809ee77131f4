"""In which order files of tests run."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """With pytest-xdist's --dist loadfile: in our order, not the files of most tests first, however short they are."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few slow tests come first: they take longest, and the last file to run leaves the other cores idle."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items[:] = sorted(items, key=lambda item: slow[item.path] or len(items))
