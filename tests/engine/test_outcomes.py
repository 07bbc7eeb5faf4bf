from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from engine.bisection import Ran
from engine.lanes import Batch, Lanes
from engine.outcomes import NO_ROW, Counters, Outcomes
from engine.queue import Item
from engine.rates import Rate
from engine.scheduler import Limits
from engine.slots import Slots
from engine.twins import Twins
from ipc.messages import Status
from ipc.priority import Priority
from tests.engine.sum_runner import SumRunner

ROWS = 6
SHARE = 2
FAR = 2**62
VECTOR = [0.1, -0.0]
numbers = itertools.count(1)


def item(owner: int = 1, *, ids: int = 5) -> Item:
    return Item(owner, next(numbers), np.array([ids], np.int32), Priority.INTERACTIVE, FAR, 0)


class Bench:
    """All that outcomes are made of, with batches that a test ends by hand."""

    def __init__(self, share: int) -> None:
        self.leases = np.zeros(ROWS, np.uint32)
        self.rows = np.zeros((ROWS, 2), np.float32)
        self.slots = Slots(self.leases, np.zeros(ROWS, np.uint64), share)
        self.scheduler = Twins(Limits(rows=4, tokens=32, max_wait=0, queue_items=10))
        self.counters = Counters()
        self.frontends = {1, 2, 3}
        lanes = Lanes(SumRunner(lanes=0), self.rows, lambda: None)
        self.outcomes = Outcomes(self.scheduler, lanes, self.slots, self.frontends, self.counters)

    def start(self, *items: Item, now: int = 0) -> Batch:
        for each in items:
            assert self.scheduler.add(each)
        batch = self.scheduler.next_batch(now, idle=True).batch
        self.slots.compute(0, [each.sequence for each in batch])
        self.rows[: len(batch)] = VECTOR
        return Batch(batch, 0, now)

    def end(self, batch: Batch, *finite: bool) -> dict[tuple[int, int], tuple[int, Status, int]]:
        batch.ran = Ran(np.array(finite))
        return {text.key: (row, status, wait) for text, row, status, wait in self.outcomes.of(batch)}


@pytest.fixture
def share() -> int:
    return ROWS


@pytest.fixture
def bench(share: int) -> Bench:
    return Bench(share)


def test_a_text_gets_its_row_or_hears_that_it_failed(bench: Bench) -> None:
    good, bad = item(ids=1), item(ids=2)
    assert bench.end(bench.start(good, bad), True, False) == {
        good.key: (0, Status.OK, 0),
        bad.key: (NO_ROW, Status.FAILED, 0),
    }
    assert bench.leases.tolist() == [1, 0, 0, 0, 0, 0]
    assert sum(bench.slots.states()) == 1
    assert (bench.counters.items, bench.counters.batches, bench.counters.failed) == (2, 1, 1)


def test_a_twin_gets_the_same_bits_in_a_row_of_its_own(bench: Bench) -> None:
    leader, twin, late = item(1), item(2), replace(item(3), arrived=9)
    outcomes = bench.end(bench.start(leader, twin, late, now=7), True)
    assert outcomes[leader.key] == (0, Status.OK, 7)
    assert [outcomes[i.key][1:] for i in (twin, late)] == [(Status.OK, 7), (Status.OK, 0)]
    rows = [outcomes[i.key][0] for i in (leader, twin, late)]
    assert len(set(rows)) == 3
    assert bench.leases[rows].tolist() == [1, 2, 3]
    assert {bench.rows[row].tobytes() for row in rows} == {np.array(VECTOR, np.float32).tobytes()}
    assert (bench.counters.items, bench.counters.shared) == (1, 2)


def test_the_twins_of_the_dead_and_of_the_cancelled_are_served(bench: Bench) -> None:
    leader, twin = item(1), item(2)
    batch = bench.start(leader, twin)
    bench.frontends.remove(1)
    bench.scheduler.drop_owner(1)
    outcomes = bench.end(batch, True)
    assert outcomes.keys() == {twin.key}
    assert bench.leases[outcomes[twin.key][0]] == 2
    assert sum(bench.slots.states()) == 1


def test_a_twin_that_finds_no_row_waits_as_any_other_text(bench: Bench) -> None:
    leader, second, third, fourth = item(1), item(2), item(3), item(2)
    batch = bench.start(leader, second, third, fourth)
    bench.leases[2:] = 9
    outcomes = bench.end(batch, True)
    assert outcomes.keys() == {leader.key, second.key}
    assert bench.scheduler.next_batch(0, idle=True).batch == [third]
    assert bench.scheduler.finish(third) == [fourth]


@pytest.mark.parametrize("share", [SHARE])
def test_a_twin_takes_no_row_beyond_its_front_ends_share(bench: Bench) -> None:
    leader, over, other = item(1), item(2), item(3)
    batch = bench.start(leader, over, other)
    bench.leases[-SHARE:] = 2
    assert bench.end(batch, True).keys() == {leader.key, other.key}
    assert bench.scheduler.next_batch(0, idle=True).batch == [over]


def test_a_twin_does_not_fail_with_its_leader(bench: Bench) -> None:
    leader, second, third = item(1), item(2), item(3)
    assert bench.end(bench.start(leader, second, third), False) == {leader.key: (NO_ROW, Status.FAILED, 0)}
    again = bench.start()
    assert again.items == [second]
    assert bench.end(again, True).keys() == {second.key, third.key}


def test_the_rate_is_that_of_batches_that_left_others_waiting(bench: Bench) -> None:
    backlog = bench.scheduler.backlog
    bench.outcomes._rate = Rate(lanes=1)
    few = bench.start(item(ids=1))
    few.compute_ns = 10**9
    bench.end(few, True)
    assert backlog.rate == 0
    full = bench.start(item(ids=2))
    full.left_others, full.compute_ns = True, 10**8
    bench.end(full, True)
    assert backlog.rate > 0
