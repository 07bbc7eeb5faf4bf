"""Just enough HTTP/2 to load a gRPC server with unary calls: what `perf.http` is for HTTP/1.1, with as little work.

One call at a time on a connection, headers from HPACK's tables after the first, no flow control of our own (a call is
far smaller than the server's window, which it opens anew all the time). RFC 9113, RFC 7541.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Final, cast

from frontend.rpc.protos.embedlane_pb2 import EmbedRequest
from perf.http import Connection, Target

PATH: Final = "/embedlane.v1.Embeddings/Embed"
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS: Final = 4
HEAD_BYTES: Final = 9
# :method POST and :scheme http in HPACK's static table, and the first number of the dynamic one.
POST_HTTP: Final = b"\x83\x86"
FIRST_DYNAMIC: Final = 62
# SETTINGS_INITIAL_WINDOW_SIZE, and what the connection's window is opened by, again whenever half of it is used.
WINDOW: Final = 1 << 30
OPEN_STREAMS: Final = struct.pack(">HI", 4, WINDOW)
ERROR: Final = 500


def build_call(texts: Sequence[str]) -> bytes:
    """A call's message with the five bytes that gRPC puts before it."""
    message = EmbedRequest(texts=texts).SerializeToString()
    return struct.pack(">BI", 0, len(message)) + message


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literals(headers: Sequence[tuple[str, str]]) -> bytes:
    """Headers in full, to be remembered."""
    block = POST_HTTP
    for name, value in headers:
        assert len(name) < 127 and len(value) < 127, "lengths are one byte"
        block += b"\x40" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


def remembered(count: int) -> bytes:
    """So many headers that were remembered, the first one first: the table begins with the last."""
    return POST_HTTP + bytes(0x80 | FIRST_DYNAMIC + count - 1 - n for n in range(count))


class GrpcConnection(Connection):
    """One connection with at most one unary call under way; `body` is the answer's message.

    An answer without a message has status 500: gRPC's own status is in trailers, which are not read.
    """

    __slots__ = ("_again", "_block", "_buffer", "_received", "_stream", "_unacknowledged")

    def __init__(self, on_answer: Callable[[Connection], None]) -> None:
        super().__init__(on_answer)
        self._buffer = bytearray()
        self._received: list[bytes] = []
        self._stream = -1
        self._again = b""
        self._unacknowledged = 0
        self._block = b""

    async def open(self, target: Target) -> None:
        """Connect, for the first time or again. Raises OSError."""
        headers = (
            (":path", PATH),
            (":authority", f"{target.host}:{target.port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("authorization", f"Bearer {target.key}"),
        )
        self._buffer.clear()
        self._stream = -1
        self._unacknowledged = 0
        self._block, self._again = literals(headers), remembered(len(headers))
        await super().open(target)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio."""
        super().connection_made(transport)
        opened = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        cast(asyncio.Transport, transport).write(PREFACE + frame(SETTINGS, 0, 0, OPEN_STREAMS) + opened)

    def send(self, request: bytes, number: int, from_ns: int = 0) -> None:
        """Begin a call with a message of `build_call`."""
        self._stream += 2
        self._received.clear()
        head = frame(HEADERS, END_HEADERS, self._stream, self._block)
        self._block = self._again
        super().send(head + frame(DATA, END_STREAM, self._stream, request), number, from_ns)

    def data_received(self, data: bytes) -> None:
        """asyncio: every frame that is whole."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= HEAD_BYTES:
            end = at + HEAD_BYTES + int.from_bytes(buffer[at : at + 3])
            if end > len(buffer):
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9])
            self._on_frame(buffer[at + 3], buffer[at + 4], stream, bytes(buffer[at + HEAD_BYTES : end]))
            at = end
        del buffer[:at]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert self._to is not None
        if kind == DATA:
            self._received.append(payload)
            self._open_window(len(payload))
        elif kind in {SETTINGS, PING} and not flags & ACK:
            self._to.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == GOAWAY:
            self._to.abort()
        elif stream == self._stream and self.is_busy and (kind == RESET or (kind == HEADERS and flags & END_STREAM)):
            message = b"".join(self._received)
            self.body = message[5:]
            is_whole = len(message) > 5 and int.from_bytes(message[1:5]) == len(self.body)
            self._answer(200 if is_whole else ERROR)

    def _open_window(self, used: int) -> None:
        assert self._to is not None
        self._unacknowledged += used
        if self._unacknowledged > WINDOW // 2:
            self._to.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged)))
            self._unacknowledged = 0
