"""An hour at four fifths of capacity: whether memory stays as it is, nothing fails, and p99 ends as it began.

python -m perf.soak                                about 65 minutes
python -m perf.soak --minutes 10 --kind mixed      shorter, with texts of all lengths

Capacity is measured first (a closed loop of clients that think), and again in the end. Between them is one open loop
(Poisson) without a pause, at one rate, in which every vector is compared with that of the bare model, and the server is
scraped and asked whether it is ready, as in operation. What is judged is in `perf/soak_verdicts.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import uvloop
from numpy.typing import NDArray

from engine.runners.onnx import OnnxRunner
from ipc.bundle import load_bundle
from ipc.process import raise_descriptor_limit
from perf.alone import vectors_alone
from perf.exact import Comparison
from perf.http import Connection
from perf.load import Generator, build_requests
from perf.pacing import Schedule, make_schedule
from perf.phases import Server
from perf.plots import plot_soak
from perf.procfs import Usage
from perf.record import Check, Run
from perf.results import ROOT, load_result, make_result, save_result
from perf.soak_verdicts import PARTS, Part, Soak, judge
from perf.stack import Stack
from perf.stats import Spread, percentiles, spread
from perf.texts import KINDS, Kind, make_texts
from perf.watch import GENERATOR, Sample, Watch, complaints, lent_rows

SHARE: Final = 0.8
# Fewer than elsewhere, for each vector is kept; the cache is off.
TEXTS = 5000
CAPACITY_CONNECTIONS: Final = 96
# At 600 requests/s a stall of 1.7 s: in an hour a shared machine has longer ones than in the minute of other runs.
CONNECTIONS = 1024
# Before the load that is judged: a burst of one percent of the first ten minutes would be all of their p99.
WARM_UP_SECONDS = 30.0
CAPACITY_WARM_UP_SECONDS = 5.0
SAMPLE_SECONDS: Final = 5.0
LEAST_SAMPLES: Final = 24
# Latency and samples are kept at this many points of time: every minute of an hour, every half minute.
POINTS: Final = 60
SAMPLE_POINTS: Final = 120
SETTLE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do; seconds of the load and of each of so many capacity runs before it, and after it."""

    seconds: float
    share: float
    kind: Kind
    capacity_seconds: float
    turns: int

    @property
    def samples(self) -> int:
        """So many that parts end where samples are taken."""
        return PARTS * round(max(LEAST_SAMPLES, self.seconds / SAMPLE_SECONDS) / PARTS)


class Timeline:
    """A Check that keeps of each right answer when its request was due, and its latency; ns."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._due = array("q")
        self._took = array("q")
        self._told = 0

    def __call__(self, connection: Connection) -> bool:
        """Whether the check says so."""
        if not self._check(connection):
            return False
        self._due.append(connection.from_ns)
        self._took.append(connection.answered_ns - connection.from_ns)
        return True

    def latest(self) -> NDArray[np.int64]:
        """Latencies since the last call, which may be another thread's: what is appended to must not be exported."""
        took = self._took[self._told :]
        self._told += len(took)
        return np.array(took, np.int64)

    def split(self, seconds: float, count: int) -> list[NDArray[np.int64]]:
        """Latencies by when the requests were due, in so many equal spans of all `seconds`."""
        due, took = np.array(self._due, np.int64), np.array(self._took, np.int64)
        places = _places(due - due.min(initial=np.iinfo(np.int64).max), seconds, count)
        return [took[places == place] for place in range(count)]


def _places(times: NDArray[np.int64], seconds: float, count: int) -> NDArray[np.int64]:
    """In which of so many equal spans each time (ns) is."""
    return np.minimum(np.asarray(times * (count / seconds / 1e9), np.int64), count - 1)


def parts_of(
    timeline: Timeline, lags: Sequence[NDArray[np.int64]], usages: Sequence[Usage], seconds: float
) -> list[Part]:
    """Each with its latencies, the generator's lags, and what was used meanwhile."""
    found = []
    for took, lag, usage in zip(timeline.split(seconds, PARTS), lags, usages, strict=True):
        late = percentiles(lag)
        found.append(
            Part(
                answers=len(took),
                latency_ms=percentiles(took),
                lag_p99_ms=late.p99 if late else 0.0,
                cpu_us={name: used / max(1, len(took)) * 1e6 for name, used in usage.cpu.items()},
                foreign=usage.foreign,
            )
        )
    return found


async def load(server: Server, requests: list[bytes], schedule: Schedule, timeline: Timeline, watch: Watch) -> Run:
    """Offer the schedule, and watch. Raises RuntimeError as soon as one of the server's processes ends."""
    async with Generator(server.target, CONNECTIONS) as generator:
        loading = asyncio.create_task(generator.open(requests, schedule, warm_up=WARM_UP_SECONDS, check=timeline))
        try:
            await asyncio.sleep(WARM_UP_SECONDS)
            await watch.run(lambda: loading.done() and loading.exception() is not None)
            return await loading
        finally:
            loading.cancel()


