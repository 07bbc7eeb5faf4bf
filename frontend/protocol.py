"""HTTP/1.1 as uvicorn speaks it, with a bound on a request's head, and a stop that loses no request."""

from __future__ import annotations

import asyncio
import math
import select
import typing
from typing import Any, TypeAlias, cast

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 64 << 10
# A client that keeps a connection by sending its request bit by bit, or nothing, is not waited for longer. The body's
# time is for 8 MiB over a slow line.
FIRST_SECONDS, HEAD_SECONDS, BODY_SECONDS = 75.0, 20.0, 120.0
PATROL_SECONDS = 5.0
NEVER = math.inf
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

CONTINUE = b"HTTP/1.1 100 "
# The ASGI extension that holds a future, done once the client has hung up. A second task that waits in `receive` for
# that would cost each request far more.
CONNECTION_LOST = "embedlane.connection_lost"
# Where the lifespan's state has what refuses requests by their head, if anything does.
TURNSTILE = "embedlane.turnstile"
# The ASGI extension that holds the connection itself, as a `Wire`.
WIRE = "embedlane.wire"


class Gatekeeper(typing.Protocol):
    """What a connection asks before it makes a request of a head."""

    def refusal(self, url: bytes, headers: RawHeaders, always: RawHeaders, whole: bytes) -> bytes | None: ...  # noqa: D102

    def again(self, whole: bytes, always: RawHeaders) -> bytes | None: ...  # noqa: D102


class Refused:
    """Stands for a request that was answered by its head alone, where uvicorn looks for the last one's state."""

    response_started = response_complete = keep_alive = True
    disconnected = False

    @property
    def message_event(self) -> Refused:
        """Nobody waits for more of its body."""
        return self

    def set(self) -> None:
        """Wake nobody."""


REFUSED = cast(RequestResponseCycle, Refused())


class Room(typing.Protocol):
    """What a connection asks of its server."""

    is_leaving: bool

    def has_room(self) -> bool: ...  # noqa: D102 - see Protocol


class Wire(typing.Protocol):
    """What a response may ask of its connection."""

    def unsent(self) -> int: ...  # noqa: D102 - see Protocol

    async def drained(self) -> None: ...  # noqa: D102

    def abort(self) -> None: ...  # noqa: D102


