"""What happens at 2, 5 and 10 times capacity: what is still answered, how fast the rest is refused, and after it.

python -m perf.overload

For each kind of request, and in turns: the most that is answered (a closed loop of clients that think), then an open
loop above it, after a quiet span and before another, which begins two seconds after the last request of the overload
left; and the most again. What is answered is compared with the mean of both, for machines drift, and by the median of
all turns.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Final, NamedTuple

import msgspec
import numpy as np
import uvloop

from perf.http import Connection, Target
from perf.load import Generator, build_requests
from perf.loops import OpenLoop
from perf.pacing import make_schedule
from perf.phases import Server
from perf.procfs import Usage, memory
from perf.record import Recorder, Run
from perf.results import make_result, save_result
from perf.stack import KEY, Stack
from perf.stats import Percentiles, Spread, percentiles, spread
from perf.texts import exact_texts

FACTORS: Final = (2, 5, 10)
DEADLINE_MS: Final = 2000
# Of capacity, before the overload and after it.
QUIET_SHARE: Final = 0.3
NORMAL_AFTER_SECONDS: Final = 2.0
WARM_UP_SECONDS: Final = 2.0
# The longest wait that is admitted, and what a burst adds to it.
FULL_SECONDS: Final = 2.0

LEAST_GOODPUT: Final = 0.90
MOST_REFUSAL_MS: Final = 10.0
MOST_GROWTH: Final = 1.10
MOST_QUIET_RATIO: Final = 1.5


class Kind(NamedTuple):
    """Requests of so many texts of so many tokens; so many `connections`, whose clients think in between, keep
    the lanes busy, and wait for less than what is refused.
    """

    name: str
    tokens: int
    texts: int
    connections: int


KINDS: Final = (
    Kind("one text of 128 tokens", 128, 1, 24),
    Kind("32 texts of 16 tokens", 16, 32, 6),
    Kind("one text of 16", 16, 1, 96),
)


class Overload(msgspec.Struct, frozen=True):
    """One factor, once. Rates are requests per second; `goodput` is of the mean of the two `peaks` (before and after),
    the factor of the first; memory is MiB of all processes.

    `cores` is how many each process kept busy meanwhile, `peak_cores` when it was the first peak; "lanes" are the
    engine's, "others" all else.
    """

    factor: float
    peaks: tuple[float, float]
    offered: float
    achieved: float
    goodput: float
    accepted_ms: Percentiles | None
    refused: int
    refused_ms: Percentiles | None
    other_errors: dict[str, int]
    void: tuple[str, ...]
    quiet_before_ms: Percentiles | None
    quiet_after_ms: Percentiles | None
    failed_after: int
    memory_before: float
    memory_after: float
    cores: dict[str, float]
    peak_cores: dict[str, float]

    def missed(self) -> list[str]:
        """Which of the targets were, but goodput's: that is of all turns."""
        found = []
        if self.accepted_ms is None or self.accepted_ms.p99 > DEADLINE_MS:
            found.append("accepted too late")
        if self.refused_ms is not None and self.refused_ms.p99 > MOST_REFUSAL_MS:
            found.append(f"refusals p99 {self.refused_ms.p99:.1f} ms")
        if self.other_errors:
            found.append(f"errors {self.other_errors}")
        if self.memory_after > MOST_GROWTH * self.memory_before:
            found.append(f"memory {self.memory_before:.0f} to {self.memory_after:.0f} MiB")
        before, after = self.quiet_before_ms, self.quiet_after_ms
        if self.failed_after or before is None or after is None or after.p99 > MOST_QUIET_RATIO * before.p99:
            found.append("not normal after 2 s")
        return found


class Found(msgspec.Struct, frozen=True):
    """One kind of request, all turns."""

    kind: str
    overloads: list[Overload]

    def goodput(self) -> dict[float, Spread]:
        """Of each factor."""
        factors = dict.fromkeys(each.factor for each in self.overloads)
        return {f: spread([each.goodput for each in self.overloads if each.factor == f]) for f in factors}

    def missed(self) -> list[str]:
        """Which of the targets were, in any turn; goodput's by the median."""
        found = [
            f"goodput {of.median:.2f} at {factor:g} times"
            for factor, of in self.goodput().items()
            if of.median < LEAST_GOODPUT
        ]
        return found + [f"{what} at {each.factor:g} times" for each in self.overloads for what in each.missed()]


class Peak(NamedTuple):
    """Requests per second, and busy cores."""

    rate: float
    cores: dict[str, float]


class SplitRecorder(Recorder):
    """Keeps the times of refusals (429) as well, from when the request should have left."""

    def __init__(self) -> None:
        super().__init__(None)
        self.refusals: list[int] = []
        # When the last request had left, on the monotonic clock.
        self.ended_at = 0.0

    def end(self) -> None:
        """Close the window."""
        if self.is_open:
            self.ended_at = time.monotonic()
        super().end()

    def note(self, connection: Connection) -> None:
        """Count an answer."""
        if connection.status == 429:
            self.refusals.append(connection.answered_ns - connection.from_ns)
        super().note(connection)


def with_deadline(request: bytes) -> bytes:
    """The request with X-Request-Timeout-Ms."""
    return request.replace(b"\r\nHost:", b"\r\nX-Request-Timeout-Ms: %d\r\nHost:" % DEADLINE_MS, 1)


def busy_cores(usage: Usage) -> dict[str, float]:
    """How many cores each process kept busy, the engine's lanes alone, and all others (the supervisor's log, say)."""
    found = {"generator": 0.0, "frontends": 0.0, "engine": 0.0, "lanes": usage.parts["lanes"]}
    for name, used in usage.cpu.items():
        found["frontends" if name.startswith("frontend") else name] += used
    busy = {name: used / usage.seconds for name, used in found.items()}
    return {**busy, "others": usage.foreign * (os.cpu_count() or 1)}


