"""One run of a real server with all that it has, under load and through its troubles, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from typing import Any

import pytest

from perf.redis_server import RedisServer
from perf.stack import KEY, Stack
from perf.texts import make_texts
from tests.monitoring.nvidia import make_driver
from tests.monitoring.prometheus_server import Prometheus, configure
from tests.system.keyed import bearer, make_key
from tests.system.processes import wait_for
from tests.system.wire import Connection, ConnectionLost, openai_body

EMBED = "/v1/embeddings"
CLIENTS = 4
# As many as all of them wait for are no four fifths of the queue.
SEVERAL = 12
SERVER: dict[str, Any] = {
    "frontends": 2,
    "cache_mb": 1,
    "metrics_key": True,
    # So few that a large request is more than may wait.
    "queue_items": 128,
    "engine_grace_ms": 500,
    # With a GPU, as far as its metrics go.
    "runner": "tests.monitoring.nvidia:make",
}


class Clients:
    """Ask for texts, some of them again and again and some twice at once, while the block lasts."""

    def __init__(self, port: int, keys: list[str]) -> None:
        self._port = port
        self._keys = cycle(keys)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="clients")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        # Two clients have the same texts, each asks twice, and one request in eight has several.
        texts = (text for text in cycle(make_texts("mixed", 2000, seed=number // 2)) for _ in range(2))
        requests = (list(islice(texts, SEVERAL if n % 8 == 0 else 1)) for n in count())
        headers = {"X-Priority": "bulk"} if number % 2 else {}
        while not self._stop.is_set():
            # Soon another front end takes the next connection.
            with contextlib.suppress(ConnectionLost):
                async with await Connection.open(self._port) as connection:
                    for request in islice(requests, 10):
                        await self._ask(connection, request, headers)

    async def _ask(self, connection: Connection, texts: list[str], headers: dict[str, str]) -> None:
        answer = await connection.post(EMBED, openai_body(texts), **headers, **bearer(next(self._keys)))
        if answer.status != 200:
            # As clients do that are told to come later.
            await asyncio.sleep(0.05)


async def ask_much(port: int) -> None:
    """For more texts than the cache holds, for more than may wait at once, and for nothing that there is."""
    texts = make_texts("short", 800, seed=99)
    async with await Connection.open(port) as connection:
        for start in range(0, 700, 50):
            assert (await connection.post(EMBED, openai_body(texts[start : start + 50]))).status == 200
        assert (await connection.post(EMBED, openai_body(texts[700:]))).status == 429
        assert (await connection.request("GET", "/nothing")).status == 404


def see(prometheus: Prometheus, expr: str) -> None:
    """Wait until an expression finds something."""
    wait_for(lambda: prometheus.now(expr), expr)


def live(stack: Stack, redis: RedisServer, prometheus: Prometheus) -> None:
    """All that a server goes through, each seen by Prometheus."""
    key = asyncio.run(make_key(stack, "limited", "--rpm", "50"))
    # A rate needs what was before.
    see(prometheus, 'embedlane_request_errors_total{code="OVERLOADED"} == 0')
    asyncio.run(ask_much(stack.port))
    with Clients(stack.port, [KEY, KEY, key]):
        for result in ("hit", "remote_hit", "miss"):
            see(prometheus, f'sum(rate(embedlane_cache_texts_total{{result="{result}"}}[4s])) > 0')
        see(prometheus, "sum(rate(embedlane_cache_shared_texts_total[4s])) > 0")
        see(prometheus, 'sum(rate(embedlane_limit_decisions_total{outcome="refused"}[4s])) > 0')
        redis.kill()
        see(prometheus, "min(embedlane_redis_up) == 0")
        redis.start()
        with stack.without_engine():
            see(prometheus, "min(embedlane_breaker_state) == 2")
            see(prometheus, 'sum(rate(embedlane_requests_total{status="503"}[4s])) > 0')
            stack.signal("frontend", signal.SIGKILL)
        see(prometheus, "max(embedlane_breaker_state) == 0 and count(embedlane_breaker_state) == 2")
        see(prometheus, "min(embedlane_redis_up) == 1")
        see(prometheus, "increase(embedlane_engine_starts_total[1m]) > 0")
        see(prometheus, "sum(increase(embedlane_frontend_starts_total[1m])) > 0")
        see(prometheus, "sum(rate(embedlane_engine_batch_texts_count[4s])) > 0")
        # The second GPU's, as CUDA_VISIBLE_DEVICES says.
        see(prometheus, "embedlane_gpu_memory_used_bytes / embedlane_gpu_memory_total_bytes == 0.25")
        see(prometheus, "embedlane_gpu_utilization_ratio == 0.51 and embedlane_gpu_temperature_celsius == 61")


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """What it has seen; the server has ended."""
    folder = tmp_path_factory.mktemp("prometheus")
    with RedisServer() as redis:
        stack = Stack(redis_url=redis.url, **SERVER)
        stack.env |= make_driver(folder)
        with Prometheus(configure(folder, stack.port, KEY), folder) as server:
            with stack:
                try:
                    live(stack, redis, server)
                except AssertionError:
                    print(stack.log.read_text(errors="replace")[-20_000:])
                    raise
                server.ended = time.time()
            see(server, 'ALERTS{alertname="EmbedlaneDown"}')
            yield server
