"""The way to the engine: submit token ids, wait for rows, survive the engine's deaths.

One connection, one identity: when a connection is lost, its identity is given up (the engine takes back whatever rows
it had lent to it) and a new one is made. So no reply, row or lease of a lost connection can be mistaken for one of the
next, and an engine that restarts needs no memory of its predecessor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import zmq

from frontend import outcomes
from frontend.breaker import PROBE_SECONDS, Breaker, State
from frontend.flight import Call, Flight, Holding, Lent, Take
from frontend.gate import Gate
from frontend.link import Link
from frontend.under_way import UnderWay
from ipc import messages
from ipc.backlog import Backlog
from ipc.errors import MalformedFrame, StartError
from ipc.messages import Header, Ids, Status, Type, Welcome
from ipc.priority import Priority
from ipc.slab import Row

log = logging.getLogger(__name__)

# A text of every vocabulary there is.
PROBE = np.zeros(1, np.int32)


class EngineClient:
    """The engine as one event loop sees it.

    `digest` is the bundle that texts are tokenized for. Where an engine that joins has another, `adopt` is to
    change that, and raises StartError where it cannot; the texts under way then fail with ModelChanged.
    """

    def __init__(
        self,
        run_dir: Path,
        digest: str,
        adopt: Callable[[Welcome], Awaitable[None]],
        *,
        most_flights: int,
        most_held: int,
        most_queue_s: float,
        grace_s: float,
        stall_s: float,
    ) -> None:
        self._run_dir = run_dir
        self._digest = digest
        self._adopt = adopt
        self._adoption: asyncio.Task[None] | None = None
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._holding = Holding(most_held)
        self._under_way = UnderWay(self._joined_link, most_flights)
        self._flights = self._under_way.flights
        self._outbox = self._under_way.outbox
        self._grace: asyncio.TimerHandle | None = None
        self._probe: Flight | None = None
        self.gate = Gate(most_queue_s, self._backlog)
        self.breaker = Breaker(stall_s, self._is_owed, self._ask)
        self.engine: Welcome | None = None
        self.last_vector_ns = 0
        # Gets key and row of each text that was asked for by key; the row is lent to it for that call only.
        self.keep: Callable[[bytes, Row], None] | None = None
        self._link = self._connect()

    def close(self) -> None:
        """Let go of the engine; texts still in flight fail."""
        # What the calls do on their way out must not reach the closed socket.
        self._leave()
        reason = "This front end is stopping: try again."
        self.breaker.stop(reason)
        self._under_way.fail_all(partial(outcomes.unavailable, reason))
        if self._grace:
            self._grace.cancel()
        self._link.close()
        self._context.destroy(linger=0)

    async def embed(
        self,
        texts: Sequence[Ids],
        take: Take | None,
        *,
        deadline_ns: int,
        priority: Priority,
        flow: int = 0,
        lost: asyncio.Future[None] | None = None,
        keys: Sequence[bytes] = (),
    ) -> Call:
        """Send texts (each int32 [length]) and wait until every vector went through `take`.

        `take` is called in the event loop with the row in the slab, which is lent to it for that call only. Without it
        the call holds the rows themselves where there is room for that, and the caller releases it.
        With `keys`, one for each text, a text whose key is under way already is not sent: both wait for one vector.
        Raises a RequestError, or CancelledError once `lost` is done: nobody waits any more, and the texts are taken
        back. So they are where the caller is cancelled.
        """
        self.breaker.check()
        if not self._flights.have_room((priority, flow), len(texts)):
            raise outcomes.too_many()
        self.gate.admit(priority, flow, deadline_ns, sum(map(len, texts)))
        call = self._new_call(take, len(texts), deadline_ns, flow)
        if not self._flights:
            self.breaker.hear()
        if keys:
            flights = [self._under_way.board(call, n, ids, priority, keys[n]) for n, ids in enumerate(texts)]
        else:
            flights = [self._under_way.launch(call, n, ids, priority, None) for n, ids in enumerate(texts)]
        timer = self._loop.call_later((deadline_ns - time.monotonic_ns()) / 1e9, self._expire, call)
        if lost is not None:
            lost.add_done_callback(call.abandon)
        try:
            if texts:
                await call.done
            return call
        except BaseException:
            call.release()
            raise
        finally:
            timer.cancel()
            if lost is not None:
                lost.remove_done_callback(call.abandon)
            if call.missing:
                self._under_way.take_back(call, flights)

    def load(self) -> tuple[int, int]:
        """How many texts are under way, and how many rows of the slab are lent to this front end."""
        return len(self._flights), self._link.leases()

    @property
    def shared(self) -> int:
        """Texts that waited for a vector which was under way already."""
        return self._under_way.shared

    def is_under_way(self, flow: int, key: bytes) -> bool:
        """Whether a text asked for by this key would share a flight."""
        return self._flights.of_key(flow, key) is not None

    def _new_call(self, take: Take | None, texts: int, deadline_ns: int, flow: int = 0) -> Call:
        return Call(take, [b""] * texts, texts, self._loop.create_future(), deadline_ns, self._holding, flow)

    # receive

    def _on_message(self, frame: bytes) -> None:
        try:
            header = messages.parse_header(frame)
            # Before its WELCOME a link has epoch 0, which no engine has.
            is_current = header.epoch == self._link.epoch != 0
            if header.type is Type.WELCOME and not is_current:
                self._on_welcome(messages.parse_welcome(frame), header)
            elif header.type is Type.REPLY and is_current:
                self._on_reply(frame, header)
            elif header.type is Type.BYE and is_current:
                self._on_bye()
            else:
                raise MalformedFrame(f"{header.type.name} is nothing a front end takes now")
        except MalformedFrame as error:
            log.error("frame from the engine dropped", extra={"reason": str(error)})

    def _on_welcome(self, engine: Welcome, header: Header) -> None:
        try:
            self._link.attach(engine, header.epoch)
        except (OSError, ValueError) as error:
            # That engine died meanwhile and its files are gone; its connection is about to break.
            log.warning("slab not attached", extra={"reason": str(error)})
            return
        if self._grace:
            self._grace.cancel()
        self._leave()
        if engine.digest == self._digest:
            self._join(engine)
        else:
            self._adoption = self._loop.create_task(self._follow(engine))

    async def _follow(self, engine: Welcome) -> None:
        """Change to the engine's model, and join. Whatever parts from that engine meanwhile cancels this."""
        try:
            await self._adopt(engine)
        except StartError as error:
            self._refuse(f"The engine serves {engine.model}, which this front end cannot load: {error}")
            return
        log.info("model changed", extra={"model": engine.model, "texts_in_flight": len(self._flights)})
        self._digest = engine.digest
        self._under_way.fail_all(outcomes.model_changed)
        self._join(engine)

    def _join(self, engine: Welcome) -> None:
        log.info("engine joined", extra={"epoch": f"{self._link.epoch:016x}", "model": engine.model})
        self.engine = engine
        self.breaker.close()
        self._outbox.submit_all()

    def _leave(self) -> None:
        """Nothing is sent to an engine from now on, until one joins."""
        self.engine = None
        if self._adoption is not None:
            self._adoption.cancel()
            self._adoption = None

    def _on_reply(self, frame: bytes, header: Header) -> None:
        slab = self._link.slab
        self.breaker.hear()
        for sequence, row, status, wait_ns in messages.parse_reply(frame, header):
            flight = self._flights.remove(sequence)
            if status == Status.OK and row < len(slab.leases):
                self.last_vector_ns = time.monotonic_ns()
                self._on_vector(flight, Lent(slab.rows, slab.leases, row), wait_ns, header.extra)
            elif flight is not None:
                self._on_failed(flight, status)
            self.breaker.note(status == Status.FAILED)

    def _on_vector(self, flight: Flight | None, lent: Lent, wait_ns: int, compute_ns: int) -> None:
        if flight is None:
            lent.release()
            return
        if flight.key is not None and self.keep is not None:
            self.keep(flight.key, lent.rows[lent.number])
        flight.land(lent, wait_ns, compute_ns)

    def _on_failed(self, flight: Flight, status: int) -> None:
        if (later := flight.end(status)) is not None:
            self._under_way.submit_anew(flight, later, flight.submission.priority)

    def _backlog(self) -> Backlog | None:
        # That of an engine that hangs stays as it is: the breaker says what is to be said.
        is_well = self.engine is not None and self.breaker.state is State.CLOSED
        return self._link.slab.backlog if is_well else None

    def _joined_link(self) -> Link | None:
        return None if self.engine is None else self._link

    # the breaker's questions

    def _is_owed(self) -> bool:
        return self.engine is not None and bool(self._flights)

    def _ask(self) -> asyncio.Future[None] | None:
        """Send a text of our own, in place of the last one."""
        if self.engine is None:
            return None
        if self._probe is not None:
            self._under_way.take_back(next(iter(self._probe.askers)), [self._probe])
        call = self._new_call(bytes, 1, time.monotonic_ns() + int(PROBE_SECONDS * 1e9))
        self._probe = self._under_way.launch(call, 0, PROBE, Priority.INTERACTIVE, None)
        return call.done

    # the engine's deaths

    def _connect(self) -> Link:
        self._start_grace()
        return Link(self._context, self._run_dir, self._on_message, self._on_lost, self._outbox.schedule)

    def _on_lost(self) -> None:
        was_joined = self.engine is not None
        self._leave()
        died_with = self._link.died_with()
        self._link.close()
        self._under_way.survive(died_with)
        if was_joined:
            log.warning("engine lost", extra={"texts_in_flight": len(self._flights), "running": len(died_with)})
        self._link = self._connect()

    def _on_bye(self) -> None:
        """The engine answers what it has and ends; later texts wait for the next one."""
        log.info("engine stops", extra={"texts_in_flight": len(self._flights)})
        self._outbox.flush()
        self._link.send(messages.bye(self._link.epoch))
        self._leave()
        self._start_grace()

    def _start_grace(self) -> None:
        if self._grace:
            self._grace.cancel()
        self._grace = self._loop.call_later(self._grace_s, self._refuse, "The engine is not running: try again later.")

    def _refuse(self, reason: str) -> None:
        """Answer every request with 503 from now on, until an engine joins."""
        self.engine = None
        self.breaker.open(reason)
        self._under_way.fail_all(partial(outcomes.unavailable, reason))

    def _expire(self, call: Call) -> None:
        call.fail(outcomes.late(is_engine_away=self.engine is None))
