"""What is under way to the engine: a call is one request's texts, a flight is one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ipc.messages import Priority, Submission
from ipc.slab import Row

Take = Callable[[Row], bytes]


@dataclass(slots=True, eq=False)
class Call:
    """One request's texts on their way: parts[i] is what `take` made of the vector of texts[i]; times in ns."""

    take: Take
    parts: list[bytes]
    missing: int
    done: asyncio.Future[None]
    wait_ns: int = 0
    compute_ns: int = 0

    def fail(self, error: Exception) -> None:
        """End the call; the first error wins."""
        if not self.done.done():
            self.done.set_exception(error)

    def abandon(self, _: object) -> None:
        """Wake the waiting caller with CancelledError; a callback for the future that says nobody waits for it."""
        self.done.cancel()


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

    def land(self, row: Row, wait_ns: int, compute_ns: int) -> None:
        """Encode the vector from the slab itself; a `take` that raises ends the call with what it raised."""
        call = self.call
        try:
            call.parts[self.index] = call.take(row)
        except Exception as error:
            call.fail(error)
            return
        call.wait_ns = max(call.wait_ns, wait_ns)
        call.compute_ns = max(call.compute_ns, compute_ns)
        call.missing -= 1
        if not call.missing and not call.done.done():
            call.done.set_result(None)
