"""What the gateway does to a request: limits over HTTP, hits of the cache, raw vectors against JSON.

python -m perf.gateway
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import msgspec
import numpy as np
import uvloop

from frontend.keys import KEYS_FILE, create_key
from frontend.limits.quota import BUCKETS, COUNTED
from perf.http import Connection, Target, build_request
from perf.load import build_requests
from perf.phases import Server
from perf.redis_server import RedisServer
from perf.results import ROOT, make_result, save_result
from perf.stack import Stack
from perf.texts import exact_texts

LIMIT: Final = 600
WINDOW_SECONDS: Final = 60.0
# Under overload the limit is used up at once, and free again when that bucket is out of the window for certain.
CYCLE_SECONDS: Final = WINDOW_SECONDS * COUNTED / BUCKETS
CONNECTIONS: Final = 50
OVERLOAD: Final = 10
BURST_EVERY_SECONDS: Final = 10.0
RAW_TEXTS: Final = 512
RAW_ROUNDS: Final = 5
IDS: Final = "token ids from the cache"
MOST_OVER, LEAST_STEADY, HIT_P50_MS, RAW_TIMES = 1.01, 0.97, 1.0, 3.0


class Limited(msgspec.Struct, frozen=True):
    """A key offered ten times its limit. `worst` is the most that passed in any 60 s, of the limit; `steady` what
    passed in as many whole cycles (see CYCLE_SECONDS) as there were, of the limit; `statuses` counts all answers."""

    worst: float
    steady: float
    statuses: dict[str, int]


class Raw(msgspec.Struct, frozen=True):
    """Front-end CPU for a text in requests of 512, µs."""

    json_us: float
    raw_us: float
    times: float


class Gateway(msgspec.Struct, frozen=True):
    """`limits` by store and kind of load; `hit_p50_ms` one connection; `raw` computed anew, and from the cache."""

    limits: dict[str, dict[str, Limited]]
    hit_p50_ms: float
    raw: dict[str, Raw]


class Client:
    """One connection that sends at given times, or as soon after as its last answer allows."""

    def __init__(self, passed: list[float], statuses: Counter[str]) -> None:
        self._passed = passed
        self._statuses = statuses
        self._answered = asyncio.Event()
        self.connection = Connection(self._on_answer)

    async def run(self, request: bytes, times: list[float]) -> None:
        """`times` are time.monotonic()'s seconds."""
        for at in times:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            self._answered.clear()
            self.connection.send(request, 0)
            await self._answered.wait()

    def _on_answer(self, connection: Connection) -> None:
        self._statuses[str(connection.status)] += 1
        if connection.status == 200:
            self._passed.append(time.monotonic())
        self._answered.set()


async def offer(target: Target, schedules: list[list[float]]) -> Limited:
    """Send on one connection for each schedule, in seconds from now."""
    passed: list[float] = []
    statuses: Counter[str] = Counter()
    request = build_request(target, ["a text"])
    async with AsyncExitStack() as ends:
        clients = [Client(passed, statuses) for _ in schedules]
        for client in clients:
            await client.connection.open(target)
            ends.callback(client.connection.close)
        began = time.monotonic()
        await asyncio.gather(
            *(c.run(request, [began + at for at in times]) for c, times in zip(clients, schedules, strict=True))
        )
        cycles = int((time.monotonic() - began) / CYCLE_SECONDS)
    times = np.array(passed)
    return Limited(most_in_window(times) / LIMIT, share_of_cycles(times, cycles), dict(statuses))


def share_of_cycles(times: np.ndarray[tuple[int], np.dtype[np.float64]], cycles: int) -> float:
    """What passed in so many cycles from the first of these times (ascending), of what the limit allows."""
    seconds = cycles * CYCLE_SECONDS
    return int(np.searchsorted(times, times[0] + seconds)) / (LIMIT * seconds / WINDOW_SECONDS)