def capacity(server: Server, requests: list[bytes], plan: Plan, check: Check) -> Spread:
    """Requests per second at most, arriving one by one as the soak's do and checked as they are."""
    # With as many in flight as there can be: otherwise the first stall of the machine would be the first to need the
    # memory for them, and look like growth.
    server.closed(requests, CONNECTIONS, CAPACITY_WARM_UP_SECONDS)
    return spread([uvloop.run(_most(server, requests, plan, check)) for _ in range(plan.turns)])


async def _most(server: Server, requests: list[bytes], plan: Plan, check: Check) -> float:
    async with Generator(server.target, CAPACITY_CONNECTIONS) as generator:
        run = await generator.thinking(requests, plan.capacity_seconds, check=check)
    return run.report.achieved_rate


def rows_at_rest(run_dir: Path) -> int:
    """Rows that are lent although nothing is asked any more."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while (left := lent_rows(run_dir)) and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
    return left


def measure(plan: Plan, say: Callable[[str], None]) -> Soak:
    """All on one server. Raises RuntimeError where one of its processes ends meanwhile."""
    texts = make_texts(plan.kind, TEXTS)
    with Stack(frontends=2) as stack:
        bundle = load_bundle(Path(stack.env["EMBEDLANE_MODEL"]))
        check = Comparison(vectors_alone(OnnxRunner(bundle, "auto", lanes=1), bundle, texts), 1)
        timeline = Timeline(check)
        server = Server(stack)
        requests = build_requests(server.target, texts, encoding_format="base64")
        before = capacity(server, requests, plan, check)
        rate = plan.share * before.median
        say(f"{before.median:.0f} requests/s at most ({before.min:.0f} to {before.max:.0f}); {rate:.0f} are offered")
        schedule = make_schedule("poisson", rate, WARM_UP_SECONDS + plan.seconds)
        measured = schedule[schedule >= WARM_UP_SECONDS * 1e9]

        def tell(number: int, sample: Sample, usage: Usage) -> None:
            say(line(number * plan.seconds / PARTS / 60, timeline, sample, usage))

        watch = Watch(stack, plan.seconds, plan.samples, PARTS, tell)
        run = uvloop.run(load(server, requests, schedule, timeline, watch))
        left, log = rows_at_rest(stack.run_dir), dict(complaints(stack.log))
        after = capacity(server, requests, plan, check)
    places = _places(measured - int(WARM_UP_SECONDS * 1e9), plan.seconds, PARTS)
    lags = [run.lags[places == place] for place in range(PARTS)]
    return judge(
        Soak(
            seconds=plan.seconds,
            capacity_before=before,
            capacity_after=after,
            rate=rate,
            report=run.report,
            probes=dict(watch.probes),
            complaints=log,
            rows_left=left,
            parts=parts_of(timeline, lags, watch.usages, plan.seconds),
            latency_ms=[percentiles(times) for times in timeline.split(plan.seconds, POINTS)],
            tracks=watch.tracks(plan.seconds / min(plan.samples, SAMPLE_POINTS)),
        )
    )


def line(minutes: float, timeline: Timeline, sample: Sample, usage: Usage) -> str:
    """A part that has ended, for people."""
    times = percentiles(timeline.latest())
    shown = f"p50 {times.p50:.1f}, p99 {times.p99:.1f}, most {times.max:.1f} ms" if times else "no answer"
    held = ", ".join(f"{name} {mib:.1f}" for name, mib in sample["rss"].items() if name != GENERATOR)
    return f"{minutes:.3g} min: {shown}; MiB {held}; others had {usage.foreign:.1%} of the cores"


def main() -> int:
    """Measure, print, save, plot; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.soak", description="A long run at a steady load.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--share", type=float, default=SHARE, help="of capacity")
    parser.add_argument("--kind", choices=KINDS, default="short", help="set of texts")
    parser.add_argument("--capacity-seconds", type=float, default=20, help="of each closed loop")
    parser.add_argument("--turns", type=int, default=3, help="closed loops, before and after")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    plan = Plan(
        seconds=options.minutes * 60,
        share=options.share,
        kind=options.kind,
        capacity_seconds=options.capacity_seconds,
        turns=options.turns,
    )
    raise_descriptor_limit()
    try:
        soak = measure(plan, lambda text: print(text, flush=True))
    except RuntimeError as error:
        print(f"MISSED {error}", file=sys.stderr)
        return 1
    for each in soak.verdicts:
        print(each.line)
    if not options.no_save:
        command = (
            f"python -m perf.soak --minutes {options.minutes:g} --share {options.share:g} --kind {options.kind} "
            f"--capacity-seconds {options.capacity_seconds:g} --turns {options.turns}"
        )
        settings = {"frontends": 2, "cache_mb": 0, "connections": CONNECTIONS, "texts": f"{TEXTS} {options.kind}"}
        name = "soak" if options.kind == "short" else f"soak-{options.kind}"
        path = save_result(make_result(name, command, settings, soak))
        for saved in (path, *plot_soak(load_result(path))):
            print(saved.relative_to(ROOT))
    return int(not soak.is_met)


if __name__ == "__main__":
    sys.exit(main())
