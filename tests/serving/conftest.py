"""A served model that the tests of this room share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from kdstream.serving.engine import Engine
from kdstream.serving.limits import LOOPBACK_NAMES, Limits
from kdstream.serving.runtime import Runtime
from kdstream.serving.server import Server
from support.serving import Running, Served, noise, serve_tiny_preset

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


@pytest.fixture
def serving(runtime) -> Callable:
    @asynccontextmanager
    async def start(runtime=runtime, **limits: Any) -> AsyncIterator[Running]:
        server = Server({"tiny": Engine(runtime)}, Limits(**limits), LOOPBACK_NAMES)
        async with TestServer(server.app()) as running:
            yield Running(server, str(running.make_url("/")))

    return start
