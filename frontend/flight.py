"""What is under way to the engine: a call is one request's texts, a flight is one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ipc.errors import DeadlineExceeded, EngineFailure, Overloaded, RequestError
from ipc.messages import Priority, Status, Submission
from ipc.slab import FREE, Leases, Row, Rows

Take = Callable[[Row], bytes]

RETRY_AFTER_SECONDS = 1.0


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

    Without `take`, held[i] is the vector itself: whoever gets the call releases it.
    """

    take: Take | None
    parts: list[bytes]
    missing: int
    done: asyncio.Future[None]
    wait_ns: int = 0
    compute_ns: int = 0
    held: dict[int, Lent] = field(default_factory=dict)

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
    """One text between submit and reply."""

    submission: Submission
    call: Call
    index: int
    deaths: int = 0
    is_sent: bool = False

    def suspect(self) -> None:
        """Note that an engine died while it ran this text; the next one is to run it alone."""
        self.deaths += 1
        self.submission = self.submission._replace(priority=Priority.SUSPECT)

    def land(self, lent: Lent, wait_ns: int, compute_ns: int) -> None:
        """Encode the vector from the slab itself, or hold it; a `take` that raises ends the call with that."""
        call = self.call
        if call.take is None:
            call.held[self.index] = lent
        else:
            try:
                call.parts[self.index] = call.take(lent.rows[lent.number])
            except Exception as error:
                call.fail(error)
                return
            finally:
                lent.release()
        call.wait_ns = max(call.wait_ns, wait_ns)
        call.compute_ns = max(call.compute_ns, compute_ns)
        call.missing -= 1
        if not call.missing and not call.done.done():
            call.done.set_result(None)


@dataclass(slots=True)
class Outbox:
    """What the next flush sends: all submits and cancels of one turn of the event loop."""

    flights: list[Flight] = field(default_factory=list)
    cancels: list[int] = field(default_factory=list)
    is_scheduled: bool = False


def error_of(status: int) -> RequestError:
    """What a text's status that is not OK means to whoever asked."""
    match status:
        case Status.EXPIRED:
            return DeadlineExceeded("The request's deadline passed while it waited: allow more time or send less.")
        case Status.REFUSED:
            return Overloaded("The engine's queue is full: try again later.", retry_after=RETRY_AFTER_SECONDS)
        case _:
            return EngineFailure("The model could not be run on this text: the engine's log has the reason.")
