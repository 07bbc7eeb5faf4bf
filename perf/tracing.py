"""What spans cost a front end: CPU for a request with tracing off, with one request in a hundred taken, and with all.

python -m perf.tracing          about 2 minutes

One front end and an engine that answers at once, closed loop, by turns; a collector of its own process takes the spans
and forgets them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

import msgspec

from perf.halves import Half, measure_half
from perf.results import ROOT, make_result, save_result
from perf.stats import Spread, spread

OFF: Final = "off"
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
VARIABLES: Final[dict[str, dict[str, str]]] = {
    OFF: {},
    "1 % of the requests": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "all requests": {},
}


class Cost(msgspec.Struct, frozen=True):
    """CPU of the front end for a request, µs, and over that of the rounds without tracing beside it."""

    frontend_us: Spread
    times: Spread
    p50_ms: Spread


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and forget."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "perf.tracing", "--collect"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of the processes that are started within."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(rounds: int, seconds: float, ways: Mapping[str, Mapping[str, str]] = VARIABLES) -> dict[str, Cost]:
    """Each way in each round, and once more without."""
    found: dict[str, list[Half]] = {name: [] for name in ways}
    with collector() as url:
        for number in range(rounds + 1):
            for name, variables in ways.items():
                if number < rounds or name == OFF:
                    with environment({ENDPOINT: url, **variables}):
                        found[name].append(measure_half("echo", seconds, tracing=name != OFF))
    return {name: _cost(each, found[OFF]) for name, each in found.items()}


def _cost(found: list[Half], off: list[Half]) -> Cost:
    beside = [(off[n].frontend_us + off[n + 1].frontend_us) / 2 for n in range(len(off) - 1)]
    return Cost(
        frontend_us=spread([half.frontend_us for half in found]),
        times=spread([half.frontend_us / base for half, base in zip(found, beside, strict=False)]),
        p50_ms=spread([half.p50_ms for half in found]),
    )


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.tracing", description="What spans cost a front end.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each way in a round")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        with HTTPServer(("127.0.0.1", 0), _Sink) as server:
            print(f"http://127.0.0.1:{server.server_port}", flush=True)
            server.serve_forever()
    done = measure(options.rounds, options.seconds)
    for name, cost in done.items():
        times = f"{cost.times.median:.2f} ({cost.times.min:.2f} to {cost.times.max:.2f})"
        print(f"{name}: {cost.frontend_us.median:.0f} us a request, {times} of off, p50 {cost.p50_ms.median:.1f} ms")
    if not options.no_save:
        command = f"python -m perf.tracing --rounds {options.rounds} --seconds {options.seconds:g}"
        print(save_result(make_result("tracing", command, {}, done)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