class Bench:
    """One kind of request against one server."""

    def __init__(self, stack: Stack, kind: Kind, distinct: int) -> None:
        target = Target("127.0.0.1", stack.port, KEY)
        texts = exact_texts(kind.tokens, distinct * kind.texts)
        self._server = Server(stack)
        self._target = target
        self._kind = kind
        self._requests = [with_deadline(r) for r in build_requests(target, texts, kind.texts, encoding_format="base64")]

    def peak(self, seconds: float) -> Peak:
        """The most that is answered, arriving one by one as those above it."""
        meter = self._server.meter()

        async def load() -> Run:
            async with Generator(self._target, self._kind.connections, meter.window) as generator:
                return await generator.thinking(self._requests, seconds, warm_up=WARM_UP_SECONDS)

        return Peak(uvloop.run(load()).report.achieved_rate, busy_cores(meter.usage))

    def memory(self) -> float:
        """MiB of all processes."""
        return sum(memory(pid).rss for pid in self._server.processes.values())

    def offer(self, rate: float, seconds: float, connections: int) -> tuple[Run, SplitRecorder, dict[str, float]]:
        """An open loop, and busy cores."""
        schedule = make_schedule("poisson", rate, WARM_UP_SECONDS + seconds)
        recorder, meter = SplitRecorder(), self._server.meter()

        async def load() -> Run:
            async with Generator(self._target, connections) as generator:
                return await OpenLoop(generator, self._requests, recorder, meter.window).run(schedule, WARM_UP_SECONDS)

        return uvloop.run(load()), recorder, busy_cores(meter.usage)

    def quiet(self, peak: float, seconds: float) -> Run:
        """Well below capacity."""
        return self.offer(QUIET_SHARE * peak, seconds, 64)[0]

    def overload(self, factor: float, seconds: float, first: Peak) -> tuple[Overload, Peak]:
        """After a peak: quiet, far above it, quiet again, and the next peak."""
        peak, peak_cores = first
        before, memory_before = self.quiet(peak, seconds / 2), self.memory()
        rate = factor * peak
        # Those that wait, and the refusals of a moment.
        connections = int(peak * FULL_SECONDS + min(rate * 0.1, 500)) + 16
        run, recorder, cores = self.offer(rate, seconds, connections)
        # The run ends with its last answer.
        rest = NORMAL_AFTER_SECONDS - (time.monotonic() - recorder.ended_at)
        time.sleep(max(0.0, rest))
        after = self.quiet(peak, seconds / 2)
        memory_after = self.memory()
        last = self.peak(seconds)
        errors = {name: count for name, count in run.report.errors.items() if name != "429"}
        found = Overload(
            factor=factor,
            peaks=(peak, last.rate),
            offered=run.report.offered_rate or 0.0,
            achieved=run.report.achieved_rate,
            goodput=2 * run.report.achieved_rate / (peak + last.rate),
            accepted_ms=run.report.latency_ms,
            refused=len(recorder.refusals),
            refused_ms=percentiles(np.array(recorder.refusals, np.int64)),
            other_errors=errors,
            void=run.report.void,
            quiet_before_ms=before.report.latency_ms,
            quiet_after_ms=after.report.latency_ms,
            failed_after=sum(after.report.errors.values()) + after.report.dropped,
            memory_before=memory_before,
            memory_after=memory_after,
            cores=cores,
            peak_cores=peak_cores,
        )
        return found, last


def measure(kind: Kind, seconds: float, turns: int) -> Found:
    """All factors, so many times in turns."""
    overloads = []
    with Stack(frontends=2) as stack:
        bench = Bench(stack, kind, distinct=20_000 // kind.texts)
        peak = bench.peak(seconds)
        for factor in FACTORS * turns:
            overload, peak = bench.overload(factor, seconds, peak)
            overloads.append(overload)
            print(line(kind, overload), flush=True)
    return Found(kind.name, overloads)


def line(kind: Kind, found: Overload) -> str:
    """A factor, once, for people."""
    accepted, refused = found.accepted_ms, found.refused_ms
    missed = ", ".join(found.missed())
    verdict = f"MISSED: {missed}" if missed else "PASS but for goodput, which all turns tell"
    before, after = found.peaks
    return (
        f"{kind.name}, {found.factor:g} times {before:.0f} requests/s (then {after:.0f}): goodput {found.goodput:.2f}, "
        f"accepted p99 {accepted.p99 if accepted else 0:.0f} ms, "
        f"{found.refused} refused, p99 {refused.p99 if refused else 0:.1f} ms"
        f", memory {found.memory_before:.0f} to {found.memory_after:.0f} MiB"
        f", busy cores {', '.join(f'{name} {share:.2f}' for name, share in found.cores.items())}"
        f"{''.join(f'; void: {why}' for why in found.void)}: {verdict}"
    )


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.overload", description="Far above capacity.")
    parser.add_argument("--seconds", type=float, default=8, help="of each overload")
    parser.add_argument("--turns", type=int, default=3, help="of all factors")
    parser.add_argument("--kinds", type=int, nargs="*", default=range(len(KINDS)), help="which kinds, by number")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = [measure(KINDS[number], options.seconds, options.turns) for number in options.kinds]
    for each in found:
        print(f"{each.kind}: {'; '.join(each.missed()) or 'all targets met'}")
    if not options.no_save:
        settings = {"frontends": 2, "deadline_ms": DEADLINE_MS}
        command = f"python -m perf.overload --seconds {options.seconds:g} --turns {options.turns}"
        print(save_result(make_result("overload", command, settings, {"kinds": found})).name)
    return int(any(each.missed() for each in found))


if __name__ == "__main__":
    sys.exit(main())
