"""The ladder: what each step of the design gives, under the same traffic. Results, a table (perf.report) and plots.

python -m perf.ladder                              all rungs, about 10 minutes
python -m perf.ladder --rungs onnx cache           some of them
python -m perf.ladder --seconds 60 --step-seconds 20    60 s a figure, about 40 minutes

All servers run all the time, and all but the one that is measured are idle, so that drift hits every rung alike.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import onnxruntime

from engine.runners.onnx import PROVIDERS
from perf.load import build_requests
from perf.pacing import make_schedule
from perf.phases import OPEN_CONNECTIONS, Phase, Server
from perf.plots import plot_ladder
from perf.results import ROOT, make_result, save_result
from perf.stack import Stack
from perf.stats import Nanoseconds, Spread, spread
from perf.texts import exact_texts, repeated_texts

TOKENS: Final = 16
TEXTS: Final = 50_000
RATE: Final = 500.0
CONNECTIONS: Final = 64
WARM_UP_SECONDS: Final = 2.0
# PyTorch is large, and its weights may have to be fetched first.
START_SECONDS: Final = 300
# Offered loads, of the rate.
STEPS: Final = (0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.0)
# Parts of the latency's distribution that are kept for its plot.
PARTS: Final = np.linspace(0.001, 1, 400)


class Rung(msgspec.Struct, frozen=True):
    """A server by its settings. `is_repeated` says that its texts come again and again: a scenario of its own."""

    title: str
    settings: dict[str, str | int]
    is_repeated: bool = False


def all_rungs(device: str) -> dict[str, Rung]:
    """The original's table, on "cpu" or "cuda". int8 on a CPU is a choice with a price, so the cache is without it."""
    onnx: dict[str, str | int] = {"runner": "onnx", "precision": "fp32"}
    precision = "fp16" if device == "cuda" else "int8"
    cached = {**onnx, "precision": "fp16"} if device == "cuda" else onnx
    return {
        "torch-single": Rung("PyTorch, one text a run", {"runner": "torch", "precision": "fp32", "max_batch_rows": 1}),
        "torch": Rung("PyTorch, batches", {"runner": "torch", "precision": "fp32"}),
        "onnx": Rung("ONNX Runtime, batches", onnx),
        "precision": Rung(f"ONNX Runtime, batches, {precision}", {**onnx, "precision": precision}),
        "cache": Rung(f"ONNX Runtime, {cached['precision']}, cache, repeated texts", {**cached, "cache_mb": 32}, True),
    }


class Climbed(msgspec.Struct, frozen=True, kw_only=True):
    """A rung: saturation and open loop once a round, and each offered load once. `relative` is the saturated rate over
    that of the first rung in the same round; `cdf_ms` the latencies at PARTS of the last open loop.
    """

    rung: Rung
    saturation: list[Phase]
    relative: Spread
    open: list[Phase]
    cdf_ms: list[float]
    offered: list[Phase]


class Ladder(msgspec.Struct, frozen=True):
    """All rungs, by their names."""

    rate: float
    rungs: dict[str, Climbed]


class CannotStart(Exception):
    """A rung's server does not start; the message says why, in a sentence."""


class Traffic:
    """A rung's server and what is sent to it."""

    def __init__(self, rung: Rung, stack: Stack, warm_up: float, processes: int) -> None:
        self._server = Server(stack)
        self._warm_up = warm_up
        self._processes = processes
        texts = repeated_texts(TEXTS) if rung.is_repeated else exact_texts(TOKENS, TEXTS)
        self._requests = build_requests(self._server.target, texts)

    def saturated(self, seconds: float) -> Phase:
        """A closed loop."""
        return self._server.run(self._requests, CONNECTIONS, seconds, warm_up=self._warm_up, processes=self._processes)[
            0
        ]

    def offered(self, rate: float, seconds: float) -> tuple[Phase, Nanoseconds]:
        """An open loop, Poisson; also the latencies."""
        schedule = make_schedule("poisson", rate, self._warm_up + seconds)
        return self._server.run(
            self._requests,
            OPEN_CONNECTIONS,
            seconds,
            warm_up=self._warm_up,
            schedule=schedule,
            processes=self._processes,
        )


