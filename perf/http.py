"""Just enough HTTP/1.1 to load a server: requests built beforehand, answers checked for status and length.

Raw protocols, no client library: the generator shares the cores with the server it measures.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

import orjson

# An answer that never came: the connection broke, or its head could not be read.
BROKEN: Final = 0
_HEAD_END: Final = b"\r\n\r\n"
_CLOSE: Final = b"\r\nconnection: close"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Target(NamedTuple):
    """Where requests go. `field` is what the path calls its texts: "input" for OpenAI's, "inputs" for TEI's."""

    host: str
    port: int
    key: str
    path: str = "/v1/embeddings"
    field: str = "input"


def build_request(target: Target, texts: Sequence[str], **fields: object) -> bytes:
    """A keep-alive POST with these texts (a bare string where there is one); `fields` go into the body as well."""
    body = orjson.dumps({target.field: texts[0] if len(texts) == 1 else texts, **fields})
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAuthorization: Bearer {target.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way.

    `on_answer` gets the connection and, on it: `status` (BROKEN where there was none), `head` and `body` as they came
    at `answered_ns`, `number` and `from_ns` as they were given to `send`. Whoever gets one that `is_over`
    opens it anew, with `open`.
    """

    __slots__ = (
        "_chunks",
        "_missing",
        "_to",
        "answered_ns",
        "body",
        "from_ns",
        "head",
        "is_busy",
        "local_port",
        "number",
        "on_answer",
        "status",
    )

    def __init__(self, on_answer: Callable[[Connection], None]) -> None:
        self.on_answer = on_answer
        self.is_busy = False
        self.status = BROKEN
        self.head = b""
        self.body = b""
        self.number = 0
        self.from_ns = 0
        self.answered_ns = 0
        self._chunks: list[bytes] = []
        self._missing = -1
        self._to: asyncio.Transport | None = None
        # The client's port, by which the server's process can be found.
        self.local_port = 0

    async def open(self, target: Target) -> None:
        """Connect, for the first time or again. Raises OSError."""
        self._chunks.clear()
        self._missing = -1
        if self._to is not None:
            # Before its end is told, which would be taken for the next one's.
            self._to.abort()
        await asyncio.get_running_loop().create_connection(lambda: self, target.host, target.port)

    def send(self, request: bytes, number: int, from_ns: int = 0) -> None:
        """Write a request; its latency counts from `from_ns` (monotonic), else from now."""
        assert self._to is not None and not self.is_busy, "this is a bug: one request at a time"
        self.is_busy = True
        self.number = number
        self.from_ns = from_ns or time.monotonic_ns()
        self._to.write(request)

    @property
    def is_over(self) -> bool:
        """Whether there was no answer, or it said that it is the connection's last."""
        return self.status == BROKEN or _CLOSE in self.head

    def close(self) -> None:
        """Hang up; no answer is reported any more."""
        self.is_busy = False
        if self._to is not None:
            self._to.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        # uvloop's transports are no subclasses of asyncio's.
        self._to = cast(asyncio.Transport, transport)
        self.local_port = int(transport.get_extra_info("sockname")[1])

    def data_received(self, data: bytes) -> None:
        """asyncio: the common case is one chunk, or a head with part of its body and then the rest."""
        if self._missing < 0:
            data = b"".join((*self._chunks, data))
            self._chunks.clear()
            end = data.find(_HEAD_END)
            if end < 0:
                self._chunks.append(data)
                return
            if not self._read_head(data[:end]):
                return
            data = data[end + len(_HEAD_END) :]
        self._missing -= len(data)
        self._chunks.append(data)
        if self._missing == 0:
            self._finish()
        elif self._missing < 0:
            self._break()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio."""
        if self.is_busy:
            self._answer(BROKEN)

    def _read_head(self, head: bytes) -> bool:
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 ") or length is None or not self.is_busy:
            self._break()
            return False
        self.status, self.head, self._missing = int(head[9:12]), head, int(length[1])
        return True

    def _finish(self) -> None:
        self.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._missing = -1
        self._answer(self.status)

    def _break(self) -> None:
        """Bytes that are no answer to what was sent: nothing on this connection can be trusted any more."""
        assert self._to is not None
        self._to.abort()

    def _answer(self, status: int) -> None:
        self.status = status
        self.answered_ns = time.monotonic_ns()
        self.is_busy = False
        self.on_answer(self)
