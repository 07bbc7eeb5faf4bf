"""The load generator: an open pool of connections, and a command.

python -m perf.load --port 8000 --key KEY --rate 500 --seconds 60     open loop, 500 requests/s
python -m perf.load --port 8000 --key KEY --connections 64            closed loop
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec
import uvloop

from perf.http import Connection, Target, build_request
from perf.loops import THINK_SECONDS, ClosedLoop, OpenLoop, ThinkingLoop, Window
from perf.pacing import Schedule, make_schedule
from perf.record import Check, Recorder, Run
from perf.texts import KINDS, exact_texts, make_texts

REOPEN_SECONDS = 0.05
# Enough that no text comes twice in the longest run there is; then they begin anew.
DISTINCT_TEXTS = 50_000


def _nothing(_: object) -> None:
    pass


class Generator:
    """A number of open connections, as an async context manager; one loop at a time."""

    def __init__(
        self, target: Target, connections: int, window: Window = _nothing, kind: type[Connection] = Connection
    ) -> None:
        self._target = target
        self._window = window
        self.on_answer: Callable[[Connection], None] = _nothing
        self.on_ready: Callable[[Connection], None] = _nothing
        self.connections = [kind(self._answered) for _ in range(connections)]
        self._reopening: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(connection.open(self._target) for connection in self.connections))
        # A collection in mid-run would look like the server's stall.
        gc.collect()
        gc.disable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.enable()
        for task in self._reopening:
            task.cancel()
        for connection in self.connections:
            connection.close()

    async def closed(
        self, requests: list[bytes], seconds: float, *, warm_up: float = 0.5, check: Check | None = None
    ) -> Run:
        """See ClosedLoop."""
        return await ClosedLoop(self, requests, Recorder(check), self._window).run(seconds, warm_up)

    async def thinking(
        self,
        requests: list[bytes],
        seconds: float,
        *,
        warm_up: float = 0.5,
        think_seconds: float = THINK_SECONDS,
        check: Check | None = None,
    ) -> Run:
        """See ThinkingLoop."""
        loop = ThinkingLoop(self, requests, Recorder(check), self._window, think_seconds)
        return await loop.run(seconds, warm_up)

    async def open(
        self, requests: list[bytes], schedule: Schedule, *, warm_up: float = 1.0, check: Check | None = None
    ) -> Run:
        """See OpenLoop."""
        return await OpenLoop(self, requests, Recorder(check), self._window).run(schedule, warm_up)

    def _answered(self, connection: Connection) -> None:
        self.on_answer(connection)
        if not connection.is_over:
            self.on_ready(connection)
            return
        task = asyncio.ensure_future(self._reopen(connection))
        self._reopening.add(task)
        task.add_done_callback(self._reopening.discard)

    async def _reopen(self, connection: Connection) -> None:
        while True:
            try:
                await connection.open(self._target)
            except OSError:
                await asyncio.sleep(REOPEN_SECONDS)
            else:
                self.on_ready(connection)
                return


def build_requests(target: Target, texts: list[str], per_request: int = 1, **fields: object) -> list[bytes]:
    """All texts in order, so many a request; what is left over is left out."""
    starts = range(0, len(texts) - per_request + 1, per_request)
    return [build_request(target, texts[n : n + per_request], **fields) for n in starts]


def main() -> int:
    """Run once and print the report as JSON; exit status 1 where it is void or has errors."""
    options = _options()
    target = Target(options.host, options.port, options.key)
    texts = exact_texts(options.tokens, options.texts) if options.tokens else make_texts(options.kind, options.texts)
    requests = build_requests(target, texts, options.per_request, encoding_format=options.encoding)
    report = uvloop.run(_run(target, requests, options)).report
    print(msgspec.json.format(msgspec.json.encode(report)).decode())
    return int(bool(report.void or report.errors))


async def _run(target: Target, requests: list[bytes], options: argparse.Namespace) -> Run:
    async with Generator(target, options.connections) as generator:
        if options.rate is None:
            return await generator.closed(requests, options.seconds, warm_up=options.warm_up)
        schedule = make_schedule(options.arrivals, options.rate, options.warm_up + options.seconds)
        return await generator.open(requests, schedule, warm_up=options.warm_up)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.load", description="Load one Embedlane over loopback.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key", default=os.environ.get("EMBEDLANE_API_KEY", ""))
    parser.add_argument("--connections", type=int, default=64, help="connections; in an open loop the most in flight")
    parser.add_argument("--rate", type=float, help="requests per second: open loop; without it, closed loop")
    parser.add_argument("--arrivals", choices=("constant", "poisson"), default="poisson")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=5)
    parser.add_argument("--kind", choices=KINDS, default="short", help="set of texts")
    parser.add_argument("--tokens", type=int, help="texts of exactly this many tokens instead of a set")
    parser.add_argument("--texts", type=int, default=DISTINCT_TEXTS, help="distinct texts, then round again")
    parser.add_argument("--per-request", type=int, default=1, help="texts in a request")
    parser.add_argument("--encoding", choices=("float", "base64"), default="float")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
