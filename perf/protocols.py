"""The same texts asked for as JSON, base64, raw octets and over gRPC: latency, and what each costs a front end.

python -m perf.protocols

Clients of equal simplicity (perf.http, perf.http2), so that what differs is the server; then what a program waits that
asks with a library.
One connection shows latency, several how many a front end answers; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import uvloop

from perf.halves import half_a_server
from perf.http import Connection, Target, build_request
from perf.http2 import GrpcConnection, build_call
from perf.libraries import Library, measure_libraries
from perf.load import Generator
from perf.procfs import Meter
from perf.record import Run
from perf.results import ROOT, make_result, save_result
from perf.stack import KEY, Stack, free_port
from perf.stats import Spread, spread
from perf.texts import exact_texts

TOKENS: Final = 16
TEXTS: Final = 4096
BATCHES: Final = (1, 32)
# With so many connections the engine has always enough to do.
SATURATED: Final = {1: 64, 32: 4}
WARM_UP_SECONDS: Final = 0.3
START_SECONDS: Final = 30
HTTP, GRPC = "frontend", "grpc"
BASE: Final = "json"


class Way(msgspec.Struct, frozen=True):
    """A way to ask: which program answers, on what connection, and how requests are made."""

    program: str
    connection: type[Connection]
    fields: dict[str, str] = {}
    accept: str = ""

    def request(self, target: Target, texts: Sequence[str]) -> bytes:
        """One request for these texts."""
        if self.program == GRPC:
            return build_call(texts)
        made = build_request(target, texts, **self.fields)
        return made.replace(b"\r\n", f"\r\nAccept: {self.accept}\r\n".encode(), 1) if self.accept else made


WAYS: Final = {
    BASE: Way(HTTP, Connection),
    "base64": Way(HTTP, Connection, fields={"encoding_format": "base64"}),
    "raw": Way(HTTP, Connection, accept="application/octet-stream"),
    "gRPC": Way(GRPC, GrpcConnection),
}


class Measured(msgspec.Struct, frozen=True):
    """One way under one load: rate in requests a second, times in ms, CPU in µs a request. `*_of_json` are this way's
    values over those of JSON in the same round."""

    rate: Spread
    p50_ms: Spread
    p99_ms: Spread
    frontend_us: Spread
    generator_us: Spread
    p50_of_json: Spread
    frontend_of_json: Spread


class Protocols(msgspec.Struct, frozen=True):
    """Load → way → what it gave: of a whole server, and of front ends whose engine answers at once. And what clients
    see that ask the whole server with a library, by its name."""

    served: dict[str, dict[str, Measured]]
    libraries: dict[str, Library]
    alone: dict[str, dict[str, Measured]]


class Round(msgspec.Struct, frozen=True):
    """What one phase gave."""

    rate: float
    p50_ms: float
    p99_ms: float
    frontend_us: float
    generator_us: float


class Phases:
    """Processes that answer, by program, and one phase of load on one of them at a time."""

    def __init__(self, texts: Sequence[str], targets: Mapping[str, Target], pids: Mapping[str, int]) -> None:
        self._texts = texts
        self._targets = targets
        self._pids = pids

    def run(self, way: Way, batch: int, connections: int, seconds: float) -> Round:
        """A closed loop. Raises RuntimeError where a request failed, or none was answered in time."""
        target = self._targets[way.program]
        starts = range(0, len(self._texts) - batch + 1, batch)
        requests = [way.request(target, self._texts[n : n + batch]) for n in starts]
        meter = Meter({way.program: self._pids[way.program]})

        async def load() -> Run:
            async with Generator(target, connections, meter.window, way.connection) as generator:
                return await generator.closed(requests, seconds, warm_up=WARM_UP_SECONDS)

        report = uvloop.run(load()).report
        if report.errors or report.latency_ms is None:
            raise RuntimeError(f"{report.requests} requests, {report.errors} errors: give it more seconds.")
        done = max(1, report.achieved_rate * report.seconds) / 1e6
        cpu = meter.usage.cpu
        return Round(
            rate=report.achieved_rate,
            p50_ms=report.latency_ms.p50,
            p99_ms=report.latency_ms.p99,
            frontend_us=cpu[way.program] / done,
            generator_us=cpu["generator"] / done,
        )

    def compare(self, loads: Sequence[tuple[int, int]], rounds: int, seconds: float) -> dict[str, dict[str, Measured]]:
        """Load (texts a request, connections) → way → what it gave, in rounds of all of them."""
        found: dict[str, dict[str, list[Round]]] = {_name(*load): {name: [] for name in WAYS} for load in loads}
        for way in WAYS.values():
            # The first requests of a process are slower than all others.
            self.run(way, 1, 4, seconds)
        for _ in range(rounds):
            for load in loads:
                for name, way in WAYS.items():
                    found[_name(*load)][name].append(self.run(way, *load, seconds))
        return {
            load: {name: _measured(each, ways[BASE]) for name, each in ways.items()} for load, ways in found.items()
        }


def measure(rounds: int, seconds: float, batches: Sequence[int] = BATCHES) -> Protocols:
    """The whole server, then its front ends without a model behind them."""
    port, texts = free_port(), exact_texts(TOKENS, TEXTS)
    with Stack(frontends=1, grpc_port=port) as stack:
        targets = {HTTP: Target("127.0.0.1", stack.port, KEY), GRPC: Target("127.0.0.1", port, KEY)}
        phases = Phases(texts, targets, {name: stack.pids(name)[0] for name in (HTTP, GRPC)})
        served = phases.compare([(batch, n) for batch in batches for n in (1, SATURATED[batch])], rounds, seconds)
        libraries = measure_libraries(stack.url, f"127.0.0.1:{port}", texts, rounds, seconds)
    with half_a_server("echo", grpc_port=port) as (target, pids):
        phases = Phases(
            texts, {HTTP: target, GRPC: target._replace(port=port)}, {HTTP: pids["frontend-0"], GRPC: pids["grpc"]}
        )
        _wait_for(port)
        alone = phases.compare([(batch, SATURATED[batch]) for batch in batches], rounds, seconds)
    return Protocols(served, libraries, alone)


def _wait_for(port: int) -> None:
    """Return once something listens there."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the gRPC front end is not there")


def _name(batch: int, connections: int) -> str:
    return f"{batch} text{'s' * (batch > 1)} a request, {connections} connection{'s' * (connections > 1)}"


def _measured(rounds: Sequence[Round], base: Sequence[Round]) -> Measured:
    pairs = list(zip(rounds, base, strict=True))
    return Measured(
        rate=spread([each.rate for each in rounds]),
        p50_ms=spread([each.p50_ms for each in rounds]),
        p99_ms=spread([each.p99_ms for each in rounds]),
        frontend_us=spread([each.frontend_us for each in rounds]),
        generator_us=spread([each.generator_us for each in rounds]),
        p50_of_json=spread([each.p50_ms / json.p50_ms for each, json in pairs]),
        frontend_of_json=spread([each.frontend_us / json.frontend_us for each, json in pairs]),
    )


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.protocols", description="HTTP's forms and gRPC side by side.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each phase")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.rounds, options.seconds)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    if not options.no_save:
        command = f"python -m perf.protocols --rounds {options.rounds} --seconds {options.seconds:g}"
        print(save_result(make_result("protocols", command, {"frontends": 1}, found)).relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
