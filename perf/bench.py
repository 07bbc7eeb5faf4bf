"""Every CPU target in one run, against one server: ratios, interleaved; loads, open and closed; exactness; memory.

python -m perf.bench            about 5 minutes
python -m perf.bench --full     60 s a figure, about 36 minutes
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from ipc.settings import load_settings
from perf.ceiling import MOST_FOREIGN, TOKENS, Ceiling, Measurement, measure
from perf.exact import Exactness, measure_exactness
from perf.halves import Half, measure_half
from perf.load import build_requests
from perf.micro import ENGINE_TARGET_US, PER_CORE_TARGET
from perf.pacing import Arrivals, make_schedule
from perf.phases import OPEN_CONNECTIONS, Phase, Server
from perf.procfs import Memory
from perf.results import ROOT, make_result, save_result
from perf.stack import Stack
from perf.stats import Spread
from perf.texts import exact_texts, make_texts

RATE: Final = 500.0
ARRIVALS: Final[tuple[Arrivals, ...]] = ("constant", "poisson")
CONNECTIONS: Final = (1, 4, 16, 64, 256)
EXACT_TEXTS: Final = 512
OPEN_TEXTS: Final = 50_000
MB_A_MIB: Final = 1.048576


class Plan(msgspec.Struct, frozen=True):
    """How long everything takes, in seconds."""

    rounds: int
    seconds: float
    open_seconds: float
    warm_up: float
    exact_seconds: float


SHORT: Final = Plan(rounds=4, seconds=4, open_seconds=25, warm_up=3, exact_seconds=3)
FULL: Final = Plan(rounds=3, seconds=60, open_seconds=60, warm_up=5, exact_seconds=15)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A target: what was wanted (`bound`, the least or the most), and what was measured."""

    target: str
    unit: str
    bound: float
    is_least: bool
    measured: float
    spread: Spread | None = None

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.measured >= self.bound if self.is_least else self.measured <= self.bound


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured. `met` says which targets are; `is_quiet` whether rates or CPU times made the ratios."""

    verdicts: list[Verdict]
    met: dict[str, bool]
    is_quiet: bool
    ceiling: Ceiling
    exactness: Exactness
    open: dict[str, Phase]
    saturation: dict[str, Phase]
    frontend: Half
    engine: Half
    memory: dict[str, Memory]


def run_bench(stack: Stack, plan: Plan, rate: float, processes: int, say: Callable[[str], None]) -> Bench:
    """Everything, in order."""
    server = Server(stack)
    measurement = Measurement(server, load_settings(stack.env, ROOT / ".env"))
    measurement.warm_up(plan.warm_up)
    ceiling = measure(measurement, plan.rounds, plan.seconds, say)
    texts = make_texts("mixed", EXACT_TEXTS, seed=1)
    exactness = measure_exactness(server, texts, measurement.vectors(texts), plan.exact_seconds, rate / 4)
    say(f"{sum(exactness.vectors.values())} vectors compared, {sum(exactness.different.values())} differ")
    opened: dict[str, Phase] = {}
    saturation: dict[str, Phase] = {}
    for arrivals in ARRIVALS:
        opened[arrivals] = open_loop(server, arrivals, rate, plan, processes, say)
    for connections in CONNECTIONS:
        saturation[str(connections)] = measurement.single(plan.seconds, connections)
        say(f"{connections} connections: {saturation[str(connections)].texts_rate:.0f} texts/s")
    phases = [phase for each in ceiling.rounds for phase in (each.single, each.many, each.mixed)]
    is_quiet = max(phase.foreign for phase in phases) <= MOST_FOREIGN
    memory = next(reversed(saturation.values())).memory
    frontend, engine = measure_half("echo", plan.seconds), measure_half("null", plan.seconds)
    phases += [*(each.equal for each in ceiling.rounds), *opened.values(), *saturation.values()]
    failed = sum(sum(phase.report.errors.values()) for phase in phases)
    verdicts = judge(ceiling, exactness, frontend, engine, memory, failed, is_quiet=is_quiet)
    return Bench(
        verdicts=verdicts,
        met={verdict.target: verdict.met for verdict in verdicts},
        is_quiet=is_quiet,
        ceiling=ceiling,
        exactness=exactness,
        open=opened,
        saturation=saturation,
        frontend=frontend,
        engine=engine,
        memory=memory,
    )


def open_loop(
    server: Server, arrivals: Arrivals, rate: float, plan: Plan, processes: int, say: Callable[[str], None]
) -> Phase:
    """Texts of 16 tokens, one a request, on a schedule."""
    requests = build_requests(server.target, exact_texts(TOKENS, OPEN_TEXTS, seed=1))
    schedule = make_schedule(arrivals, rate, plan.warm_up + plan.open_seconds)
    phase, _ = server.run(
        requests,
        OPEN_CONNECTIONS,
        plan.open_seconds,
        warm_up=plan.warm_up,
        schedule=schedule,
        processes=processes,
    )
    latency = phase.report.latency_ms
    times = f"p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms" if latency else "no answer"
    say(f"{rate:g} requests/s, {arrivals}: {times}" + "".join(f"; VOID: {reason}" for reason in phase.report.void))
    return phase


def judge(
    ceiling: Ceiling,
    exactness: Exactness,
    frontend: Half,
    engine: Half,
    memory: dict[str, Memory],
    failed: int,
    *,
    is_quiet: bool,
) -> list[Verdict]:
    """The targets of docs/measuring.md."""
    ratios = ceiling.rates if is_quiet else ceiling.cpu
    frontends = [used.rss for name, used in memory.items() if name != "engine"]
    return [
        _least("64 connections, one text a request, of the model alone", "ratio", 0.90, ratios["single"]),
        _least("4 connections, 32 texts a request, of the model alone", "ratio", 0.95, ratios["many"]),
        _most("one connection, p50 of the fastest single run", "ratio", 1.2, ceiling.one_connection.ratio),
        _least("mixed lengths, of the same texts in full equal-length batches alone", "ratio", 0.90, ratios["mixed"]),
        _least("a front end alone", "requests/s a core", PER_CORE_TARGET, frontend.per_core),
        _most("memory of a front end", "MB", 150, max(frontends) * MB_A_MIB),
        _most("memory of the engine", "MB", 500, memory["engine"].rss * MB_A_MIB),
        _most("the engine's own work", "us a text", ENGINE_TARGET_US, engine.engine_us),
        _most("vectors with other bits", "vectors", 0, sum(exactness.different.values())),
        _most("requests without a right answer", "requests", 0, failed),
    ]


def _least(target: str, unit: str, bound: float, measured: Spread | float) -> Verdict:
    return _verdict(target, unit, bound, measured, is_least=True)


def _most(target: str, unit: str, bound: float, measured: Spread | float) -> Verdict:
    return _verdict(target, unit, bound, measured, is_least=False)


def _verdict(target: str, unit: str, bound: float, measured: Spread | float, *, is_least: bool) -> Verdict:
    spread = measured if isinstance(measured, Spread) else None
    value = measured.median if isinstance(measured, Spread) else measured
    return Verdict(target=target, unit=unit, bound=bound, is_least=is_least, measured=value, spread=spread)


def _show(verdict: Verdict) -> str:
    spread = f" ({verdict.spread.min:.3f} to {verdict.spread.max:.3f})" if verdict.spread else ""
    return (
        f"{'met   ' if verdict.met else 'MISSED'} {verdict.target}: {verdict.measured:.4g}{spread} {verdict.unit}, "
        f"wanted {'at least' if verdict.is_least else 'at most'} {verdict.bound:g}"
    )


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.bench", description="Every CPU target in one run.")
    parser.add_argument("--full", action="store_true", help="60 s a figure")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second of the open loops")
    parser.add_argument("--generators", type=int, default=1, help="processes that make the open loops' load")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in lower case")
    parser.add_argument("--seconds", type=float, help="of every figure, to try it out; implies --no-save")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    plan = FULL if options.full else SHORT
    if options.seconds:
        plan = Plan(1, options.seconds, options.seconds, options.seconds, options.seconds)
    settings = dict(given.split("=", 1) for given in options.set)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)

    with Stack(**settings) as stack:
        bench = run_bench(stack, plan, options.rate, options.generators, say)
    for verdict in bench.verdicts:
        print(_show(verdict))
    if not bench.is_quiet:
        print("Others used this machine as well: ratios are those of CPU time.")
    if not (options.no_save or options.seconds):
        given = "".join(f" --set {name}={value}" for name, value in settings.items())
        full = " --full" if options.full else ""
        command = f"python -m perf.bench{full} --rate {options.rate:g} --generators {options.generators}{given}"
        print(save_result(make_result("bench", command, settings, bench)).name)
    return int(not all(bench.met.values()))


if __name__ == "__main__":
    sys.exit(main())
