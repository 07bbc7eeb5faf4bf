"""What a pause costs: CPU time of the same Python at once again, and after the process slept or did something small.

python -m perf.pauses

Requests that come one by one pay for a pause each time, those that come together once (docs/decisions/0018).
"""

from __future__ import annotations

import argparse
import email
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from perf.results import make_result, save_result
from perf.stats import Spread, spread
from perf.tables import spread_text, table

MESSAGE: Final = "From: a@b.c\r\nTo: d@e.f\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n"
SLEEPS_MS: Final = (0.5, 2, 4, 20)
BUSY_MS: Final = 4.0
WARM_UP: Final = 300


class Pauses(msgspec.Struct, frozen=True):
    """CPU time of the work, µs, by what came before it: of each turn's medians."""

    cpu_us: dict[str, Spread]


def work() -> None:
    """Some 60 µs of Python with many branches, as a request has."""
    message = email.message_from_string(MESSAGE)
    json.loads(json.dumps({"to": message["To"], "text": message.as_string(), "numbers": [1, 2, 3]}))


def spin(seconds: float) -> None:
    """Keep the core, with next to no memory."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def befores() -> dict[str, Callable[[], None]]:
    """What comes before the work."""
    sleeps = {f"{ms:g} ms asleep": lambda ms=ms: time.sleep(ms / 1e3) for ms in SLEEPS_MS}
    return {"at once": lambda: None, **sleeps, f"{BUSY_MS:g} ms busy": lambda: spin(BUSY_MS / 1e3)}


def cpu_us(before: Callable[[], None], times: int) -> float:
    """Median CPU time of this thread for the work."""
    found = []
    for _ in range(times):
        before()
        began = time.thread_time_ns()
        work()
        found.append(time.thread_time_ns() - began)
    return statistics.median(found) / 1e3


def measure(turns: int, times: int) -> Pauses:
    """So many turns of all, so many times each."""
    for _ in range(WARM_UP):
        work()
    found: dict[str, list[float]] = {name: [] for name in befores()}
    for _ in range(turns):
        for name, before in befores().items():
            found[name].append(cpu_us(before, times))
    return Pauses({name: spread(values) for name, values in found.items()})


def pauses_table(data: dict[str, Any]) -> str:
    """Each, and how many times that of at once."""
    hot = data["cpu_us"]["at once"]["median"]
    rows = [(name, spread_text(each, 0), f"{each['median'] / hot:.1f}") for name, each in data["cpu_us"].items()]
    return table(("before the work", "its CPU time, µs", "times that at once"), rows)


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.pauses", description="What a pause costs.")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--times", type=int, default=300, help="the work is done after each kind of pause in a turn")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.turns, options.times)
    print(pauses_table(msgspec.to_builtins(found)))
    if not options.no_save:
        command = f"python -m perf.pauses --turns {options.turns} --times {options.times}"
        print(save_result(make_result("pauses", command, {}, found)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
