"""Refusals by a request's head alone, while there is far more than can be done.

What is refused anyway is not worth a task, middleware and a body that is read: at ten times capacity the refused are
most of what comes. Each has its line in the log and is counted as any other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from starlette.datastructures import Headers

from frontend.admission import Admission
from frontend.auth import SCOPE_KEY, authorized
from frontend.correlation import given_id, new_id
from frontend.dialects import Dialect
from frontend.gate import Gate
from frontend.heads import Heads
from frontend.keys import Key, KeyRing
from frontend.metrics import RequestMetrics
from frontend.protocol import RawHeaders
from frontend.request_log import Facts, RequestLog
from frontend.responses import retry_headers
from frontend.wishes import Wishes, read_wishes
from ipc.errors import InvalidRequest, Overloaded, Unauthorized

TIMEOUT: Final = b"x-request-timeout-ms"
STATUS_LINE: Final = b"HTTP/1.1 429 Too Many Requests\r\n"


class Asked(NamedTuple):
    """What a request's head asks for."""

    path: str
    dialect: Dialect
    key: Key
    wishes: Wishes


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
        self._heads: Heads[Asked] = Heads()

    def refusal(self, url: bytes, headers: RawHeaders, always: RawHeaders, whole: bytes = b"") -> bytes | None:
        """The whole answer to a POST that is refused, `always` among its headers; None for one that goes its way.

        `whole` is what was read together with the request's beginning, as far as that is known.
        """
        found = self._dialects.get(url)
        if found is None or not (self._gate.is_crowded(self._most_ms / 1e3) or _is_in_a_hurry(headers)):
            return None
        began = time.monotonic_ns()
        try:
            key = authorized(self._keys, headers)
            asked = Asked(*found, key, read_wishes(Headers(raw=headers), self._most_ms))
        except (Unauthorized, InvalidRequest):
            # The long way says so.
            return None
        identity = given_id(headers)
        answer = self._refusal(asked, began, always, identity)
        # A head with an id of its own does not come again.
        if answer is not None and identity is None:
            self._heads.keep(whole, headers, asked)
        return answer

    def again(self, whole: bytes, always: RawHeaders) -> bytes | None:
        """As `refusal`, if `whole` is all of a request whose head was refused before: it need not be read again."""
        began = time.monotonic_ns()
        asked = self._heads.find(whole)
        if asked is None or not self._keys.holds(asked.key):
            return None
        return self._refusal(asked, began, always)

    def _refusal(self, asked: Asked, began: int, always: RawHeaders, identity: str | None = None) -> bytes | None:
        error = self._gate.refusal(asked.wishes.priority, asked.key.flow, asked.wishes.timeout_ms / 1e3)
        # Whose limits are used up is told that, by the long way.
        if error is None or self._admission.is_spent(asked.key):
            return None
        identity = identity or new_id()
        self._note(asked, identity, began, error)
        return _written(asked.dialect, error, identity, always)

    def _note(self, asked: Asked, identity: str, began: int, error: Overloaded) -> None:
        scope = {"method": "POST", "path": asked.path, "correlation_id": identity, SCOPE_KEY: asked.key}
        facts = Facts(began, status=429, error=error.code)
        self._log.note(scope, facts)
        self._metrics.note(scope, facts)


def _is_in_a_hurry(headers: RawHeaders) -> bool:
    return any(name == TIMEOUT for name, _ in headers)


def _written(dialect: Dialect, error: Overloaded, identity: str, always: RawHeaders) -> bytes:
    body = dialect.error_body(error, dialect.STATUS[type(error)], identity)
    headers = {
        "content-length": str(len(body)),
        "content-type": "application/json",
        **retry_headers(error),
        "x-correlation-id": identity,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"".join((STATUS_LINE, *(b"%b: %b\r\n" % header for header in always), lines.encode(), b"\r\n", body))
