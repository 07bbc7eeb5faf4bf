"""What a setting does: one server for each value, measured in turn, round after round.

    python -m perf.sweep max_batch_rows 4 8 16 32

All servers run all the time, and all but the one that is measured are idle, so that drift of the machine hits every
value alike. Rates are compared within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from perf.ceiling import MANY_CONNECTIONS, MANY_TEXTS, SINGLE_CONNECTIONS, TEXTS, TOKENS
from perf.load import build_requests
from perf.phases import Phase, Server
from perf.results import make_result, save_result
from perf.stack import Stack
from perf.stats import Spread, spread
from perf.texts import exact_texts, make_texts

WARM_UP_SECONDS = 1.0


class Value(msgspec.Struct, frozen=True):
    """One value of the setting in one scenario; `relative` is its rate over the first value's of the same round."""

    texts_rate: Spread
    relative: Spread
    total_cpu_us: Spread
    p50_ms: Spread
    p99_ms: Spread
    batch: float | None
    foreign: Spread


class Scenario:
    """How to load a server: one measurement of one server."""

    def __init__(self, texts: Sequence[str], connections: int, per_request: int) -> None:
        self._texts = list(texts)
        self._connections = connections
        self._per_request = per_request

    def __call__(self, server: Server, seconds: float) -> Phase:
        """Run it once."""
        requests = build_requests(server.target, self._texts, self._per_request)
        return server.closed(requests, self._connections, seconds, texts=self._per_request)


SCENARIOS: Final[dict[str, Callable[[], Scenario]]] = {
    "single": lambda: Scenario(exact_texts(TOKENS, TEXTS), SINGLE_CONNECTIONS, 1),
    "many": lambda: Scenario(exact_texts(TOKENS, TEXTS), MANY_CONNECTIONS, MANY_TEXTS),
    "one": lambda: Scenario(exact_texts(TOKENS, TEXTS), 1, 1),
    "mixed": lambda: Scenario(make_texts("mixed", TEXTS // 4), SINGLE_CONNECTIONS, 1),
}


def sweep(
    setting: str, values: Sequence[str], names: Sequence[str], rounds: int, seconds: float
) -> dict[str, dict[str, Value]]:
    """These scenarios for every value: {scenario: {value: ...}}."""
    with contextlib.ExitStack() as stacks:
        servers = {value: Server(stacks.enter_context(Stack(**{setting: value}))) for value in values}  # type: ignore[arg-type]
        results = {}
        for name in names:
            scenario = SCENARIOS[name]()
            for server in servers.values():
                scenario(server, WARM_UP_SECONDS)
            phases = [{value: scenario(server, seconds) for value, server in servers.items()} for _ in range(rounds)]
            results[name] = {value: _summary([round_[value] for round_ in phases], phases) for value in values}
            print(_table(name, setting, results[name]), flush=True)
    return results


def _summary(own: Sequence[Phase], rounds: Sequence[dict[str, Phase]]) -> Value:
    firsts = [next(iter(round_.values())).texts_rate for round_ in rounds]
    latencies = [phase.report.latency_ms for phase in own if phase.report.latency_ms]
    return Value(
        texts_rate=spread([phase.texts_rate for phase in own]),
        relative=spread([phase.texts_rate / first for phase, first in zip(own, firsts, strict=True)]),
        total_cpu_us=spread([phase.total_cpu_us for phase in own]),
        p50_ms=spread([latency.p50 for latency in latencies]),
        p99_ms=spread([latency.p99 for latency in latencies]),
        batch=own[-1].batch,
        foreign=spread([phase.foreign for phase in own]),
    )


def _table(scenario: str, setting: str, values: dict[str, Value]) -> str:
    lines = [f"{scenario}:"]
    for name, value in values.items():
        lines.append(
            f"  {setting}={name:<4} {value.texts_rate.median:6.0f} texts/s, relative {value.relative.median:.3f} "
            f"({value.relative.min:.3f}-{value.relative.max:.3f}), CPU {value.total_cpu_us.median:5.0f} us "
            f"({value.total_cpu_us.min:.0f}-{value.total_cpu_us.max:.0f}), p50 {value.p50_ms.median:.1f} "
            f"p99 {value.p99_ms.median:.1f} ms, batch {value.batch or 0:.1f}, others {value.foreign.median:.0%}"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.sweep", description="What a setting does.")
    parser.add_argument("setting", help="a setting, in lower case")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    results = sweep(options.setting, options.values, options.scenarios, options.rounds, options.seconds)
    if not options.no_save:
        command = f"python -m perf.sweep {options.setting} {' '.join(options.values)}"
        command += f" --scenarios {' '.join(options.scenarios)}"
        command += f" --rounds {options.rounds} --seconds {options.seconds:g}"
        name = f"sweep-{options.setting.replace('_', '-')}"
        print(save_result(make_result(name, command, {options.setting: options.values}, results)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
