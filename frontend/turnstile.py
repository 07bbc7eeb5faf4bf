"""Refusals by a request's head alone, while there is far more than can be done.

What is refused anyway is not worth a task, middleware and a body that is read: at ten times capacity the refused are
most of what comes. Each has its line in the log and is counted as any other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import Headers

from frontend.admission import Admission
from frontend.auth import SCOPE_KEY, authorized
from frontend.correlation import identify
from frontend.dialects import Dialect
from frontend.gate import Gate
from frontend.keys import KeyRing
from frontend.metrics import RequestMetrics
from frontend.protocol import RawHeaders
from frontend.request_log import FACTS, Facts, RequestLog
from frontend.responses import error_response
from frontend.wishes import read_wishes
from ipc.errors import InvalidRequest, Overloaded, Unauthorized

TIMEOUT: Final = b"x-request-timeout-ms"
STATUS_LINE: Final = b"HTTP/1.1 429 Too Many Requests\r\n"


class Turnstile:
    """Writes what refuses a request; `dialects` are those of the paths that ask the engine.

    `most_ms` is the longest deadline there is.
    """

    def __init__(
        self,
        gate: Gate,
        admission: Admission,
        keys: KeyRing,
        dialects: Mapping[str, Dialect],
        log: RequestLog,
        metrics: RequestMetrics,
        most_ms: int,
    ) -> None:
        self._gate = gate
        self._admission = admission
        self._keys = keys
        self._dialects = {path.encode(): (path, dialect) for path, dialect in dialects.items()}
        self._log = log
        self._metrics = metrics
        self._most_ms = most_ms

    def refusal(self, url: bytes, headers: RawHeaders, always: RawHeaders) -> bytes | None:
        """The whole answer to a POST that is refused, `always` among its headers; None for one that goes its way."""
        found = self._dialects.get(url)
        if found is None or not (self._gate.is_crowded(self._most_ms / 1e3) or _is_in_a_hurry(headers)):
            return None
        began = time.monotonic_ns()
        try:
            key = authorized(self._keys, headers)
            asked = read_wishes(Headers(raw=headers), self._most_ms)
        except (Unauthorized, InvalidRequest):
            # The long way says so.
            return None
        error = self._gate.refusal(asked.priority, key.flow, asked.timeout_ms / 1e3)
        # Whose limits are used up is told that, by the long way.
        if error is None or self._admission.is_spent(key):
            return None
        path, dialect = found
        identity = identify(headers)
        scope = {"method": "POST", "path": path, "headers": headers, "correlation_id": identity, SCOPE_KEY: key}
        self._note(scope, began, error)
        return _written(dialect, error, identity, always)

    def _note(self, scope: dict[str, Any], began: int, error: Overloaded) -> None:
        facts = scope[FACTS] = Facts(began, status=429, error=error.code)
        self._log.note(scope, facts)
        self._metrics.note(scope, facts)


def _is_in_a_hurry(headers: RawHeaders) -> bool:
    return any(name == TIMEOUT for name, _ in headers)


def _written(dialect: Dialect, error: Overloaded, identity: str, always: RawHeaders) -> bytes:
    status = dialect.STATUS[type(error)]
    response = error_response(error, status, dialect.error_body(error, status, identity))
    head = [*always, *response.raw_headers, (b"x-correlation-id", identity.encode())]
    lines = [b"%b: %b\r\n" % header for header in head]
    return b"".join((STATUS_LINE, *lines, b"\r\n", response.body))
