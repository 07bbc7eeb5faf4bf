"""How near the server comes to ONNX Runtime alone: the same graph, lanes and batch, with and without a server.

    python -m perf.ceiling

Interleaved (alone, server, alone, server, ...) against one server that is warm and idle while the other runs, because
machines are noisy and drift. Each ratio compares a server phase with the mean of its two neighbours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from engine.runners.onnx import OnnxRunner
from ipc.bundle import load_bundle, locate_bundle
from ipc.settings import Settings, cores, load_settings
from perf.alone import Alone, open_session, run_alone, single_ms, token_ids
from perf.load import build_requests
from perf.phases import Phase, Server
from perf.procfs import Memory, memory
from perf.results import ROOT, make_result, save_result
from perf.stack import Stack
from perf.stats import Spread, histogram, spread
from perf.texts import exact_texts

TARGET = 0.85
# Share of the cores that others may have before rates mean little.
MOST_FOREIGN = 0.1
TOKENS = 16
TEXTS = 32_768
SINGLE_CONNECTIONS = 64
MANY_TEXTS, MANY_CONNECTIONS = 32, 4
WARM_UP_SECONDS = 2.0
LATENCY_ROUNDS = 3
LATENCY_RUNS = 150
EDGES_MS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 30, 38, 45, 60)


class Round(msgspec.Struct, frozen=True):
    """One A B C. `alone_small` is the same with batches of 8."""

    alone: Alone
    alone_small: Alone
    single: Phase
    many: Phase
    idle_share: float


class OneConnection(msgspec.Struct, frozen=True):
    """One request at a time, milliseconds. The graph alone: with one thread, as the lanes have it, and with all cores.

    `histogram` shows that there are no steps of 40 ms, as there are where TCP_NODELAY is not set.
    """

    p50: Spread
    alone_one_thread: Spread
    alone_all_cores: Spread
    ratio: Spread
    histogram: dict[str, int]


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The ratios, and everything they come from.

    `single` and `many` are ratios of texts per second, `cpu_single` and `cpu_many` of CPU time: that of a text alone
    over that of a text served, the load generator's included. On a machine that others use as well (not `is_quiet`)
    the CPU's decide, for a server of many threads then gets a larger share of the cores than the model alone.
    """

    target: float
    single: Spread
    many: Spread
    cpu_single: Spread
    cpu_many: Spread
    is_quiet: bool
    passed: bool
    one_connection: OneConnection
    memory: dict[str, Memory]
    rounds: list[Round]


