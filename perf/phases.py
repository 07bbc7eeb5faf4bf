"""One phase of a measurement against a running server: load, and all clocks read at both ends of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import uvloop

from perf.answers import Answers, Served
from perf.fleet import Fleet, orders
from perf.http import Connection, Target
from perf.load import Generator
from perf.pacing import Schedule
from perf.procfs import Memory, Meter, Usage, memory, owners_of_ports
from perf.record import Check, Report, Run
from perf.stack import KEY, Stack
from perf.stats import Nanoseconds

WARM_UP_SECONDS = 0.5
# In an open loop the most requests in flight: above what any server that keeps up has.
OPEN_CONNECTIONS = 512


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """What one phase showed. CPU times are µs for a text; `shares` is each front end's part of the answers; `memory`
    is that of the end.
    """

    texts_rate: float
    tokens_rate: float
    cpu_us: dict[str, float]
    engine_us: dict[str, float]
    shares: dict[str, float]
    foreign: float
    memory: dict[str, Memory]
    served: Served | None
    report: Report

    @property
    def total_cpu_us(self) -> float:
        """Of all processes, generator included."""
        return sum(self.cpu_us.values())

    @property
    def cores(self) -> dict[str, float]:
        """How many cores each process kept busy."""
        return {name: used * self.texts_rate / 1e6 for name, used in self.cpu_us.items()}

    @property
    def batch(self) -> float | None:
        """Mean texts of a run of the model, None where it is not known."""
        return self.served.batch if self.served else None


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
        return self.run(requests, connections, seconds, texts=texts)[0]

    def run(
        self,
        requests: Sequence[bytes],
        connections: int,
        seconds: float,
        *,
        warm_up: float = WARM_UP_SECONDS,
        schedule: Schedule | None = None,
        texts: int = 1,
        processes: int = 1,
        check: Check | None = None,
    ) -> tuple[Phase, Nanoseconds]:
        """A phase and its latencies in ns; open loop with a schedule, closed without.

        Several `processes` share the load; a `check` needs the one that this is.
        """
        if processes > 1:
            assert check is None, "answers of other processes cannot be checked here"
            with Fleet(orders(self.target, requests, connections, seconds, warm_up, schedule, processes)) as fleet:
                owners = owners_of_ports(self.target.port, self.frontends.values())
                meter = Meter({**self.processes, **fleet.pids})
                run, answers = fleet.run(meter.window)
            return self._phase(run, answers, owners, meter.usage, texts), run.latencies

        meter, answers = self.meter(), Answers()

        def keep(connection: Connection) -> bool:
            return answers(connection) and (check is None or check(connection))

        async def load() -> tuple[Run, dict[int, int]]:
            async with Generator(self.target, connections, meter.window) as generator:
                owners = owners_of_ports(self.target.port, self.frontends.values())
                if schedule is None:
                    return await generator.closed(list(requests), seconds, warm_up=warm_up, check=keep), owners
                return await generator.open(list(requests), schedule, warm_up=warm_up, check=keep), owners

        run, owners = uvloop.run(load())
        return self._phase(run, answers, owners, meter.usage, texts), run.latencies

    def _phase(self, run: Run, answers: Answers, owners: Mapping[int, int], usage: Usage, texts: int) -> Phase:
        rate, served = run.report.achieved_rate * texts, answers.served(texts=texts)
        done = max(1.0, rate * run.report.seconds)
        names = {pid: name for name, pid in self.frontends.items()}
        shares: Counter[str] = Counter()
        for port, count in run.by_port.items():
            shares[names.get(owners.get(port, 0), "unknown")] += count
        return Phase(
            texts_rate=rate,
            tokens_rate=run.report.achieved_rate * served.tokens if served else 0.0,
            cpu_us=_per(done, usage.cpu),
            engine_us=_per(done, usage.parts),
            shares={name: count / shares.total() for name, count in sorted(shares.items())},
            foreign=usage.foreign,
            memory={name: memory(pid) for name, pid in self.processes.items()},
            served=served,
            report=run.report,
        )


def _per(texts: float, seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value / texts * 1e6 for name, value in seconds.items()}
