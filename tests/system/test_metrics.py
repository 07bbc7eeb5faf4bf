"""`/metrics` of a real server: the same from every front end, right through deaths, and what an operator looks for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.gpu import METRICS as OF_A_GPU
from perf.redis_server import RedisServer
from perf.stack import ROOT, Stack
from tests.system.keyed import bearer, connect_to_each, make_key
from tests.system.processes import PATIENCE_SECONDS, wait_for
from tests.system.wire import Connection, openai_body

pytestmark = pytest.mark.system

FRONTENDS = 8
TEXTS = 5
RESTARTS = 16
EMBED = "/v1/embeddings"
Samples = dict[tuple[str, ...], float]


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(frontends=2, cache_mb=8) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


def parse(text: str) -> Samples:
    """(name without our prefix, the labels' values …) → value."""
    return {
        (sample.name.removeprefix("embedlane_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposition(stack: Stack) -> str:
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=30) as answer:  # noqa: S310 - our own http URL
        return str(answer.read(), "utf-8")


def scrape(stack: Stack) -> Samples:
    return parse(exposition(stack))


def until(stack: Stack, what: str, condition: Callable[[Samples], bool]) -> Samples:
    """The first samples that fulfil it: what is polled is a second behind, and a scrape another."""

    def fulfilled() -> Samples | None:
        samples = scrape(stack)
        return samples if condition(samples) else None

    return wait_for(fulfilled, what)


async def embed(stack: Stack, text: str, headers: dict[str, str] | None = None) -> int:
    async with await Connection.open(stack.port) as connection:
        return (await connection.post(EMBED, openai_body(text), **(headers or {}))).status


def requests(samples: Samples, status: str) -> float:
    """Embedding requests with this status, of whatever key."""
    return sum(
        value
        for (name, *labels), value in samples.items()
        if name == "requests_total" and {EMBED, status} <= set(labels)
    )


def looked_up(samples: Samples) -> float:
    """Texts that were looked for in the cache."""
    return sum(samples["cache_texts_total", result] for result in ("hit", "remote_hit", "miss"))


async def settled(connection: Connection) -> Samples:
    """What this front end tells once all texts are counted."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while looked_up(samples := parse((await connection.request("GET", "/metrics")).body.decode())) < 2 * TEXTS:
        assert time.monotonic() < give_up, samples
        await asyncio.sleep(0.01)
    return samples


def test_every_front_end_tells_the_same_and_all_of_it(stack: Stack) -> None:
    async def run() -> list[Samples]:
        async with AsyncExitStack() as block:
            connections = (await connect_to_each(stack, block)).values()
            for connection in connections:
                for n in range(TEXTS):
                    assert (await connection.post(EMBED, openai_body(f"text {n}"))).status == 200
            return [await settled(connection) for connection in connections]

    for samples in asyncio.run(run()):
        assert requests(samples, "200") == 2 * TEXTS
        assert samples["texts_total", "default"] == 2 * TEXTS
        assert samples["frontend_starts_total", "frontend-0"] == samples["frontend_starts_total", "frontend-1"] == 1
        assert not [name for name, *_ in samples if name == "redis_up"], "there is none"
        assert looked_up(samples) == 2 * TEXTS
        assert samples["engine_wait_seconds_count",] >= TEXTS
        assert samples["engine_padding_tokens_total",] == 0
        assert samples["slab_rows", "free"] + samples["slab_rows", "lent"] + samples["slab_rows", "computing"] == 8192


def test_every_metric_is_documented() -> None:
    described = (ROOT / "docs" / "metrics.md").read_text()
    with RedisServer() as redis, Stack(cache_mb=8, redis_url=redis.url) as stack:
        text = exposition(stack)
    names = [name.removesuffix("_total") for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)]
    assert len(names) > 20
    # tests/monitoring reads these of a driver of its own.
    names += OF_A_GPU
    assert [name for name in names if f"`{name}`" not in described] == []
    assert [
        name for name in re.findall(r"`(embedlane_\w+)`", described) if name.removesuffix("_total") not in names
    ] == []


def test_kill_9_loses_no_count(stack: Stack) -> None:
    for n in range(TEXTS):
        assert asyncio.run(embed(stack, f"text {n}")) == 200
    until(stack, "all to be counted", partial(has_answered, requests_so_far=TEXTS))
    for program in ("frontend", "frontend", "engine"):
        old = stack.signal(program, signal.SIGKILL)
        wait_for(partial(is_replaced, stack, program, old), "supervisord to notice")
    stack.wait_ready()
    assert asyncio.run(embed(stack, "one more")) == 200
    samples = until(stack, "the last to be counted", partial(has_answered, requests_so_far=TEXTS + 1))
    assert samples["engine_starts_total",] == 2
    # One that is killed before it serves has not counted.
    until(stack, "the front ends' starts", lambda found: frontend_starts(found) >= 3)
    files = [path.name for path in (Path(stack.run_dir) / "metrics").glob("counter_*")]
    assert len(files) <= 4, "a successor takes its predecessor's place"


def frontend_starts(samples: Samples) -> float:
    return sum(value for (name, *_), value in samples.items() if name == "frontend_starts_total")


def is_replaced(stack: Stack, program: str, old: int) -> bool:
    return old not in stack.pids(program)


def test_limits_and_breaker_can_be_seen(stack: Stack) -> None:
    key = asyncio.run(make_key(stack, "small", "--rpm", "2"))
    statuses = [asyncio.run(embed(stack, "text", bearer(key))) for _ in range(3)]
    assert statuses == [200, 200, 429]
    samples = until(stack, "the refusal to be counted", lambda found: found["limit_decisions_total", "refused"] == 1)
    assert samples["limit_decisions_total", "passed"] == 2
    assert samples["requests_total", "small", EMBED, "429"] == 1
    assert samples["request_errors_total", "RATE_LIMIT_EXCEEDED"] == 1
    with stack.without_engine():
        until(stack, "an open breaker", lambda found: 2 in states(found))
    # The other front end's scrape may be from before they opened.
    until(stack, "closed breakers", lambda found: states(found) == [0, 0] and found["breaker_opened_total",] >= 2)


def states(samples: Samples) -> list[float]:
    """Of each front end's breaker."""
    return [value for (name, *_), value in samples.items() if name == "breaker_state"]


def test_a_scrape_is_fast_after_many_restarts(record_property: Callable[[str, object], None]) -> None:
    with Stack(frontends=FRONTENDS, cache_mb=8) as stack:
        for n in range(RESTARTS // FRONTENDS):
            restart_all(stack)
            assert asyncio.run(embed(stack, f"text {n}")) == 200
            # A request is counted once its answer has left: the next kill must not come between.
            samples = until(stack, "it to be counted", partial(has_answered, requests_so_far=n + 1))
        samples = until(stack, "all front ends", lambda found: len(states(found)) == FRONTENDS)
        took = [timed_scrape(stack) for _ in range(10)]
        files = list((Path(stack.run_dir) / "metrics").glob("*.db"))
        print(stack.log.read_text(errors="replace")[-5_000:])
    # The first of each front end reads the files; what comes within a second of it does not.
    figures = {"max_ms": max(took) * 1e3, "files": len(files), "samples": len(samples)}
    record_property("figures", figures)
    print(figures)
    assert len(files) <= 3 * (2 * FRONTENDS + 1), "files do not pile up"


def has_answered(samples: Samples, requests_so_far: int) -> bool:
    return requests(samples, "200") == requests_so_far


def restart_all(stack: Stack) -> None:
    """kill -9 every front end, and wait for the next eight."""
    old = set(stack.pids("frontend"))
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(set(stack.pids("frontend")) - old) == FRONTENDS, "all to be started again")
    stack.wait_ready()


def timed_scrape(stack: Stack) -> float:
    began = time.monotonic()
    scrape(stack)
    return time.monotonic() - began
