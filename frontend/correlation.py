"""X-Correlation-ID: taken from the request if it is sane, else made; on every response and log line.

The request is also counted and its log line written here, and the limits' headers are added: nothing is further out.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.admission import VERDICT
from frontend.limits.quota import Verdict
from frontend.metrics import RequestMetrics
from frontend.request_log import FACTS, Facts, RequestLog
from ipc.log import correlation_id

HEADERS = (b"x-correlation-id", b"x-request-id")
# What may go into a log and a header as it is.
SANE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

# Unlike any other process's, and without a system call for each request.
_life = secrets.token_hex(8)
_numbers = itertools.count()


class Correlation:
    """Puts the id into `scope["correlation_id"]` and the log context, and adds the response header."""

    def __init__(self, app: ASGIApp, log: RequestLog, metrics: RequestMetrics) -> None:
        self._app = app
        self._log = log
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = scope["correlation_id"] = given_id(scope["headers"]) or new_id()
        correlation_id.set(identity)
        header = (b"x-correlation-id", identity.encode())
        facts = scope[FACTS] = Facts(time.monotonic_ns())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message["headers"] = [*message.get("headers", ()), header, *_limits(scope)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._log.note(scope, facts)
            self._metrics.note(scope, facts)


def _limits(scope: Scope) -> list[tuple[bytes, bytes]]:
    verdict: Verdict | None = scope.get(VERDICT)
    return [] if verdict is None else [(name.encode(), value.encode()) for name, value in verdict.headers()]


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The id that a request's headers give."""
    for name, value in headers:
        if name in HEADERS and SANE.fullmatch(value):
            return str(value, "ascii")
    return None


def new_id() -> str:
    """One that no other request has."""
    return f"{_life}{next(_numbers):016x}"
