"""The engine swapped to another model and back under load: what is lost, what is wrong, and how long nothing comes.

python -m perf.swap        about 2 minutes
"""

from __future__ import annotations

import argparse
import base64
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import uvloop

from perf.http import Connection, Target
from perf.load import Generator, build_requests
from perf.other_model import other_bundle
from perf.pacing import Schedule, make_schedule
from perf.phases import OPEN_CONNECTIONS, Server
from perf.record import Check, Report
from perf.results import ROOT, make_result, save_result
from perf.stack import KEY, Stack
from perf.texts import exact_texts

TEXTS: Final = 500
CAPACITY_SECONDS: Final = 5.0
CONNECTIONS: Final = 64
SHARE: Final = 0.5
_MODEL: Final = re.compile(rb"\r\nx-model: *([^\r]+)\r\n")
_EMBEDDING: Final = re.compile(rb'"embedding":"([^"]+)"')


class Swap(msgspec.Struct, frozen=True):
    """One swap: seconds without an engine by the tool's own clock, the longest time without any answer, and the longest
    that a request took, while it was under way.
    """

    to: str
    away_s: float
    pause_s: float
    longest_s: float


class Swaps(msgspec.Struct, frozen=True):
    """All of a run. `answers` counts right answers by model; wrong and failed requests are in the report's errors."""

    rate: float
    answers: dict[str, int]
    swaps: list[Swap]
    report: Report


class ByModel:
    """A Check: the vector must be that of the model which the answer names. Keeps when each came, and its latency."""

    def __init__(self, expected: Mapping[bytes, Sequence[bytes]]) -> None:
        self._expected = {
            model: [base64.b64encode(vector) for vector in vectors] for model, vectors in expected.items()
        }
        self.answers: dict[bytes, int] = dict.fromkeys(expected, 0)
        self.times: list[tuple[int, int]] = []

    def __call__(self, connection: Connection) -> bool:
        """Whether model and vector belong together."""
        self.times.append((connection.answered_ns, connection.from_ns))
        model, found = model_of(connection), _EMBEDDING.findall(connection.body)
        vectors = self._expected[model]
        if found != [vectors[connection.number % len(vectors)]]:
            return False
        self.answers[model] += 1
        return True

    def pause(self, began: int, ended: int) -> tuple[float, float]:
        """The longest time without an answer, and the longest latency, between two moments; s."""
        times = np.array(sorted(self.times), np.int64)
        around = times[(times[:, 0] >= began) & (times[:, 0] <= ended)]
        return float(np.diff(around[:, 0]).max()) / 1e9, float((around[:, 0] - around[:, 1]).max()) / 1e9


def model_of(connection: Connection) -> bytes:
    """The model that the answer names."""
    found = _MODEL.search(connection.head)
    assert found is not None, "an answer with vectors names its model"
    return found[1]


def vectors_now(target: Target, texts: Sequence[str]) -> tuple[bytes, list[bytes]]:
    """The model that is served, and each text's vector from it, one after the other."""
    vectors: dict[int, bytes] = {}
    models: set[bytes] = set()

    def keep(connection: Connection) -> bool:
        vectors[connection.number] = base64.b64decode(_EMBEDDING.findall(connection.body)[0])
        models.add(model_of(connection))
        return True

    async def ask() -> None:
        async with Generator(target, 1) as generator:
            requests = build_requests(target, list(texts), encoding_format="base64")
            seconds = 1.0
            # Each run begins with the first text.
            while len(vectors) < len(texts):
                await generator.closed(requests, seconds, warm_up=0, check=keep)
                seconds *= 2

    uvloop.run(ask())
    (model,) = models
    return model, [vectors[number] for number in range(len(texts))]


def swap(stack: Stack, model: Path) -> float:
    """Run the tool; gives what it says of the seconds without an engine."""
    command = [sys.executable, "-m", "tools.swap", str(model)]
    done = subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=True)  # noqa: S603
    found = re.search(r"away for ([\d.]+) s", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def under_load(
    stack: Stack,
    target: Target,
    texts: Sequence[str],
    schedule: Schedule,
    check: Check,
    plan: Sequence[tuple[float, Path]],
) -> tuple[Report, list[tuple[int, int, float, Path]]]:
    """Offer the schedule while the swaps of the plan (s from the start, model) are made; when each began and ended."""
    made: list[tuple[int, int, float, Path]] = []
    start = time.monotonic()

    def swap_all() -> None:
        for at, model in plan:
            time.sleep(max(0.0, start + at - time.monotonic()))
            began = time.monotonic_ns()
            away = swap(stack, model)
            made.append((began, time.monotonic_ns() + 1_000_000_000, away, model))

    async def load() -> Report:
        async with Generator(target, OPEN_CONNECTIONS) as generator:
            requests = build_requests(target, list(texts), encoding_format="base64")
            return (await generator.open(requests, schedule, warm_up=0, check=check)).report

    swapping = threading.Thread(target=swap_all)
    swapping.start()
    try:
        return uvloop.run(load()), made
    finally:
        swapping.join()


def measure(seconds: float, swaps: int) -> Swaps:
    """A server of its own, both models' vectors, its capacity, then the load with the swaps spread over it."""
    texts = exact_texts(16, TEXTS)
    with Stack() as stack:
        first, target = Path(stack.env["EMBEDLANE_MODEL"]), Target("127.0.0.1", stack.port, KEY)
        second = other_bundle(first, stack.folder / "other")
        expected = dict([vectors_now(target, texts)])
        swap(stack, second)
        expected |= dict([vectors_now(target, texts)])
        swap(stack, first)
        requests = build_requests(target, texts)
        rate = SHARE * Server(stack).closed(requests, CONNECTIONS, CAPACITY_SECONDS).texts_rate
        check = ByModel(expected)
        plan = [(seconds * (n + 0.5) / swaps, (second, first)[n % 2]) for n in range(swaps)]
        report, made = under_load(stack, target, texts, make_schedule("poisson", rate, seconds), check, plan)
    done = [Swap(model.name, away, *check.pause(began, ended)) for began, ended, away, model in made]
    return Swaps(rate, {model.decode(): count for model, count in check.answers.items()}, done, report)


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.swap", description="Swap models under load.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--swaps", type=int, default=4)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.seconds, options.swaps)
    latency = found.report.latency_ms
    print(
        f"{found.rate:.0f} requests/s offered, {found.report.requests} requests, errors {found.report.errors}, right "
        f"answers {found.answers}; p50 {latency.p50:.1f}, p99 {latency.p99:.1f} ms"
        if latency
        else "no answers"
    )
    for each in found.swaps:
        print(
            f"to {each.to}: {each.away_s:.2f} s without an engine, {each.pause_s:.2f} s without an answer, "
            f"the longest request {each.longest_s:.2f} s"
        )
    if not options.no_save:
        command = f"python -m perf.swap --seconds {options.seconds:g} --swaps {options.swaps}"
        print(save_result(make_result("swap", command, {"cache_mb": 0}, found)))
    return 1 if found.report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