def most_in_window(times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
    """Most of these times (ascending) that lie within 60 s."""
    first = np.searchsorted(times, times - WINDOW_SECONDS, side="right")
    return int(np.max(np.arange(1, len(times) + 1) - first, initial=0))


def constant(seconds: float) -> list[list[float]]:
    """Each connection's times: evenly spread."""
    gap = CONNECTIONS * WINDOW_SECONDS / (LIMIT * OVERLOAD)
    return [list(np.arange(n * gap / CONNECTIONS, seconds, gap)) for n in range(CONNECTIONS)]


def bursts(seconds: float) -> list[list[float]]:
    """Each connection's times: all that ten seconds offer at once."""
    count = round(LIMIT * OVERLOAD * BURST_EVERY_SECONDS / WINDOW_SECONDS / CONNECTIONS)
    return [list(np.repeat(np.arange(0, seconds, BURST_EVERY_SECONDS), count)) for _ in range(CONNECTIONS)]


def measure_limits(seconds: float, redis_url: str) -> dict[str, Limited]:
    """Two keys at once, one under steady load and one under bursts, on four front ends."""
    with Stack(frontends=4, redis_url=redis_url, limit_rpm=LIMIT) as stack:
        keys = stack.folder / "data" / KEYS_FILE
        targets = [Target("127.0.0.1", stack.port, create_key(keys, name)) for name in ("constant", "bursts")]

        async def both() -> dict[str, Limited]:
            # Until every front end has read the keys.
            await asyncio.sleep(1.0)
            steady, burst = await asyncio.gather(
                offer(targets[0], constant(seconds)), offer(targets[1], bursts(seconds))
            )
            return {"constant": steady, "bursts": burst}

        return uvloop.run(both())


def measure_hit(seconds: float) -> float:
    """p50 of one connection that asks for one text again and again, ms."""
    with Stack(frontends=1, cache_mb=32) as stack:
        server = Server(stack)
        requests = build_requests(server.target, ["the same text"])
        server.closed(requests, 1, 1.0)
        latency = server.closed(requests, 1, seconds).report.latency_ms
    assert latency is not None
    return latency.p50


def measure_raw(seconds: float, inputs: Sequence[object], **settings: object) -> Raw:
    """Requests of 512 inputs, as JSON and raw by turns."""
    with Stack(frontends=1, **settings) as stack:  # type: ignore[arg-type]
        server = Server(stack)
        starts = range(0, len(inputs), RAW_TEXTS)
        json = [build_request(server.target, inputs[n : n + RAW_TEXTS]) for n in starts]  # type: ignore[arg-type]
        raw = [each.replace(b"\r\n", b"\r\nAccept: application/octet-stream\r\n", 1) for each in json]
        used: dict[str, list[float]] = {"json": [], "raw": []}
        server.closed(json, 1, 2 * seconds, texts=RAW_TEXTS)
        for _ in range(RAW_ROUNDS):
            for name, requests in (("json", json), ("raw", raw)):
                phase = server.closed(requests, 1, seconds, texts=RAW_TEXTS)
                used[name].append(phase.cpu_us["frontend-0"])
    json_us, raw_us = (statistics.median(used[name]) for name in ("json", "raw"))
    return Raw(json_us, raw_us, json_us / raw_us)


def measure_raws(seconds: float) -> dict[str, Raw]:
    """Where a response costs most of a request, where the tokenizer does, and where the engine's rows are awaited."""
    ids = [[n] for n in range(1000, 1000 + 4 * RAW_TEXTS)]
    texts = exact_texts(16, 64 * RAW_TEXTS)
    return {
        IDS: measure_raw(seconds, ids, cache_mb=32, token_input="model"),  # noqa: S106 - no password
        "texts from the cache": measure_raw(seconds, texts[: 4 * RAW_TEXTS], cache_mb=32),
        "texts computed": measure_raw(seconds, texts),
    }


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description="The gateway's own figures.")
    parser.add_argument("--seconds", type=float, default=130.0, help="of each run against a limit")
    parser.add_argument("--phase", type=float, default=3.0, help="seconds of every other phase")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    with RedisServer() as redis:
        stores = {"embedded": "", "redis": redis.url}
        limits = {store: measure_limits(options.seconds, url) for store, url in stores.items()}
    found = Gateway(limits, measure_hit(options.phase), measure_raws(options.phase))
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    if not options.no_save:
        command = f"python -m perf.gateway --seconds {options.seconds:g} --phase {options.phase:g}"
        print(save_result(make_result("gateway", command, {}, found)).relative_to(ROOT))
    return int(not passes(found))


def passes(found: Gateway) -> bool:
    """Whether all targets are met."""
    runs = [run for kinds in found.limits.values() for run in kinds.values()]
    return (
        all(run.worst <= MOST_OVER for run in runs)
        and all(kinds["constant"].steady >= LEAST_STEADY for kinds in found.limits.values())
        and found.hit_p50_ms <= HIT_P50_MS
        # Elsewhere tokenizer and engine cost what they cost, whatever the response is.
        and found.raw[IDS].times >= RAW_TIMES
    )


if __name__ == "__main__":
    sys.exit(main())
