"""One system of a comparison: its turns under load, and whether it answers rightly before and after them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence

import msgspec
import uvloop

from ipc.errors import StartError
from perf.load import Generator, build_requests
from perf.peers.answers import WrongAnswer, compare_with_reference, same_form
from perf.peers.systems import Running, System
from perf.procfs import Meter, descendants
from perf.record import Check, Report, Run


class Phase(msgspec.Struct, frozen=True):
    """One turn. `cpu_us` is CPU time for a text of the system's processes, None where they are not ours to see.

    `foreign` is the share of the cores that all others used, idle systems included, the generator not.
    """

    texts_rate: float
    cpu_us: float | None
    foreign: float
    report: Report


class Contender:
    """A running system with its requests, and what its turns showed."""

    def __init__(self, system: System, running: Running, texts: list[str], per_request: int) -> None:
        self.system = system
        self.phases: list[Phase] = []
        self.void: list[str] = []
        self.lowest_cosine: float | None = None
        self._running = running
        self._per_request = per_request
        self._requests = build_requests(running.target, texts, per_request, **running.fields)
        self._check: Check | None = None
        self._guarded(lambda: self._learn_form(texts[:per_request]))
        self.check_vectors()

    def check_vectors(self) -> None:
        """Against the reference; a wrong one makes the run void."""
        self._guarded(self._compare)

    def turn(self, connections: int, seconds: float, begin: float = 0.0) -> Phase:
        """A closed loop, from this part of the requests on: no turn begins with texts of the last one."""
        first = int(begin * len(self._requests))
        requests = self._requests[first:] + self._requests[:first]
        pids = descendants(process.pid for process in self._running.processes)
        meter = Meter({str(pid): pid for pid in pids})
        try:
            run = uvloop.run(self._load(requests, connections, seconds, meter))
        except OSError as error:
            raise StartError(f"{self.system.name} broke down in mid-run ({error}): look at what it logs.") from error
        rate = run.report.achieved_rate * self._per_request
        used = sum(time for name, time in meter.usage.cpu.items() if name != "generator")
        served = rate * run.report.seconds
        return Phase(rate, used / served * 1e6 if pids and served else None, meter.usage.foreign, run.report)

    def measure(self, connections: int, seconds: float, begin: float) -> None:
        """A turn that counts."""
        self.phases.append(self.turn(connections, seconds, begin))

    async def _load(self, requests: list[bytes], connections: int, seconds: float, meter: Meter) -> Run:
        async with Generator(self._running.target, connections, meter.window) as generator:
            return await generator.closed(requests, seconds, warm_up=seconds / 10, check=self._check)

    def _learn_form(self, texts: list[str]) -> None:
        self._check = same_form(self._running.ask, texts)

    def _compare(self) -> None:
        found = compare_with_reference(self._running.ask).lowest_cosine
        self.lowest_cosine = min(found, self.lowest_cosine or 1.0)

    def _guarded(self, check: Callable[[], None]) -> None:
        try:
            check()
        except (WrongAnswer, OSError, http.client.HTTPException) as error:
            self.void.append(f"{self.system.name}: {error}")


def measure(contenders: Sequence[Contender], rounds: int, seconds: float, connections: int, *, warm_up: float) -> None:
    """Warm each up for so many seconds, go round, end with one more turn of the first."""
    for contender in contenders:
        contender.turn(connections, warm_up)
    for number in range(rounds):
        for contender in contenders:
            contender.measure(connections, seconds, (number + 1) / (rounds + 2))
        rates = ", ".join(f"{c.system.name} {c.phases[-1].texts_rate:.0f}" for c in contenders)
        print(f"{number}: {rates} texts/s", flush=True)
    contenders[0].measure(connections, seconds, (rounds + 1) / (rounds + 2))
    for contender in contenders:
        contender.check_vectors()