class Measurement:
    """A warm server, the bare runner beside it, and the texts of both."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        self.server = Server(stack)
        self._bundle = load_bundle(locate_bundle(settings.model, settings.data_path))
        self._runner = OnnxRunner(self._bundle, settings.device, settings.lanes)
        self._rows = settings.max_batch_rows
        texts = exact_texts(TOKENS, TEXTS)
        self._ids = token_ids(self._bundle, texts)
        self._single = build_requests(self.server.target, texts)
        self._many = build_requests(self.server.target, texts, MANY_TEXTS)

    def warm_up(self) -> None:
        """Both sides."""
        self.single(WARM_UP_SECONDS)
        self.many(WARM_UP_SECONDS)
        self.alone(self._rows, WARM_UP_SECONDS)

    def round(self, seconds: float) -> Round:
        """A, B and C once each."""
        meter = self.server.meter()
        meter.window(True)
        alone = self.alone(self._rows, seconds)
        meter.window(False)
        idle = sum(used for name, used in meter.usage.cpu.items() if name != "generator") / meter.usage.seconds
        single, many = self.single(seconds), self.many(seconds)
        return Round(alone, self.alone(8, seconds / 2), single, many, idle)

    def alone(self, batch: int, seconds: float) -> Alone:
        """The runner, nothing else."""
        return run_alone(self._runner, self._bundle.dim, self._ids, batch, seconds)

    def single(self, seconds: float) -> Phase:
        """One text a request."""
        return self.server.closed(self._single, SINGLE_CONNECTIONS, seconds)

    def many(self, seconds: float) -> Phase:
        """32 texts a request."""
        return self.server.closed(self._many, MANY_CONNECTIONS, seconds, texts=MANY_TEXTS)

    def one_connection(self, seconds: float) -> OneConnection:
        """Interleaved with the graph alone, as the rounds are."""
        sessions = [open_session(self._bundle, threads) for threads in (1, cores())]
        served, alone, times = [], [], []
        for _ in range(LATENCY_ROUNDS):
            alone.append([single_ms(session, self._ids[0], LATENCY_RUNS) for session in sessions])
            phase, latencies = self.server.closed_run(self._single, 1, seconds)
            assert phase.report.latency_ms is not None
            served.append(phase.report.latency_ms.p50)
            times.append(latencies)
        one, all_cores = zip(*alone, strict=True)
        return OneConnection(
            spread(served),
            spread(one),
            spread(all_cores),
            spread([ours / min(best) for ours, best in zip(served, alone, strict=True)]),
            histogram(np.concatenate(times), EDGES_MS),
        )


def measure(stack: Stack, rounds: int, seconds: float) -> Ceiling:
    """Warm up, go round, and end with one more A, so that every server phase has one on either side."""
    measurement = Measurement(stack, load_settings(stack.env, ROOT / ".env"))
    measurement.warm_up()
    done = []
    for number in range(rounds):
        done.append(measurement.round(seconds))
        print(_line(number, done[-1]), flush=True)
    ends = [round_.alone for round_ in done] + [measurement.alone(done[0].alone.batch, seconds)]
    singles, many = [round_.single for round_ in done], [round_.many for round_ in done]
    single, cpu_single = spread(ratios(ends, singles)), spread(cpu_ratios(ends, singles))
    is_quiet = max(phase.foreign for phase in singles + many) <= MOST_FOREIGN
    return Ceiling(
        target=TARGET,
        single=single,
        many=spread(ratios(ends, many)),
        cpu_single=cpu_single,
        cpu_many=spread(cpu_ratios(ends, many)),
        is_quiet=is_quiet,
        passed=(single if is_quiet else cpu_single).median >= TARGET,
        one_connection=measurement.one_connection(seconds),
        memory={name: memory(pid) for name, pid in measurement.server.processes.items()},
        rounds=done,
    )


def ratios(alone: Sequence[Alone], served: Sequence[Phase]) -> list[float]:
    """Texts per second served over the mean of the measurements alone before and after."""
    return [
        2 * phase.texts_rate / (before.texts_rate + after.texts_rate)
        for before, phase, after in zip(alone, served, alone[1:], strict=False)
    ]


def cpu_ratios(alone: Sequence[Alone], served: Sequence[Phase]) -> list[float]:
    """CPU time of a text alone over that of a text served."""
    return [
        (before.cpu_us + after.cpu_us) / 2 / phase.total_cpu_us
        for before, phase, after in zip(alone, served, alone[1:], strict=False)
    ]


def _line(number: int, done: Round) -> str:
    single, many = done.single, done.many
    return (
        f"{number}: alone {done.alone.texts_rate:.0f} (batch 8: {done.alone_small.texts_rate:.0f}), "
        f"one text a request {single.texts_rate:.0f}, {MANY_TEXTS} texts {many.texts_rate:.0f} texts/s; "
        f"others had {single.foreign:.0%} and {many.foreign:.0%} of the cores"
    )


def _verdict(ceiling: Ceiling) -> str:
    one = ceiling.one_connection
    return "\n".join(
        (
            f"One text a request, {SINGLE_CONNECTIONS} connections: {_show(ceiling.single)} of the model alone; "
            f"by CPU time {_show(ceiling.cpu_single)}",
            f"{MANY_TEXTS} texts a request, {MANY_CONNECTIONS} connections: {_show(ceiling.many)}; "
            f"by CPU time {_show(ceiling.cpu_many)}",
            f"One connection: p50 {one.p50.median:.2f} ms, {_show(one.ratio)} of the fastest single run",
            f"{'PASS' if ceiling.passed else 'MISSED'}, target {ceiling.target}"
            + ("" if ceiling.is_quiet else " (by CPU time, for others used the machine as well)"),
        )
    )


def _show(spread: Spread) -> str:
    return f"{spread.median:.3f} (from {spread.min:.3f} to {spread.max:.3f})"


def main() -> int:
    """Measure, print, save; exit status 1 where the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.ceiling", description="The server against its own model.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in lower case")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    settings = dict(given.split("=", 1) for given in options.set)
    with Stack(**settings) as stack:
        ceiling = measure(stack, options.rounds, options.seconds)
    print(_verdict(ceiling))
    if not options.no_save:
        given = "".join(f" --set {name}={value}" for name, value in settings.items())
        command = f"python -m perf.ceiling --rounds {options.rounds} --seconds {options.seconds:g}{given}"
        print(save_result(make_result("ceiling", command, settings, ceiling)).name)
    return int(not ceiling.passed)


if __name__ == "__main__":
    sys.exit(main())