def climb(
    rungs: dict[str, Rung],
    *,
    rate: float,
    rounds: int,
    seconds: float,
    step_seconds: float,
    warm_up: float = WARM_UP_SECONDS,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> Ladder:
    """Measure all rungs by turns. Raises CannotStart before anything is measured."""
    with contextlib.ExitStack() as ends:
        traffic = {name: Traffic(rung, start(rung, ends), warm_up, processes) for name, rung in rungs.items()}
        for each in traffic.values():
            each.saturated(warm_up)
        saturation: dict[str, list[Phase]] = {name: [] for name in rungs}
        opened: dict[str, list[Phase]] = {name: [] for name in rungs}
        offered: dict[str, list[Phase]] = {name: [] for name in rungs}
        latencies: dict[str, Nanoseconds] = {}
        for _ in range(rounds):
            for name, each in traffic.items():
                saturation[name].append(each.saturated(seconds))
                phase, latencies[name] = each.offered(rate, seconds)
                opened[name].append(phase)
                say(f"{name}: {saturation[name][-1].texts_rate:.0f} texts/s saturated; {_line(phase)}")
        for part in STEPS:
            for name, each in traffic.items():
                offered[name].append(each.offered(part * rate, step_seconds)[0])
                say(f"{name}: {_line(offered[name][-1])}")
    firsts = [phase.texts_rate for phase in next(iter(saturation.values()))]
    return Ladder(
        rate,
        {
            name: Climbed(
                rung=rung,
                saturation=saturation[name],
                relative=spread([p.texts_rate / first for p, first in zip(saturation[name], firsts, strict=True)]),
                open=opened[name],
                cdf_ms=(np.quantile(latencies[name], PARTS, method="inverted_cdf") / 1e6).tolist(),
                offered=offered[name],
            )
            for name, rung in rungs.items()
        },
    )


def start(rung: Rung, ends: contextlib.ExitStack) -> Stack:
    """The rung's server, until `ends` ends. Raises CannotStart with the server's own sentence."""
    stack = Stack(**rung.settings)  # type: ignore[arg-type]
    ends.callback(stack.__exit__)
    try:
        stack.start(wait=False)
        stack.wait_ready(START_SECONDS)
        return stack
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("embedlane")]
        raise CannotStart(f"The rung {rung.title!r} does not start: {lines[0] if lines else error}") from None


def device() -> str:
    """What a server takes here by itself."""
    return "cuda" if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu"


def _line(phase: Phase) -> str:
    report, latency = phase.report, phase.report.latency_ms
    times = f"p50 {latency.p50:.1f}, p99 {latency.p99:.1f} ms" if latency else "no answer"
    void = f"; void: {', '.join(report.void)}" if report.void else ""
    return f"offered {report.offered_rate:.0f}, achieved {report.achieved_rate:.0f} requests/s, {times}{void}"


def _choose(names: Sequence[str]) -> dict[str, Rung]:
    rungs = all_rungs(device())
    return {name: rung for name, rung in rungs.items() if not names or name in names}


def main() -> int:
    """Measure, save, plot."""
    parser = argparse.ArgumentParser(prog="python -m perf.ladder", description="What each step of the design gives.")
    parser.add_argument("--rungs", nargs="+", choices=all_rungs("cpu"), default=[], help="default: all")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second of the open loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="of saturation and open loop")
    parser.add_argument("--step-seconds", type=float, default=5, help="of each other offered load")
    parser.add_argument("--generators", type=int, default=1, help="processes that make the load")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        ladder = climb(
            _choose(options.rungs),
            rate=options.rate,
            rounds=options.rounds,
            seconds=options.seconds,
            step_seconds=options.step_seconds,
            processes=options.generators,
            say=lambda line: print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True),
        )
    except CannotStart as error:
        print(f"{error}\nLeave it out with --rungs, or give it what it needs.", file=sys.stderr)
        return 3
    if not options.no_save:
        chosen = f" --rungs {' '.join(options.rungs)}" if options.rungs else ""
        command = f"python -m perf.ladder{chosen} --rate {options.rate:g} --rounds {options.rounds}"
        command += f" --seconds {options.seconds:g} --step-seconds {options.step_seconds:g}"
        command += f" --generators {options.generators}"
        result = make_result("ladder", command, {}, ladder)
        for path in (save_result(result), *plot_ladder(result)):
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
