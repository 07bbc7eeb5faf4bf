"""What goes to the engine: submits and cancels that leave together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from frontend.flight import Flight, Flights
from frontend.link import Link
from ipc import messages

# With so many texts under way a millisecond more costs no one anything, and a message for several texts costs both
# sides far less than one for each.
BUSY_FLIGHTS = 12
BUSY_FLUSH_SECONDS = 0.001
# Far below MAX_MESSAGE_BYTES with the longest texts: all that was in flight is sent at once to a new engine.
MOST_IN_SUBMIT = 4096


class Outbox:
    """Flushes at the end of a turn of the loop, or soon where the engine has enough to do meanwhile.

    `get_link` gives the link to an engine that has joined, else None: then nothing is kept, for `submit_all` follows
    once there is one, and cancels mean nothing to a new engine.
    """

    def __init__(self, under_way: Flights, get_link: Callable[[], Link | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._under_way = under_way
        self._get_link = get_link
        self._flights: list[Flight] = []
        self._cancels: list[int] = []
        self._is_scheduled = False

    def submit(self, flight: Flight) -> None:
        """Send a text with the next flush, if it is still under way then."""
        self._flights.append(flight)
        self.schedule()

    def submit_all(self) -> None:
        """Send everything that is under way to an engine that knows nothing of it."""
        self._flights, self._cancels = list(self._under_way.values()), []
        self.schedule()

    def cancel(self, sequence: int) -> None:
        """Take back a text that was sent."""
        self._cancels.append(sequence)
        self.schedule()

    def schedule(self) -> None:
        """Flush soon."""
        if not self._is_scheduled:
            self._is_scheduled = True
            if len(self._under_way) < BUSY_FLIGHTS:
                self._loop.call_soon(self.flush)
            else:
                self._loop.call_later(BUSY_FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Send what the socket takes; the rest (a stopped engine, a full pipe) goes with the link's next tick."""
        self._is_scheduled = False
        link = self._get_link()
        flights, self._flights = [f for f in self._flights if f.submission.sequence in self._under_way], []
        cancels, self._cancels = self._cancels, []
        if link is None:
            return
        while flights and link.send(messages.submit([f.submission for f in flights[:MOST_IN_SUBMIT]], link.epoch)):
            for flight in flights[:MOST_IN_SUBMIT]:
                flight.is_sent = True
            flights = flights[MOST_IN_SUBMIT:]
        if cancels and link.send(messages.cancel(cancels, link.epoch)):
            cancels = []
        self._flights, self._cancels = flights, cancels
        link.receive()
