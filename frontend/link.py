"""One connection to one engine, under one identity: sockets on the event loop, and the slab once welcomed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zmq
from zmq.utils.monitor import parse_monitor_message

from ipc import messages
from ipc.liveness import FrontendIdentity
from ipc.messages import Welcome
from ipc.slab import FREE, Epoch, Slab
from ipc.sockets import Context, Socket, connect_frontend

log = logging.getLogger(__name__)

# Bound on one turn's reading, so that replies cannot keep the loop from its other work.
RECEIVE_BUDGET = 64
# ZeroMQ's descriptor is edge-triggered, so a missed edge would be silence for ever: look anyway, this often.
TICK_SECONDS = 0.05
# How long an engine may take to answer HELLO before it is said again: it may be in a run, or stopped.
HELLO_SECONDS = 1.0


class Link:
    """A DEALER and its monitor as readers of the running loop.

    `on_message` gets each frame. `on_lost` is called once, when a connection that had shaken hands is gone; the owner
    then closes the link. `on_tick` is called every 50 ms. No zmq.asyncio: it costs ten times a plain socket's 10 µs.
    Where the process has no descriptor left it is tried again until it has.
    """

    def __init__(
        self,
        context: Context,
        run_dir: Path,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._run_dir = run_dir
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_tick = on_tick
        self._is_up = False
        self._hello_at = 0.0
        self._is_closed = False
        self.epoch = Epoch(0)
        self._slab: Slab | None = None
        self._identity: FrontendIdentity | None = None
        self._sockets: tuple[Socket, Socket] | None = None
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        self._open()

    @property
    def slab(self) -> Slab:
        """The engine's slab; only after `attach`."""
        assert self._slab is not None, "this is a bug: rows were named before the slab was attached"
        return self._slab

    def died_with(self) -> set[int]:
        """Sequences of the texts, any front end's, that the engine computes now, or did when it died."""
        if self._slab is None:
            return set()
        return set(self._slab.running[self._slab.running != FREE].tolist())

    def leases(self) -> int:
        """Rows that are lent to this connection's identity."""
        if self._slab is None or self._identity is None:
            return 0
        return int(np.count_nonzero(self._slab.leases == self._identity.id))

    def attach(self, engine: Welcome, epoch: Epoch) -> None:
        """Map the slab that a WELCOME announces. Raises what `Slab.attach` raises."""
        self._slab = Slab.attach(self._run_dir, epoch, engine.rows, engine.dim)
        self.epoch = epoch
        assert self._identity is not None, "this is a bug: an engine has welcomed nobody"
        try:
            self._identity.announce()
        except OSError as error:
            log.error("not seen by tools.restart: free memory in the run directory", extra={"reason": str(error)})

    def send(self, frame: bytes) -> bool:
        """False where the connection is gone or takes no more for now."""
        if self._sockets is None:
            return False
        try:
            self._sockets[0].send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> None:
        """Hand on what has arrived. To be called after every send as well, for a send may consume the edge."""
        for _ in range(RECEIVE_BUDGET):
            if self._sockets is None:
                return
            try:
                frame = self._sockets[0].recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(frame)
        self._loop.call_soon(self.receive)

    def close(self) -> None:
        """Give up the sockets and the identity; the slab stays mapped as long as someone reads it."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        if self._sockets is not None:
            dealer, monitor = self._sockets
            self._sockets = None
            self._loop.remove_reader(dealer.fileno())
            self._loop.remove_reader(monitor.fileno())
            dealer.disable_monitor()
            monitor.close(0)
            dealer.close(0)
        if self._identity is not None:
            self._identity.release()

    def _open(self) -> None:
        try:
            self._identity = self._identity or FrontendIdentity(self._run_dir)
            dealer, monitor = self._sockets = connect_frontend(self._context, self._run_dir, self._identity.id)
        except (OSError, zmq.ZMQError) as error:
            log.error("no way to the engine, trying again", extra={"reason": str(error)})
            return
        self._loop.add_reader(dealer.fileno(), self.receive)
        self._loop.add_reader(monitor.fileno(), self._watch)
        # A pipe that was never read is not yet asleep, so what comes through it first wakes no descriptor.
        self._loop.call_soon(self._watch)

    def _watch(self) -> None:
        while self._sockets is not None:
            try:
                event = parse_monitor_message(self._sockets[1].recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._is_up = True
                self._say_hello()
                self.receive()
            elif self._is_up:
                # Replies that came before the end are as good as any.
                self.receive()
                self._on_lost()

    def _say_hello(self) -> None:
        self._hello_at = self._loop.time()
        self.send(messages.hello())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        if self._sockets is None:
            self._open()
        # An engine that could not look at our lock, or could not send, has said nothing.
        elif self._is_up and self._slab is None and self._loop.time() - self._hello_at > HELLO_SECONDS:
            self._say_hello()
        self._watch()
        self.receive()
        if not self._is_closed:
            self._on_tick()
