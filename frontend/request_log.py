"""One line for each request: what it was, what became of it and where its time went. No text, key or vector."""

from __future__ import annotations

import asyncio
import logging
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import orjson
from starlette.types import Scope

from frontend.auth import SCOPE_KEY
from frontend.keys import Key

NAME: Final = "frontend.request"
# A line by itself would cost the supervisor, who passes it on, more than it costs here.
FLUSH_SECONDS = 0.1
MOST_PATH = 200
# What nginx's logs made common for a client that left before its answer.
CLIENT_LEFT: Final = 499
# Where the scope has the request's Facts.
FACTS: Final = "embedlane.facts"


@dataclass(slots=True)
class Facts:
    """What the parts of a request's path know of it, for its line; times in ns."""

    began_ns: int
    # The answer's; None until it has begun.
    status: int | None = None
    texts: int = 0
    tokens: int = 0
    tokenize_ns: int = 0
    wait_ns: int = 0
    compute_ns: int = 0
    cache: str | None = None
    error: str | None = None
    # On CLOCK_MONOTONIC, when the texts were tokenized and when the last vector was there; 0 where that never was.
    tokenized_ns: int = 0
    computed_ns: int = 0
    # Of the request's trace, 32 hexadecimal digits.
    trace_id: str | None = None


class RequestLog:
    """Writes to stderr, as `ipc.log` does, all lines of a tenth of a second together; `close` writes the last."""

    def __init__(self) -> None:
        self._is_on = logging.getLogger(NAME).isEnabledFor(logging.INFO)
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def note(self, scope: Scope, facts: Facts) -> None:
        """Queue the line of a request that has ended."""
        if not self._is_on:
            return
        self._lines.append(_line(scope, facts))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def close(self) -> None:
        """Write what is queued."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        lines, self._lines = self._lines, []
        for some in _together(lines):
            sys.stderr.write(some.decode())
            sys.stderr.flush()


def _together(lines: list[bytes]) -> Iterator[bytes]:
    """Lines in as few writes as a pipe takes whole: a longer one may be cut by another process's lines."""
    some = b""
    for line in lines:
        if len(some) + len(line) > select.PIPE_BUF:
            yield some
            some = b""
        some += line
    yield some


def _line(scope: Scope, facts: Facts) -> bytes:
    """Formatted by hand, in a third of an encoder's time: ids, names and codes have no character that JSON escapes."""
    key: Key | None = scope.get(SCOPE_KEY)
    name = "null" if key is None else f'"{key.name}"'
    cache = "null" if facts.cache is None else f'"{facts.cache}"'
    error = "null" if facts.error is None else f'"{facts.error}"'
    trace = "" if facts.trace_id is None else f'"trace_id":"{facts.trace_id}",'
    total_ns = time.monotonic_ns() - facts.began_ns
    return (
        f'{{"level":"INFO","logger":"{NAME}","message":"request","process":"frontend",'
        f'"correlation_id":"{scope["correlation_id"]}","method":{_quoted(scope["method"])},'
        f'"path":{_quoted(scope["path"][:MOST_PATH])},"status":{facts.status or CLIENT_LEFT},"key":{name},'
        f'"texts":{facts.texts},"tokens":{facts.tokens},"queue_ms":{facts.wait_ns / 1e6:.3f},'
        f'"inference_ms":{facts.compute_ns / 1e6:.3f},"total_ms":{total_ns / 1e6:.3f},'
        f'"cache":{cache},"error":{error},{trace}"time":"{_now()}"}}\n'
    ).encode()


@lru_cache(256)
def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


def _now() -> str:
    """ISO 8601, UTC, to the microsecond."""
    second, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
