from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perf.redis_server import RedisServer
from tests.frontend.limits.clocked import Clocked, clocked_embedded, clocked_redis


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["embedded", "redis"])
async def clocked(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clocked]:
    """Each store, empty, on a clock that the test moves."""
    if request.param == "embedded":
        with clocked_embedded(tmp_path) as store:
            yield store
        return
    with clocked_redis(request.getfixturevalue("redis_server")) as (store, link):
        yield store
        await link.close()
