"""What bulk at full blast, and a key that asks for far too much, do to everybody else.

python -m perf.fairness

A modest load (one text of 16 tokens a request, Poisson) by itself, and beside the other, by turns on one server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import uvloop

from frontend.keys import KEYS_FILE, create_key
from perf.http import Target
from perf.load import Generator, build_requests
from perf.overload import with_deadline
from perf.pacing import make_schedule
from perf.phases import Server
from perf.record import Report, Run
from perf.results import make_result, save_result
from perf.stack import KEY, Stack
from perf.stats import Spread, spread
from perf.texts import exact_texts

# Of capacity.
MODEST_SHARE: Final = 0.15
GREEDY_FACTOR: Final = 3.0
BULK_CONNECTIONS: Final = 16
BULK_TEXTS: Final = 32
GREEDY_TOKENS: Final = 128
WARM_UP_SECONDS: Final = 2.0
TURNS: Final = 3
# Enough to keep the lanes busy, with texts of 128 tokens too, and fewer than are refused.
PEAK_CONNECTIONS: Final = 24

# The most that p99 may grow, beside what has a target for that. A greedy key's batches are as urgent as anyone's, and
# a text waits for those that run: beside it nothing may be refused or late, and how long it takes is told.
MOST_P99_RATIO: Final = {"bulk": 3.0}
# A number, so that quartiles can be told.
NOTHING_ANSWERED: Final = 1e9

# What is done beside the modest load; gives its report once that has ended.
Beside: TypeAlias = Callable[[float], "contextlib.AbstractAsyncContextManager[list[Run]]"]


class Turn(msgspec.Struct, frozen=True):
    """The modest load alone, beside the other, and the other."""

    quiet: Report
    beside: Report
    other: Report

    @property
    def ratio(self) -> float:
        """Of p99; beyond all bounds where nothing was answered."""
        quiet, beside = self.quiet.latency_ms, self.beside.latency_ms
        return NOTHING_ANSWERED if quiet is None or beside is None else beside.p99 / quiet.p99


class Found(msgspec.Struct, frozen=True):
    """What was beside the modest load did to it; `failed` of its requests had no right answer."""

    turns: list[Turn]
    ratio: Spread
    failed: int

    def is_met(self, name: str) -> bool:
        """Nothing failed, and p99 grew no more than it may beside what has this name."""
        return self.failed == 0 and self.ratio.median < MOST_P99_RATIO.get(name, float("inf"))


def summarize(turns: list[Turn]) -> Found:
    """Of several turns."""
    failed = sum(r.dropped + sum(r.errors.values()) for turn in turns for r in (turn.quiet, turn.beside))
    return Found(turns, spread([turn.ratio for turn in turns]), failed)


class Bench:
    """A server with two keys, its own and that of the modest load."""

    def __init__(self, stack: Stack, seconds: float) -> None:
        other = create_key(Path(stack.env["EMBEDLANE_DATA_DIR"]) / KEYS_FILE, "modest")
        self._seconds = seconds
        self._target = Target("127.0.0.1", stack.port, KEY)
        self._modest = build_requests(self._target._replace(key=other), exact_texts(16, 20_000))
        self._short = build_requests(self._target, exact_texts(16, 20_000))
        self._bulk = [_bulk(r) for r in build_requests(self._target, exact_texts(16, 20_000), BULK_TEXTS)]
        self._greedy = [with_deadline(r) for r in build_requests(self._target, exact_texts(GREEDY_TOKENS, 20_000))]
        self._server = Server(stack)
        self._rate = MODEST_SHARE * self._peak(self._short)
        self._greedy_rate = GREEDY_FACTOR * self._peak(self._greedy)

    def _peak(self, requests: list[bytes]) -> float:
        return self._server.closed(requests, PEAK_CONNECTIONS, self._seconds / 2).report.achieved_rate

    def turn(self, beside: Beside, seed: int) -> Turn:
        """Quiet, then not."""
        return uvloop.run(self._turn(beside, seed))

    async def _turn(self, beside: Beside, seed: int) -> Turn:
        quiet = await self._load(seed)
        async with beside(WARM_UP_SECONDS + self._seconds) as other:
            busy = await self._load(seed)
        return Turn(quiet.report, busy.report, other[0].report)

    async def _load(self, seed: int) -> Run:
        schedule = make_schedule("poisson", self._rate, WARM_UP_SECONDS + self._seconds, seed=seed)
        async with Generator(self._target, 128) as generator:
            return await generator.open(self._modest, schedule, warm_up=WARM_UP_SECONDS)

    @contextlib.asynccontextmanager
    async def bulk(self, seconds: float) -> AsyncIterator[list[Run]]:
        """As much bulk as there can be."""
        async with (
            Generator(self._target, BULK_CONNECTIONS) as generator,
            _while(asyncio.ensure_future(generator.closed(self._bulk, seconds))) as runs,
        ):
            yield runs

    @contextlib.asynccontextmanager
    async def greedy(self, seconds: float) -> AsyncIterator[list[Run]]:
        """Another key's requests, three times what there is room for."""
        schedule = make_schedule("poisson", self._greedy_rate, seconds)
        async with (
            Generator(self._target, 1024) as generator,
            _while(asyncio.ensure_future(generator.open(self._greedy, schedule, warm_up=0.0))) as runs,
        ):
            yield runs


@contextlib.asynccontextmanager
async def _while(run: asyncio.Future[Run]) -> AsyncIterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    runs.append(await run)


def _bulk(request: bytes) -> bytes:
    return request.replace(b"\r\nHost:", b"\r\nX-Priority: bulk\r\nHost:", 1)


def measure(seconds: float, turns: int) -> dict[str, Found]:
    """Bulk and the greedy key by turns."""
    with Stack(frontends=2) as stack:
        bench = Bench(stack, seconds)
        kinds: dict[str, Beside] = {"bulk": bench.bulk, "greedy": bench.greedy}
        found: dict[str, list[Turn]] = {name: [] for name in kinds}
        for number in range(turns):
            for name, beside in kinds.items():
                found[name].append(bench.turn(beside, number))
                print(line(name, found[name][-1]), flush=True)
    return {name: summarize(each) for name, each in found.items()}


def line(name: str, turn: Turn) -> str:
    """A turn for people."""
    quiet, beside = turn.quiet.latency_ms, turn.beside.latency_ms
    shown = " and ".join(f"p50 {t.p50:.1f}, p99 {t.p99:.1f} ms" if t else "nothing answered" for t in (quiet, beside))
    other = turn.other
    return f"quiet and beside {name} ({other.achieved_rate:.0f} requests/s, errors {other.errors}): {shown}"


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.fairness", description="What others do to a modest client.")
    parser.add_argument("--seconds", type=float, default=20, help="of each span")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.seconds, options.turns)
    for name, each in found.items():
        verdict = "PASS" if each.is_met(name) else "MISSED"
        print(f"{verdict}: beside {name} p99 {each.ratio.median:.2f} times the quiet one, {each.failed} failed")
    if not options.no_save:
        settings = {"frontends": 2, "bulk_connections": BULK_CONNECTIONS, "greedy_factor": GREEDY_FACTOR}
        command = f"python -m perf.fairness --seconds {options.seconds:g} --turns {options.turns}"
        print(save_result(make_result("fairness", command, settings, found)).name)
    return int(not all(each.is_met(name) for name, each in found.items()))


if __name__ == "__main__":
    sys.exit(main())