class OneWrite:
    """A response's transport: its head leaves together with the first piece of its body.

    uvicorn writes them one after the other, which costs two system calls; uvloop sends both with one, without a copy.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._has_begun = False

    def write(self, data: bytes) -> None:
        """Keep the head until what follows it."""
        if not self._has_begun and not data.startswith(CONTINUE):
            self._has_begun, self._head = True, data
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close once all is sent, a head without a body too."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """Ends a connection whose request line and headers exceed 64 KiB by more than one read, or that takes too long.

    httptools keeps a head however long it is, so that one client without a key could take all memory, and uvicorn
    waits for the rest of a request for ever. And when it stops it closes idle connections at once, even one whose
    request is about to be read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = True
        self._head_bytes = 0
        # What was read together with the beginning of the request that is read now.
        self._whole = b""
        self._is_leaving = False
        self._server = cast(Room, self.server_state)
        # The request whose answer was made the connection's last, against its client's wish.
        self._last: RequestResponseCycle | None = None
        # When what the client owes now is too late, on the loop's clock.
        self._late_at = NEVER
        self._gatekeeper: Gatekeeper | None = self.app_state.get(TURNSTILE)
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._extensions: dict[str, dict[Any, Any]] = {
            CONNECTION_LOST: {"future": self._lost},
            WIRE: {"connection": self},
        }

    def unsent(self) -> int:
        """Bytes that were written and that the socket has not taken yet."""
        return self.transport.get_write_buffer_size()

    async def drained(self) -> None:
        """Return once nothing is unsent, or the connection has ended."""
        # The transport then tells as soon as anything is left, and again once nothing is.
        self._limit_unsent(0)
        try:
            await self.flow.drain()
        finally:
            self._limit_unsent(HIGH_WATER_LIMIT)

    def _limit_unsent(self, most: int) -> None:
        # A transport that has ended raises; one that is closing still has bytes to send.
        if not self._lost.done():
            self.transport.set_write_buffer_limits(most)

    def abort(self) -> None:
        """End the connection, and forget what was written and not sent."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the requests of this connection that nobody waits for them."""
        super().connection_lost(exc)
        # After a reset uvicorn lets its timer run, which keeps all there is of the connection for 75 s.
        self._unset_keepalive_if_required()
        self._patrol.cancel()
        self._lost.set_result(None)
        # What refers back to the connection would have all of it, 32 objects, wait for the collector, which comes
        # seldom: in an hour's soak that was 2.5 MiB, of scrapes and health checks alone.
        self.pipeline.clear()
        self._extensions, self._last = {}, None
        self.cycle = self.scope = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close one that is too many; one that is accepted when the server stops is its client's last here."""
        super().connection_made(transport)
        # A client that connects is to send something.
        self._late_at = self.loop.time() + FIRST_SECONDS
        self._patrol = self.loop.call_later(PATROL_SECONDS, self._look)
        if not self._server.has_room():
            transport.close()
        elif self._server.is_leaving:
            self.shutdown()

    def shutdown(self) -> None:
        """Let a request that is on its way have its answer, the connection's last; what is idle is closed later."""
        self._is_leaving = True
        if not self._is_answered():
            self._make_last()

    def close_if_idle(self) -> None:
        """End a connection that brings no request and waits for no answer."""
        if self._is_answered() and not self._head_bytes and not self._has_unread():
            self.transport.close()

    def _is_answered(self) -> bool:
        # There is no cycle before the first request, whatever uvicorn's annotation says.
        return getattr(self.cycle, "response_complete", True)

    def _has_unread(self) -> bool:
        """Whether the kernel has bytes that the loop has not come to: closing now would lose a request."""
        poller = select.poll()
        poller.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def _make_last(self) -> None:
        """Have the answer to the newest request say that it is the last, and that of no other."""
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive = True
        self._last = self.cycle if self.cycle.keep_alive else None
        self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        """Count what comes while a head is incomplete; 0 is between two requests."""
        if self._is_in_head:
            if not self._head_bytes:
                if self.cycle is REFUSED and self._is_refused_again(data):
                    return
                self._late_at = self.loop.time() + HEAD_SECONDS
                self._whole = data
            self._head_bytes += len(data)
        super().data_received(data)
        self._whole = b""
        if self._is_in_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(REFUSAL)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request's scope says where to learn of the connection's end."""
        super().on_message_begin()
        self.scope["extensions"] = self._extensions
        if not self._head_bytes:
            # It began in the read that ended the one before, and what is read next may be the rest of its head.
            self._head_bytes, self._late_at = 1, self.loop.time() + HEAD_SECONDS

    def on_headers_complete(self) -> None:
        """The head was short enough."""
        self._is_in_head = False
        self._late_at = self.loop.time() + BODY_SECONDS
        if (refusal := self._refusal()) is not None:
            self.cycle = REFUSED
            self.transport.write(refusal)
            return
        super().on_headers_complete()
        # A response to HEAD has no body to take its head along.
        if self.scope["method"] != "HEAD":
            self.cycle.transport = cast(asyncio.Transport, OneWrite(self.transport))
        if self._is_leaving:
            self._make_last()

    def _refusal(self) -> bytes | None:
        """The answer to a request that need not be read. One that is special in any way goes the way of all others."""
        if self._gatekeeper is None or self.parser.get_method() != b"POST" or not self._is_plain():
            return None
        return self._gatekeeper.refusal(self.url, self.headers, self.server_state.default_headers, self._whole)

    def _is_refused_again(self, whole: bytes) -> bool:
        """Whether this was all of a request whose head had been refused before, and is answered by that alone."""
        if self._gatekeeper is None or not self._is_ready():
            return False
        refusal = self._gatekeeper.again(whole, self.server_state.default_headers)
        if refusal is not None:
            self.transport.write(refusal)
            self.on_response_complete()
        return refusal is not None

    def _is_plain(self) -> bool:
        # uvicorn ends a connection of HTTP/1.0 with its first answer.
        goes_on = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        return goes_on and self._is_ready() and not self.expect_100_continue

    def _is_ready(self) -> bool:
        # Answers that pile up are the flow control's business, which only the long way has.
        is_free = self._is_answered() and not self._is_leaving
        return is_free and not self.transport.is_closing() and not self.unsent()

    def on_message_complete(self) -> None:
        """What comes next is a head again."""
        super().on_message_complete()
        if self.cycle is REFUSED:
            # Only now it is over: the rest of its body would have ended the wait for the next request.
            self.on_response_complete()
        self._is_in_head = True
        self._head_bytes = 0
        self._whole = b""
        self._late_at = NEVER

    def _look(self) -> None:
        """End the connection of a client that is too late, once an earlier request of it has its answer."""
        cycle = self.cycle
        is_answering = self._is_in_head and not getattr(cycle, "response_complete", True)
        if self.loop.time() < self._late_at or is_answering or self.transport.is_closing():
            self._patrol = self.loop.call_later(PATROL_SECONDS, self._look)
            return
        if self._head_bytes and (self._is_in_head or not cycle.response_started):
            self.transport.write(LATE)
        self.transport.close()
