"""The texts under way to the engine: who asked for each, what the engine was told of it, and what it has to be told."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence, Set

from frontend import outcomes
from frontend.flight import Call, Flight, Flights
from frontend.link import Link
from frontend.outbox import Outbox
from ipc.messages import Ids, Submission
from ipc.priority import Priority

# The first death had other texts in the lanes; from then on a text runs alone, and two deaths with it alone are taken
# for its doing: one can be chance.
MOST_DEATHS = 3


class UnderWay:
    """Flights, `most_flights` of each priority, and the outbox that takes them to the engine.

    `shared` counts those that joined another's.
    """

    def __init__(self, get_link: Callable[[], Link | None], most_flights: int) -> None:
        self.flights = Flights(most_flights)
        self.outbox = Outbox(self.flights, get_link)
        # Unlike any other front end's, so that `Link.died_with` can name texts by their sequence alone.
        self._sequences = itertools.count(secrets.randbits(31) << 32 | 1)
        self.shared = 0

    def launch(self, call: Call, index: int, ids: Ids, priority: Priority, key: bytes | None) -> Flight:
        """Send a text."""
        submission = Submission(next(self._sequences), call.deadline_ns, priority, ids, call.flow)
        flight = Flight(submission, {call: [index]}, key)
        self.flights.add(flight)
        self.outbox.submit(flight)
        return flight

    def board(self, call: Call, index: int, ids: Ids, priority: Priority, key: bytes) -> Flight:
        """Share the flight of this key in the call's flow, or launch one."""
        flight = self.flights.of_key(call.flow, key)
        if flight is None:
            return self.launch(call, index, ids, priority, key)
        self.shared += 1
        flight.join(call, index)
        if flight.is_less_urgent(priority):
            self.submit_anew(flight, flight.submission.deadline, priority)
        return flight

    def submit_anew(self, flight: Flight, deadline_ns: int, priority: int) -> None:
        """Tell the engine something else of a text; what it was told before is taken back, if it still counts."""
        sequence = flight.submission.sequence
        if self.flights.remove(sequence) and flight.is_sent:
            self.outbox.cancel(sequence)
        flight.submission = flight.submission._replace(
            sequence=next(self._sequences), deadline=deadline_ns, priority=priority
        )
        self.flights.add(flight)
        # One that was not sent is in the outbox already, or waits for an engine.
        if flight.is_sent:
            flight.is_sent = False
            self.outbox.submit(flight)

    def take_back(self, call: Call, flights: Sequence[Flight]) -> None:
        """Forget a call, and the texts that nobody else waits for."""
        for flight in flights:
            sequence = flight.submission.sequence
            if flight.leave(call) and self.flights.remove(sequence) and flight.is_sent:
                self.outbox.cancel(sequence)

    def survive(self, died_with: Set[int]) -> None:
        """Keep what an engine that died was told of for the next one; those it died with too often fail."""
        for flight in list(self.flights.values()):
            flight.is_sent = False
            if flight.submission.sequence in died_with:
                flight.suspect()
                if flight.deaths == MOST_DEATHS:
                    # Out, so that nobody else joins it.
                    self.flights.remove(flight.submission.sequence)
                    flight.fail(outcomes.poison)

    def fail_all(self, make: Callable[[], Exception]) -> None:
        """End every call; their texts are out before anybody else can join them."""
        for sequence in list(self.flights):
            flight = self.flights.remove(sequence)
            if flight is not None:
                flight.fail(make)
