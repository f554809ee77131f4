"""A served model that the tests of this room share."""

from __future__ import annotations

import numpy as np
import pytest

from kdstream.serving.runtime import Runtime
from support.serving import Served, noise, serve_tiny_preset

SECONDS = 2.5


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Served:
    return serve_tiny_preset(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def runtime(served) -> Runtime:
    return Runtime(served.files)


@pytest.fixture(scope="session")
def said(served) -> dict[int, tuple[np.ndarray, str]]:
    """Audio and what chunk-wise decoding hears in it."""
    audio = {str(seed): noise(SECONDS, seed) for seed in range(3)}
    return {int(seed): (audio[seed], text) for seed, text in served.offline(audio).items()}
