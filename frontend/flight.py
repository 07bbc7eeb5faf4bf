"""What is under way to the engine: a call is one request's texts, a flight is one text and all who asked for it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ipc.messages import Ids, Priority, Submission
from ipc.slab import FREE, Leases, Row, Rows

Take = Callable[[Row], bytes]


class Lent(NamedTuple):
    """A row of a slab that is ours until we release it: rows[number] is the vector, leases[number] says whose it is."""

    rows: Rows
    leases: Leases
    number: int

    def release(self) -> None:
        """Give the row back to the engine, or to nobody where that has died."""
        self.leases[self.number] = FREE


@dataclass(slots=True, eq=False)
class Call:
    """One request's texts on their way: parts[i] is what `take` made of the vector of texts[i]; times in ns.

    Without `take`, held[i] is the vector itself, and whoever gets the call releases it; or parts[i] is a copy, where
    another call holds it or it came from a cache. `hits` of the texts came from a cache.
    """

    take: Take | None
    parts: list[bytes]
    missing: int
    done: asyncio.Future[None]
    deadline_ns: int
    wait_ns: int = 0
    compute_ns: int = 0
    held: dict[int, Lent] = field(default_factory=dict)
    hits: int = 0

    def land(self, index: int, lent: Lent, wait_ns: int, compute_ns: int, is_held: bool) -> bool:
        """Encode one text's vector from the slab itself, or hold it (True), or copy it if that `is_held` already.

        A `take` that raises ends the call with that.
        """
        holds = False
        if self.take is not None:
            try:
                self.parts[index] = self.take(lent.rows[lent.number])
            except Exception as error:
                self.fail(error)
                return False
        elif is_held:
            self.parts[index] = lent.rows[lent.number].tobytes()
        else:
            self.held[index] = lent
            holds = True
        self.wait_ns = max(self.wait_ns, wait_ns)
        self.compute_ns = max(self.compute_ns, compute_ns)
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)
        return holds

    def fail(self, error: Exception) -> None:
        """End the call; the first error wins."""
        if not self.done.done():
            self.done.set_exception(error)

    def abandon(self, _: object) -> None:
        """Wake the waiting caller with CancelledError; a callback for the future that says nobody waits for it."""
        self.done.cancel()

    def release(self) -> None:
        """Give back every row that is still held."""
        for lent in self.held.values():
            lent.release()
        self.held.clear()


@dataclass(slots=True, eq=False)
class Flight:
    """One text between submit and reply, and who asked for it: calls, each with the text's places in it.

    Several may share a flight that has a `key`; whoever asked first is no more to it than the others.
    """

    submission: Submission
    askers: dict[Call, list[int]]
    key: bytes | None = None
    deaths: int = 0
    is_sent: bool = False

    def suspect(self) -> None:
        """Note that an engine died while it ran this text; the next one is to run it alone."""
        self.deaths += 1
        self.submission = self.submission._replace(priority=Priority.SUSPECT)

    def land(self, lent: Lent, wait_ns: int, compute_ns: int) -> None:
        """Give the vector to all who asked for it, and the row back unless one of them holds it."""
        is_held = False
        for call, places in self.askers.items():
            for index in places:
                if call.land(index, lent, wait_ns, compute_ns, is_held):
                    is_held = True
        if not is_held:
            lent.release()

    def fail(self, make: Callable[[], Exception]) -> None:
        """End all calls, each with an error of its own: one that is raised twice keeps growing its traceback."""
        for call in self.askers:
            call.fail(make())

    def expire(self, make: Callable[[], Exception]) -> int | None:
        """End the calls whose deadline has passed by the one the engine was told; gives the latest of the others."""
        for call in self.askers:
            if call.deadline_ns <= self.submission.deadline:
                call.fail(make())
        latest = max(call.deadline_ns for call in self.askers)
        return latest if latest > self.submission.deadline else None


@dataclass(slots=True)
class Outbox:
    """What the next flush sends: all submits and cancels of one turn of the event loop."""

    flights: list[Flight] = field(default_factory=list)
    cancels: list[int] = field(default_factory=list)
    is_scheduled: bool = False


class Flights:
    """All flights by sequence, those that may be shared also by key, of each key one; and what of them is to be sent.

    `shared` counts the texts that needed no flight of their own.
    """

    def __init__(self) -> None:
        self.by_sequence: dict[int, Flight] = {}
        self._by_key: dict[bytes, Flight] = {}
        # Unlike any other front end's, so that `Link.died_with` can name texts by their sequence alone.
        self._sequences = itertools.count(secrets.randbits(31) << 32 | 1)
        self.outbox = Outbox()
        self.shared = 0

    def __iter__(self) -> Iterator[Flight]:
        return iter(self.by_sequence.values())

    def of_key(self, key: bytes) -> Flight | None:
        """The flight that computes this key's text now."""
        return self._by_key.get(key)

    def launch(self, call: Call, index: int, ids: Ids, priority: Priority, key: bytes | None = None) -> Flight:
        """A new flight for a call's text."""
        sequence = next(self._sequences)
        flight = Flight(Submission(sequence, call.deadline_ns, priority, ids), {call: [index]}, key)
        self.by_sequence[sequence] = flight
        self.outbox.flights.append(flight)
        return flight

    def board(self, call: Call, index: int, ids: Ids, priority: Priority, key: bytes) -> Flight:
        """The flight of this key, shared, or a new one."""
        flight = self._by_key.get(key)
        if flight is None:
            flight = self._by_key[key] = self.launch(call, index, ids, priority, key)
            return flight
        self.shared += 1
        flight.askers.setdefault(call, []).append(index)
        # Priorities are in order of urgency, but a suspect stays one.
        if priority < flight.submission.priority != Priority.SUSPECT:
            self.submit_anew(flight, flight.submission.deadline, priority)
        return flight

    def submit_anew(self, flight: Flight, deadline_ns: int, priority: int) -> None:
        """Tell the engine something else of a text; what it was told before is taken back, if it still counts."""
        sequence = flight.submission.sequence
        if self.pop(sequence) and flight.is_sent:
            self.outbox.cancels.append(sequence)
        sequence = next(self._sequences)
        flight.submission = Submission(sequence, deadline_ns, priority, flight.submission.ids)
        self.by_sequence[sequence] = flight
        if flight.key is not None:
            self._by_key[flight.key] = flight
        # One that was not sent is in the outbox already, or waits for an engine.
        if flight.is_sent:
            flight.is_sent = False
            self.outbox.flights.append(flight)

    def pop(self, sequence: int) -> Flight | None:
        """Take a flight out; None where it has ended already."""
        flight = self.by_sequence.pop(sequence, None)
        if flight is not None and flight.key is not None:
            del self._by_key[flight.key]
        return flight

    def take_back(self, call: Call, flights: Sequence[Flight]) -> None:
        """A call waits no more: texts that nobody else waits for end."""
        for flight in flights:
            sequence = flight.submission.sequence
            flight.askers.pop(call, None)
            if not flight.askers and self.pop(sequence) and flight.is_sent:
                self.outbox.cancels.append(sequence)
