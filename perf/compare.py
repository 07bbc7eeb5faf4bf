"""Two or more systems in one run, by turns: how many times as fast the first one is, and how far that varies.

    python -m perf.compare here infinity:onnx
    python -m perf.compare here commit:HEAD~1
    python -m perf.compare here infinity:onnx mosec original

Machines are noisy and drift, so the systems take turns (A B C A B C ... A), each warm and idle while another one runs,
with the same texts from the same generator on the same cores. Each ratio compares a turn with the mean of the first
system's turns before and after it. What the systems are: perf.peers.systems.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import uvloop

from ipc.errors import StartError
from perf.load import Generator, build_requests
from perf.peers.answers import WrongAnswer, compare_with_reference, same_form
from perf.peers.systems import MODEL_NAME, Running, System, parse_system
from perf.procfs import Meter, descendants
from perf.record import Check, Report, Run
from perf.results import ROOT, Result, make_result, save_result
from perf.stats import Spread, spread
from perf.texts import exact_texts

TEXTS = 32_768


class Phase(msgspec.Struct, frozen=True):
    """One turn. `cpu_us` is CPU time for a text of the system's processes, None where they are not ours to see.

    `foreign` is the share of the cores that all others used, idle systems included, the generator not.
    """

    texts_rate: float
    cpu_us: float | None
    foreign: float
    report: Report


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One system. `times` is how many times as many texts a second the first system served; None for itself, and where
    one of the two served none. `cpu_times` is how many times as much CPU time this one takes for a text."""

    about: str
    lowest_cosine: float | None
    texts_rate: Spread
    p50_ms: Spread | None
    p99_ms: Spread | None
    cpu_us: Spread | None
    errors: dict[str, int]
    times: Spread | None
    cpu_times: Spread | None
    phases: list[Phase]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All systems by name, the first one being the base. `void` says why the numbers must not be used."""

    base: str
    connections: int
    texts: int
    tokens: int
    void: list[str]
    systems: dict[str, Found]


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


def summarize(contenders: Sequence[Contender]) -> tuple[list[str], dict[str, Found]]:
    """Why the run is void, and what was found of each system."""
    base = contenders[0]
    void = [reason for contender in contenders for reason in contender.void]
    systems = {}
    for contender in contenders:
        found = _found(contender, None if contender is base else base.phases)
        systems[contender.system.name] = found
        if found.errors.get("wrong"):
            void.append(f"{contender.system.name}: {found.errors['wrong']} answers of the wrong form")
        if found.p50_ms is None:
            void.append(f"{contender.system.name}: a turn without a right answer")
    return void, systems


def _found(contender: Contender, base: Sequence[Phase] | None) -> Found:
    phases = contender.phases
    latencies = [phase.report.latency_ms for phase in phases]
    served = [latency for latency in latencies if latency is not None]
    has_all = len(served) == len(latencies)
    errors: Counter[str] = Counter()
    for phase in phases:
        errors.update(phase.report.errors)
    return Found(
        about=contender.system.about,
        lowest_cosine=contender.lowest_cosine,
        texts_rate=spread([phase.texts_rate for phase in phases]),
        p50_ms=spread([latency.p50 for latency in served]) if has_all else None,
        p99_ms=spread([latency.p99 for latency in served]) if has_all else None,
        cpu_us=_spread([phase.cpu_us for phase in phases]),
        errors=dict(errors),
        times=_spread(times([p.texts_rate for p in base], [p.texts_rate for p in phases])) if base else None,
        cpu_times=_spread(inverse(times([p.cpu_us for p in base], [p.cpu_us for p in phases]))) if base else None,
        phases=phases,
    )


def times(base: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    """The mean of the base before and after, over the other between the two; None where one of the three is missing or
    zero. `base` has one value more."""
    return [
        (before + after) / 2 / between if before and after and between else None
        for (before, after), between in zip(itertools.pairwise(base), other, strict=True)
    ]


def inverse(values: Sequence[float | None]) -> list[float | None]:
    """1 over each."""
    return [1 / value if value else None for value in values]


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def compare(systems: Sequence[System], options: argparse.Namespace) -> Comparison:
    """Start all, measure, end all. Raises StartError where one does not start."""
    _refuse_what_cannot_be(systems, options.texts)
    texts = exact_texts(options.tokens, TEXTS)
    with ExitStack() as ends:
        contenders = []
        for system in systems:
            print(f"starting {system.name}: {system.about}", flush=True)
            contenders.append(Contender(system, ends.enter_context(system.start()), texts, options.texts))
        measure(contenders, options.rounds, options.seconds, options.connections, warm_up=options.warm_up)
    void, found = summarize(contenders)
    return Comparison(
        base=systems[0].name,
        connections=options.connections,
        texts=options.texts,
        tokens=options.tokens,
        void=void,
        systems=found,
    )


def _refuse_what_cannot_be(systems: Sequence[System], texts: int) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or len(names) < 2:
        raise StartError("Give two systems or more, each once.")
    for system in systems:
        if system.most_texts is not None and texts > system.most_texts:
            raise StartError(f"{system.name} takes {system.most_texts} text a request: leave out --texts, or it.")


def verdict(comparison: Comparison) -> str:
    """What a person wants to know."""
    lines = []
    for name, found in comparison.systems.items():
        line = f"{name} ({found.about}): {found.texts_rate.median:.0f} texts/s"
        if found.times is not None:
            line += f"; {comparison.base} serves {_show(found.times)} times as many"
        if found.cpu_times is not None:
            line += f"; its CPU time for a text is {_show(found.cpu_times)} times as much"
        lines.append(line + (f"; errors {found.errors}" if found.errors else ""))
    return "\n".join([*lines, *(f"VOID: {reason}" for reason in comparison.void)])


def _show(spread: Spread) -> str:
    return f"{spread.median:.2f} (from {spread.min:.2f} to {spread.max:.2f})"


def result_of(comparison: Comparison, options: argparse.Namespace) -> Result:
    """To be saved: one file for each set of systems. The key is no part of it."""
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(["compare", *comparison.systems]).lower()).strip("-")
    given = {name: getattr(options, name) for name in ("rounds", "seconds", "connections", "texts", "tokens")}
    flags = [part for name, value in given.items() for part in (f"--{name}", f"{value:g}")]
    return make_result(
        name, shlex.join(["python", "-m", "perf.compare", *comparison.systems, *flags]), given, comparison
    )


def main() -> int:
    """Measure, print, save; exit status 1 where the run is void or had errors, 3 where it cannot be made."""
    options = parse_options()
    try:
        systems = [parse_system(name, options.key, options.model) for name in options.systems]
        comparison = compare(systems, options)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    print(verdict(comparison))
    if not options.no_save:
        print(save_result(result_of(comparison, options)).relative_to(ROOT))
    return int(bool(comparison.void or any(found.errors for found in comparison.systems.values())))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.compare",
        description="Compare servers by turns in one run.",
        epilog="Systems: here, commit:REVISION, url:http://HOST:PORT[/PREFIX], infinity:onnx, infinity:torch, mosec, "
        "original. Install the peers with python -m perf.peers install NAME.",
    )
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="the first one is the base of all ratios")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of load on each before the first turn")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1, help="texts in a request")
    parser.add_argument("--tokens", type=int, default=16, help="tokens in a text")
    parser.add_argument("--key", default=os.environ.get("EMBEDLANE_API_KEY", ""), help="for url: systems")
    parser.add_argument("--model", default=MODEL_NAME, help="what url: systems call the model")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
