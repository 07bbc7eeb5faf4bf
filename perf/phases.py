"""One phase of a measurement against a running server: load, and all clocks read at both ends of it."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import uvloop

from perf.http import Connection, Target
from perf.load import Generator
from perf.procfs import Meter, Usage, owners_of_ports
from perf.record import Report, Run
from perf.stack import KEY, Stack
from perf.stats import Nanoseconds

_COMPUTE = re.compile(rb"\r\nx-inference-time: *([0-9.]+)")


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """What one phase showed. CPU times are µs for a text; `shares` is each front end's part of the answers.

    `batch` is the mean number of texts in a model run, None where a request holds several texts.
    """

    texts_rate: float
    batch: float | None
    cpu_us: dict[str, float]
    engine_us: dict[str, float]
    shares: dict[str, float]
    foreign: float
    report: Report

    @property
    def total_cpu_us(self) -> float:
        """Of all processes, generator included."""
        return sum(self.cpu_us.values())


class Runs:
    """Counts the model's runs from outside: texts of one batch have one compute time, and hardly ever share it."""

    def __init__(self) -> None:
        self._times: Counter[bytes] = Counter()

    def __call__(self, connection: Connection) -> bool:
        """A Check that refuses nothing."""
        found = _COMPUTE.search(connection.head)
        if found is not None:
            self._times[found[1]] += 1
        return True

    def mean(self) -> float | None:
        """Answers for a run."""
        return self._times.total() / len(self._times) if self._times else None


class Server:
    """A running Stack as phases see it: its address and its processes by name."""

    def __init__(self, stack: Stack) -> None:
        self.target = Target("127.0.0.1", stack.port, KEY)
        self.frontends = {f"frontend-{n}": pid for n, pid in enumerate(stack.pids("frontend"))}
        self.processes = {"engine": stack.pids("engine")[0], **self.frontends}

    def meter(self) -> Meter:
        """A new meter on all processes."""
        return Meter(self.processes)

    def closed(self, requests: list[bytes], connections: int, seconds: float, *, texts: int = 1) -> Phase:
        """A closed loop of requests with so many texts each."""
        return self.closed_run(requests, connections, seconds, texts=texts)[0]

    def closed_run(
        self, requests: list[bytes], connections: int, seconds: float, *, texts: int = 1
    ) -> tuple[Phase, Nanoseconds]:
        """The same, and the latencies in ns."""
        meter, runs = self.meter(), Runs()

        async def load() -> tuple[Run, dict[int, int]]:
            async with Generator(self.target, connections, meter.window) as generator:
                owners = owners_of_ports(self.target.port, self.frontends.values())
                return await generator.closed(requests, seconds, check=runs if texts == 1 else None), owners

        run, owners = uvloop.run(load())
        phase = self._phase(run, owners, meter.usage, texts, runs.mean())
        return phase, run.latencies

    def _phase(self, run: Run, owners: dict[int, int], usage: Usage, texts: int, batch: float | None) -> Phase:
        rate = run.report.achieved_rate * texts
        done = max(1.0, rate * run.report.seconds)
        names = {pid: name for name, pid in self.frontends.items()}
        answers: Counter[str] = Counter()
        for port, count in run.by_port.items():
            answers[names.get(owners.get(port, 0), "unknown")] += count
        return Phase(
            texts_rate=rate,
            batch=batch,
            cpu_us=_per(done, usage.cpu),
            engine_us=_per(done, usage.parts),
            shares={name: count / answers.total() for name, count in sorted(answers.items())},
            foreign=usage.foreign,
            report=run.report,
        )


def _per(texts: float, seconds: dict[str, float]) -> dict[str, float]:
    return {name: value / texts * 1e6 for name, value in seconds.items()}
