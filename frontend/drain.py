"""uvicorn's server with an end that loses no request, whichever way it is asked for.

SIGTERM   what is under way is answered, and connections that are idle are let go after half a second
SIGUSR1   the same, but each connection may bring one more request for ten seconds: a rolling restart

Either way nothing is accepted any more: connections wait in the listening socket for the other front ends, and each
answer is the last of its connection, and says so. A client that has not asked for so long must look before it asks
again, as every client must, for a connection may end at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from uvicorn.server import ServerState

from frontend.protocol import Protocol

log = logging.getLogger(__name__)

LINGER_SECONDS = 0.5
PATIENT_SECONDS = 10.0
# For the last answer's way to its client.
ANSWER_SECONDS = 5.0
# After SIGTERM; supervisord kills after 20.
STOP_GRACE_SECONDS = 15
# What is not a client's connection: sockets of ZeroMQ and Redis, the listening socket, files.
OTHER_DESCRIPTORS = 64
FULL = "no descriptors left, so new connections are closed: raise the limit on open files"


class Connections(ServerState):
    """What a server's connections share: how many there may be, and since when they are not wanted any more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.is_leaving = False
        self._most = most
        self._is_full = False

    def has_room(self) -> bool:
        """Whether one more connection may stay, which is there already. Says once when there is no room."""
        is_full = len(self.connections) > self._most
        if is_full and not self._is_full:
            log.error(FULL, extra={"connections": self._most})
        # The next time it is full is news only once there was some room.
        self._is_full = is_full or (self._is_full and len(self.connections) > self._most * 0.9)
        return not is_full


class Server(uvicorn.Server):
    """Ends as the module says. A request is waited for `request_seconds` at most in a rolling restart."""

    def __init__(self, config: uvicorn.Config, request_seconds: float) -> None:
        super().__init__(config)
        self.server_state = self._state = Connections(most_connections())
        self._request_seconds = request_seconds
        self._leave_at = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, and SIGUSR1."""
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = signal.signal(signal.SIGUSR1, self.restart)
            try:
                yield
            finally:
                signal.signal(signal.SIGUSR1, before)

    def restart(self, *_: int | FrameType | None) -> None:
        """End patiently; a signal's handler."""
        self._leave(PATIENT_SECONDS, PATIENT_SECONDS + self._request_seconds + ANSWER_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End soon, also where a patient end has begun; a signal's handler."""
        self._leave(LINGER_SECONDS, STOP_GRACE_SECONDS)
        super().handle_exit(sig, frame)

    def _leave(self, linger: float, grace: float) -> None:
        # Plain assignments: a signal's handler must not touch the loop.
        self._leave_at = time.monotonic() + linger
        self.config.timeout_graceful_shutdown = int(grace)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, with one that closes what stays idle for too long."""
        # Before anything else: a connection that is accepted in this very turn is told, too.
        self._state.is_leaving = True
        closing = asyncio.ensure_future(self._close_idle())
        await super().shutdown(sockets)
        closing.cancel()

    async def _close_idle(self) -> None:
        while True:
            if time.monotonic() >= self._leave_at:
                for connection in list(self._state.connections):
                    if isinstance(connection, Protocol):
                        connection.close_if_idle()
            await asyncio.sleep(0.05)


def most_connections() -> int:
    """How many clients' connections the process's limit on open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - OTHER_DESCRIPTORS)
