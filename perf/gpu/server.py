"""A whole server on the GPU under load: at a fixed rate, and as much as it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from perf.gpu.parts import Found
from perf.stack import KEY, ROOT, Stack

# Every bucket is run, and the small ones captured, before the server is ready.
START_SECONDS = 300.0
WARM_UP_SECONDS = 3.0


class Offered(Found, kw_only=True):
    """An open loop: latencies in ms from the time at which a request should have left."""

    offered_rate: float
    achieved_rate: float
    p50: float
    p99: float
    max: float
    errors: dict[str, int]


class Saturated(Found, kw_only=True):
    """Closed loops from several generators; the best of several numbers of front ends, and all of them."""

    best: float
    frontends: dict[int, float]
    p50_ms: dict[int, float]
    tokens_rate: float


class Load(msgspec.Struct, frozen=True):
    """How a saturated server is loaded: texts of so many tokens, so many a request."""

    tokens: int
    per_request: int
    connections: int
    generators: int
    least_tokens: float = 0.0
    least_requests: float = 0.0


@contextmanager
def running(bundle: Path, settings: Mapping[str, object]) -> Iterator[Stack]:
    """A server that is waited for as long as the warm-up of a GPU takes."""
    stack = Stack(bundle, **settings)
    try:
        stack.start(wait=False)
        stack.wait_ready(START_SECONDS)
        yield stack
    finally:
        stack.__exit__()


def offer(bundle: Path, settings: Mapping[str, object], rate: float, seconds: float, p50: float, p99: float) -> Offered:
    """So many requests of one short text a second, by a Poisson process; targets in ms."""
    with running(bundle, settings) as stack:
        [report] = generate(stack.port, 1, seconds, "--rate", rate, "--connections", 512)
    latency = report["latency_ms"] or {"p50": float("inf"), "p99": float("inf"), "max": float("inf")}
    missed = list(report["void"])
    missed += [
        f"{name} is {latency[name]:.2f} ms, {most} the target"
        for name, most in (("p50", p50), ("p99", p99))
        if latency[name] > most
    ]
    return Offered(
        offered_rate=report["offered_rate"],
        achieved_rate=report["achieved_rate"],
        p50=latency["p50"],
        p99=latency["p99"],
        max=latency["max"],
        errors=report["errors"],
        missed=missed + [f"{count} answers were {status}" for status, count in report["errors"].items()],
    )


def saturate(
    bundle: Path, settings: Mapping[str, object], frontends: list[int], load: Load, seconds: float
) -> Saturated:
    """The same load for each number of front ends, each with a server of its own."""
    rates, latencies, missed = {}, {}, []
    for count in frontends:
        with running(bundle, {**settings, "frontends": count}) as stack:
            options = ("--connections", load.connections, "--tokens", load.tokens, "--per-request", load.per_request)
            reports = generate(stack.port, load.generators, seconds, *options, "--encoding", "base64")
        rates[count] = sum(report["achieved_rate"] for report in reports)
        latencies[count] = max(report["latency_ms"]["p50"] for report in reports)
        errors = sum(sum(report["errors"].values()) for report in reports)
        missed += [f"{errors} requests failed with {count} front ends"] if errors else []
    best = max(rates.values())
    tokens = best * load.per_request * load.tokens
    for value, least, unit in ((best, load.least_requests, "requests"), (tokens, load.least_tokens, "tokens")):
        if value < least:
            missed.append(f"{value:,.0f} {unit} a second, {least:,.0f} the target")
    return Saturated(best=best, frontends=rates, p50_ms=latencies, tokens_rate=tokens, missed=missed)


def generate(port: int, processes: int, seconds: float, *options: object) -> list[dict[str, Any]]:
    """Reports of so many load generators at the same time. Raises RuntimeError where one gives none."""
    fixed = ("--port", port, "--key", KEY, "--seconds", seconds, "--warm-up", WARM_UP_SECONDS)
    command = [sys.executable, "-m", "perf.load", *map(str, (*fixed, *options))]
    generators = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603 - our own
        for _ in range(processes)
    ]
    reports = []
    for generator in generators:
        output, errors = generator.communicate()
        if not output.strip():
            raise RuntimeError(f"A load generator ended without a report: {errors.decode().strip()[-300:]}")
        reports.append(json.loads(output))
    return reports
