"""What clients notice of a rolling restart of the front ends: half of capacity, open loop, with and without one.

python -m perf.restart
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import uvloop

from perf.http import Target
from perf.load import DISTINCT_TEXTS, Generator, build_requests
from perf.pacing import Schedule, make_schedule
from perf.phases import Server
from perf.record import Report, Run
from perf.results import ROOT, make_result, save_result
from perf.stack import KEY, Stack
from perf.stats import Spread, spread
from perf.texts import make_texts

CAPACITY_CONNECTIONS: Final = 64
# Few enough that each is used many times while a front end waits for its connections to bring one more request.
CONNECTIONS: Final = 128
WARM_UP_SECONDS: Final = 2.0
TURNS: Final = 2
MOST_P99_RATIO: Final = 2.0


class Span(msgspec.Struct, frozen=True):
    """One run of the load; `restart_seconds` is how long the restart in its middle took, None where there was none."""

    report: Report
    restart_seconds: float | None

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return self.report.dropped + sum(self.report.errors.values())

    @property
    def p99(self) -> float:
        """ms; a run in which nothing is answered has none."""
        return self.report.latency_ms.p99 if self.report.latency_ms else float("inf")


class Found(msgspec.Struct, frozen=True):
    """Rates are requests per second; the ratio is of a span's p99 to that of the quiet one before it."""

    capacity: float
    rate: float
    quiet: list[Span]
    restarted: list[Span]
    failed: int
    p99_ratio: Spread

    @property
    def is_met(self) -> bool:
        """No failed request, and p99 below twice the quiet one in every turn."""
        return self.failed == 0 and self.p99_ratio.max < MOST_P99_RATIO


def summarize(capacity: float, rate: float, quiet: list[Span], restarted: list[Span]) -> Found:
    """Spans by turns, the first of each with the first of the other."""
    failed = sum(span.failed for span in (*quiet, *restarted))
    ratios = [busy.p99 / calm.p99 for calm, busy in zip(quiet, restarted, strict=True)]
    return Found(capacity, rate, quiet, restarted, failed, spread(ratios))


async def restart(stack: Stack, after: float) -> float:
    """Wait, restart all front ends by the command, give the seconds it took. Raises RuntimeError where it fails."""
    await asyncio.sleep(after)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.restart", cwd=ROOT, env=stack.env, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode())
    return time.monotonic() - began


def run_span(stack: Stack, requests: Sequence[bytes], schedule: Schedule, restart_after: float | None) -> Span:
    """Offer the schedule; with `restart_after`, restart so many seconds after its begin."""

    async def load() -> tuple[Run, float | None]:
        async with Generator(Target("127.0.0.1", stack.port, KEY), CONNECTIONS) as generator:
            under_way = None if restart_after is None else asyncio.ensure_future(restart(stack, restart_after))
            run = await generator.open(list(requests), schedule, warm_up=WARM_UP_SECONDS)
        # A restart that takes longer than the span need not wait for its connections as well.
        return run, None if under_way is None else await under_way

    run, took = uvloop.run(load())
    return Span(run.report, took)


def measure(seconds: float, capacity_seconds: float, turns: int) -> Found:
    """Capacity first, then the spans by turns, all on one server."""
    with Stack(frontends=2) as stack:
        target = Target("127.0.0.1", stack.port, KEY)
        requests = build_requests(target, make_texts("short", DISTINCT_TEXTS))
        closed = Server(stack).closed(requests, CAPACITY_CONNECTIONS, capacity_seconds)
        capacity = closed.report.achieved_rate
        print(f"{capacity:.0f} requests/s at most", flush=True)
        quiet: list[Span] = []
        restarted: list[Span] = []
        for turn in range(turns):
            schedule = make_schedule("poisson", capacity / 2, WARM_UP_SECONDS + seconds, seed=turn)
            for spans, after in ((quiet, None), (restarted, WARM_UP_SECONDS + seconds / 2)):
                spans.append(run_span(stack, requests, schedule, after))
                print(line(spans[-1]), flush=True)
    return summarize(capacity, capacity / 2, quiet, restarted)


def line(span: Span) -> str:
    """A span for people."""
    times, took = span.report.latency_ms, span.restart_seconds
    what = "quiet" if took is None else f"restarted in {took:.1f} s"
    shown = "no answer" if times is None else f"p50 {times.p50:.1f} ms, p99 {times.p99:.1f}, most {times.max:.1f}"
    return f"{shown}, {span.failed} failed: {what}{''.join(f'; void: {why}' for why in span.report.void)}"


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.restart", description="What a rolling restart costs.")
    parser.add_argument("--seconds", type=float, default=60, help="of each span")
    parser.add_argument("--capacity-seconds", type=float, default=15)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.seconds, options.capacity_seconds, options.turns)
    print(
        f"{'PASS' if found.is_met else 'MISSED'}: {found.failed} failed, "
        f"p99 {found.p99_ratio.median:.2f} times the quiet one (most {found.p99_ratio.max:.2f})"
    )
    if not options.no_save:
        command = (
            f"python -m perf.restart --seconds {options.seconds:g} "
            f"--capacity-seconds {options.capacity_seconds:g} --turns {options.turns}"
        )
        settings = {"frontends": 2, "connections": CONNECTIONS, "texts": "short"}
        print(save_result(make_result("restart", command, settings, found)).name)
    return int(not found.is_met)


if __name__ == "__main__":
    sys.exit(main())
