"""What a batch that has ended means for each of its texts: a row that is lent to its front end, or a failure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import TypeAlias

from engine.bisection import SMALL_NS, Ran
from engine.lanes import Batch, Lanes
from engine.queue import Item
from engine.rates import Rate
from engine.scheduler import Scheduler
from engine.slots import Slots
from ipc.messages import Status

NO_ROW = 0
# Text, row, status, and how long it waited in ns.
Outcome: TypeAlias = tuple[Item, int, Status, int]


@dataclass(slots=True)
class Counters:
    """What became of texts and messages, logged when the loop stops: `items` were run, `shared` were twins of these.

    `failed_runs` are those that raised, `starved` the batches that found no memory.
    """

    items: int = 0
    batches: int = 0
    shared: int = 0
    expired: int = 0
    refused: int = 0
    failed: int = 0
    failed_runs: int = 0
    starved: int = 0
    malformed: int = 0
    unsent: int = 0


class Outcomes:
    """Turns rows that were computed into rows that are lent; `frontends` is the loop's set of those that live."""

    def __init__(
        self, scheduler: Scheduler, lanes: Lanes, slots: Slots, frontends: Set[int], counters: Counters
    ) -> None:
        self._scheduler = scheduler
        self._lanes = lanes
        self._slots = slots
        self._frontends = frontends
        self._counters = counters
        self._rate = Rate(lanes.count, scheduler.backlog.rate)

    def of(self, batch: Batch) -> Iterator[Outcome]:
        """For each text of the batch and each twin that its vector serves; nothing for texts of the dead."""
        self._count(batch, batch.ran)
        for row, (item, is_good) in enumerate(zip(batch.items, batch.ran.finite, strict=True), batch.first):
            twins = self._scheduler.finish(item)
            if not is_good:
                self._counters.failed += 1
                self._slots.give_up(row)
                yield item, NO_ROW, Status.FAILED, batch.started - item.arrived
                # It may have failed for want of memory, which there may be now.
                self._scheduler.add_again(twins)
                continue
            if twins:
                yield from self._copies(batch, row, twins)
            if item.owner in self._frontends:
                self._slots.lend(row, item.owner)
                yield item, row, Status.OK, batch.started - item.arrived
            else:
                self._slots.give_up(row)

    def _count(self, batch: Batch, ran: Ran) -> None:
        self._counters.batches += 1
        self._counters.items += len(batch.items)
        self._counters.failed_runs += ran.failures
        # One that had room for more says nothing of what can be done when much waits.
        if batch.left_others:
            self._scheduler.backlog.rate = self._rate.after(batch.tokens, batch.compute_ns)
        if ran.fits is not None:
            self._counters.starved += 1
            self._scheduler.keep_small(ran.fits, until=batch.started + batch.compute_ns + SMALL_NS)

    def _copies(self, batch: Batch, row: int, twins: Iterable[Item]) -> Iterator[Outcome]:
        """A row of its own for each twin, with the same bits; where there is none the twin waits as any other text."""
        unserved = []
        for twin in twins:
            copy = None if twin.owner in self._slots.over_share() else self._slots.find(1)
            if copy is None:
                unserved.append(twin)
                continue
            self._counters.shared += 1
            self._slots.compute(copy, [twin.sequence])
            self._lanes.copy_row(row, copy)
            self._slots.lend(copy, twin.owner)
            # It may have come while the batch ran.
            yield twin, copy, Status.OK, max(0, batch.started - twin.arrived)
        self._scheduler.add_again(unserved)
