"""What is under way to the engine: a call is one request's texts, a flight is one text and all who asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

from frontend import outcomes
from ipc.log import correlation_id
from ipc.messages import Status, Submission
from ipc.priority import Priority
from ipc.slab import FREE, Leases, Row, Rows

log = logging.getLogger(__name__)

Take = Callable[[Row], bytes]
# A priority, and a flow as in `ipc.backlog`.
Place: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class Holding:
    """Room for the rows that the calls of one front end hold for longer than it takes to read them.

    The engine gives no more rows to a front end that has its share. So calls that held all of theirs until the last
    one came would wait for rows that they or slow readers have.
    """

    room: int

    def hold(self, lent: Lent) -> Lent | None:
        """The row, which counts until it is released; None where there is no room."""
        if not self.room:
            return None
        self.room -= 1
        return lent._replace(holding=self)


class Lent(NamedTuple):
    """A row of a slab that is ours until we release it: rows[number] is the vector, leases[number] says whose it is."""

    rows: Rows
    leases: Leases
    number: int
    holding: Holding | None = None

    def release(self) -> None:
        """Give the row back to the engine, or to nobody where that has died."""
        self.leases[self.number] = FREE
        if self.holding is not None:
            self.holding.room += 1


@dataclass(slots=True, eq=False)
class Call:
    """One request's texts on their way: parts[i] is what `take` made of the vector of texts[i]; times in ns.

    `hits` of its texts came from a cache, `flow` is as in `ipc.backlog`. Without `take`, held[i] is the row itself, or
    parts[i] its bytes where somebody else holds that or `holding` has no room: whoever gets the call releases it.
    """

    take: Take | None
    parts: list[bytes]
    missing: int
    done: asyncio.Future[None]
    deadline_ns: int
    holding: Holding | None = None
    flow: int = 0
    wait_ns: int = 0
    compute_ns: int = 0
    hits: int = 0
    correlation_id: str | None = field(default_factory=correlation_id.get)
    held: dict[int, Lent] = field(default_factory=dict)

    def land(self, index: int, lent: Lent, wait_ns: int, compute_ns: int, *, may_hold: bool) -> bool:
        """Encode one text's vector from the slab itself, or hold it (True); a `take` that raises ends the call so."""
        is_held = False
        if self.take is not None:
            try:
                self.parts[index] = self.take(lent.rows[lent.number])
            except Exception as error:
                self.fail(error)
                return False
        elif may_hold and self.holding is not None and (held := self.holding.hold(lent)) is not None:
            self.held[index] = held
            is_held = True
        else:
            self.parts[index] = lent.rows[lent.number].tobytes()
        self.wait_ns = max(self.wait_ns, wait_ns)
        self.compute_ns = max(self.compute_ns, compute_ns)
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)
        return is_held

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
    # What it counts for in `Flights`; kept here, for a suspect's priority is another.
    place: Place | None = None

    def join(self, call: Call, index: int) -> None:
        """One more who waits for this text."""
        self.askers.setdefault(call, []).append(index)

    def leave(self, call: Call) -> bool:
        """Forget a call; True where nobody is left."""
        self.askers.pop(call, None)
        return not self.askers

    def is_less_urgent(self, priority: Priority) -> bool:
        """Whether it was submitted with less urgency than this; a suspect stays one."""
        return priority < self.submission.priority != Priority.SUSPECT

    def suspect(self) -> None:
        """Note that an engine died while it ran this text; the next one is to run it alone."""
        self.deaths += 1
        self.submission = self.submission._replace(priority=Priority.SUSPECT)

    def land(self, lent: Lent, wait_ns: int, compute_ns: int) -> None:
        """Give the vector to all who asked for it, and the row back unless one of them holds it."""
        is_held = False
        for call, places in self.askers.items():
            for index in places:
                is_held |= call.land(index, lent, wait_ns, compute_ns, may_hold=not is_held)
        if not is_held:
            lent.release()

    def end(self, status: int) -> int | None:
        """End the calls as a REPLY's status says; gives the deadline until which the others go on waiting, if any."""
        error = partial(outcomes.error_of, status)
        if status == Status.EXPIRED:
            return self.expire(error)
        if status != Status.REFUSED:
            # The engine's log names the sequence, this one whose it was.
            asked = [call.correlation_id for call in self.askers]
            log.warning("a text failed", extra={"sequence": self.submission.sequence, "correlation_ids": asked})
        self.fail(error)
        return None

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


class Flights(dict[int, Flight]):
    """All flights by sequence, and those with a key by flow and key: of these there is never more than one.

    Of each priority there are places for `most`.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._by_key: dict[tuple[int, bytes], Flight] = {}
        self._free: dict[int, int] = dict.fromkeys(Priority, most)
        self._places: Counter[Place] = Counter()

    def have_room(self, place: Place, texts: int) -> bool:
        """Whether so many more have a place: a flow may have as many as are free, as in `engine.queue`."""
        # The last of them finds all the others there.
        return not texts or self._places[place] + 2 * (texts - 1) < self._free[place[0]]

    def add(self, flight: Flight) -> None:
        """From now on replies find it, and so do others who ask for its key."""
        submission = flight.submission
        flight.place = submission.priority, submission.flow
        self._count(flight.place, 1)
        self[submission.sequence] = flight
        if flight.key is not None:
            self._by_key[submission.flow, flight.key] = flight

    def remove(self, sequence: int) -> Flight | None:
        """Take a flight out; None where it has ended already."""
        flight = self.pop(sequence, None)
        if flight is None:
            return None
        assert flight.place is not None, "this is a bug: a flight that was not added"
        self._count(flight.place, -1)
        if flight.key is not None:
            del self._by_key[flight.submission.flow, flight.key]
        return flight

    def of_key(self, flow: int, key: bytes) -> Flight | None:
        """The flight of this flow that computes this key's text now: another flow's turn may come much later."""
        return self._by_key.get((flow, key))

    def _count(self, place: Place, texts: int) -> None:
        self._free[place[0]] -= texts
        self._places[place] += texts
        if not self._places[place]:
            del self._places[place]
