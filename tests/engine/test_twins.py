from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.bisection import Ran
from engine.lanes import Batch, Lanes
from engine.outcomes import Counters, Outcomes
from engine.queue import Item
from engine.scheduler import Limits
from engine.slots import Slots
from engine.twins import Twins
from ipc.messages import Status
from ipc.priority import Priority
from ipc.slab import FREE
from tests.engine.sum_runner import SumRunner

LIMITS = Limits(rows=2, tokens=8, max_wait=100, queue_items=10)
FAR = 2**62
TEXT, OTHER = [1, 2], [3, 4]
INTERACTIVE, BULK, SUSPECT = Priority
numbers = itertools.count(1)


def item(
    ids: list[int] = TEXT, priority: Priority = INTERACTIVE, *, owner: int = 1, deadline: int = FAR, flow: int = 0
) -> Item:
    return Item(owner, next(numbers), np.array(ids, np.int32), priority, deadline, 0, flow)


def twins_with(*items: Item, limits: Limits = LIMITS) -> Twins:
    twins = Twins(limits)
    for each in items:
        assert twins.add(each)
    return twins


def take(twins: Twins, now: int = 0, *, blocked: frozenset[int] = frozenset()) -> list[Item]:
    return twins.next_batch(now, idle=True, blocked=blocked).batch


def test_only_the_first_of_identical_texts_is_queued() -> None:
    first, second, third, other = item(), item(owner=2), item(owner=3), item(OTHER)
    twins = twins_with(first, second, other, third)
    assert len(twins) == 2
    assert take(twins) == [first, other]
    assert twins.finish(first) == [second, third]
    assert twins.finish(other) == ()
    assert not twins


def test_a_text_that_runs_is_joined_and_one_that_has_ended_is_not() -> None:
    first, second, third = item(), item(), item()
    twins = twins_with(first)
    assert take(twins) == [first]
    twins.add(second)
    assert twins.finish(first) == [second]
    twins.add(third)
    assert take(twins) == [third]


def test_another_flows_turn_is_not_waited_for() -> None:
    """What waits for that may wait for long; one that runs is shared with all."""
    first, other, twin = item(), item(flow=1), item(flow=1)
    twins = twins_with(first, other, twin)
    assert len(twins) == 2
    assert take(twins) == [first, other]
    twins.add(late := item(flow=2))
    assert len(twins) == 0
    assert twins.finish(first) == ()
    assert twins.finish(other) == [twin, late]


def test_the_same_ids_and_no_others_are_the_same_text() -> None:
    texts = [[1], [1, 0], [0, 1], [256], [1, 1]]
    assert len(twins_with(*map(item, texts))) == len(texts)


def test_bulk_joins_interactive_and_interactive_goes_before_bulk() -> None:
    bulk, interactive, later = item(priority=BULK), item(), item(priority=BULK)
    twins = twins_with(bulk, interactive, later)
    assert take(twins) == [interactive]
    assert twins.finish(interactive) == [later]
    assert take(twins) == [bulk]


@pytest.mark.parametrize("priorities", [(SUSPECT, INTERACTIVE), (INTERACTIVE, SUSPECT), (SUSPECT, SUSPECT)])
def test_a_suspect_has_no_twin_and_is_none(priorities: tuple[Priority, Priority]) -> None:
    first, second = (item(priority=priority) for priority in priorities)
    twins = twins_with(first, second)
    assert len(twins) == 2
    for _ in range(2):
        (ran,) = take(twins)
        assert twins.finish(ran) == ()


def test_twins_count_in_the_queue_of_their_priority() -> None:
    limits = Limits(rows=2, tokens=8, max_wait=0, queue_items=4)
    first, second, bulk = item(), item(), item(priority=BULK)
    twins = twins_with(first, second, bulk, limits=limits)
    assert not twins.add(item()), "neither as a twin"
    assert not twins.add(item(OTHER)), "nor as a text of its own"
    twins.cancel(second.owner, [second.sequence])
    assert twins.add(item(OTHER))


def test_a_cancelled_twin_is_forgotten() -> None:
    first, second, third = item(), item(), item()
    twins = twins_with(first, second, third)
    assert twins.cancel(1, [second.sequence, second.sequence, 10**9]) == [second]
    assert twins.cancel(2, [third.sequence]) == []
    assert take(twins) == [first]
    assert twins.finish(first) == [third]


def test_a_twin_succeeds_a_leader_that_is_cancelled() -> None:
    first, second, third = item(), item(owner=2), item(owner=3)
    twins = twins_with(first, second, third)
    assert twins.cancel(1, [first.sequence]) == [first]
    assert take(twins) == [second]
    assert twins.finish(second) == [third]


def test_leader_and_twin_can_be_cancelled_at_once() -> None:
    first, second, third = item(), item(), item()
    twins = twins_with(first, second, third)
    assert {i.key for i in twins.cancel(1, [first.sequence, second.sequence])} == {first.key, second.key}
    assert take(twins) == [third]
    assert twins.finish(third) == ()


def test_a_leader_that_runs_cannot_be_cancelled() -> None:
    first, second = item(), item(owner=2)
    twins = twins_with(first, second)
    take(twins)
    assert twins.cancel(1, [first.sequence]) == []
    assert twins.finish(first) == [second]


def test_of_the_twins_that_succeed_the_most_urgent_leads() -> None:
    first, bulk, interactive = item(), item(priority=BULK), item()
    twins = twins_with(first, bulk, interactive)
    twins.cancel(1, [first.sequence])
    assert take(twins) == [interactive]
    assert twins.finish(interactive) == [bulk]


def test_a_dead_front_ends_leader_is_succeeded_and_its_twins_go() -> None:
    first, mine, theirs = item(owner=1), item(owner=1), item(owner=2)
    twins = twins_with(first, mine, theirs)
    assert {i.key for i in twins.drop_owner(1)} == {first.key, mine.key}
    assert take(twins) == [theirs]
    assert twins.finish(theirs) == ()


def test_a_twin_has_its_own_deadline() -> None:
    late, later, live = item(deadline=5), item(deadline=5), item()
    twins = twins_with(late, later, live)
    assert twins.next_batch(5, idle=True) == ([], [late])
    assert twins.next_batch(5, idle=True) == ([], [later])
    assert take(twins, 5) == [live]


def test_nobody_waits_for_a_front_end_that_is_blocked() -> None:
    first, mine, other = item(owner=1), item(owner=1), item(owner=2)
    twins = twins_with(first, mine, other)
    assert take(twins, blocked=frozenset({1})) == [other]
    assert take(twins) == [first]
    assert twins.finish(first) == [mine]


def test_a_blocked_front_ends_text_that_runs_already_is_waited_for() -> None:
    first, other = item(owner=1), item(owner=2)
    twins = twins_with(first)
    assert take(twins) == [first]
    assert twins.add(other)
    assert take(twins, blocked=frozenset({1})) == []
    assert twins.finish(first) == [other]


ROWS, SHARE, OWNERS = 5, 3, 3
MOSTLY = (True, True, True, True, False)


def vector(text: Item) -> list[float]:
    return [len(text.ids), float(text.ids.sum())]


class Lives(RuleBasedStateMachine):
    """Whatever happens, each text leaves exactly once, with its own vector if it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.leases, running = np.zeros(ROWS, np.uint32), np.zeros(ROWS, np.uint64)
        self.rows = np.zeros((ROWS, 2), np.float32)
        self.slots = Slots(self.leases, running, SHARE)
        self.twins = Twins(LIMITS)
        self.living = set(range(1, OWNERS + 1))
        no_lanes = Lanes(SumRunner(lanes=0), self.rows, lambda: None)
        self.outcomes = Outcomes(self.twins, no_lanes, self.slots, self.living, Counters())
        self.waiting: dict[tuple[int, int], Item] = {}
        self.running: list[Batch] = []
        self.now = 0

    def leaves(self, text: Item) -> None:
        assert self.waiting.pop(text.key) is text

    @rule(
        owner=st.integers(1, OWNERS),
        ids=st.sampled_from(([1], [1], [2], [1, 1])),
        priority=st.sampled_from((INTERACTIVE, INTERACTIVE, BULK, BULK, SUSPECT)),
        patience=st.sampled_from((-1, 150, FAR, FAR)),
        flow=st.sampled_from((0, 0, 1)),
    )
    def add(self, owner: int, ids: list[int], priority: Priority, patience: int, flow: int) -> None:
        self.living.add(owner)
        new = replace(item(ids, priority, owner=owner, deadline=self.now + patience, flow=flow), arrived=self.now)
        flows = [i.flow for i in self.waiting.values() if i.priority == priority]
        room = flows.count(flow) < LIMITS.queue_items - len(flows)
        assert self.twins.add(new) == room
        if room:
            self.waiting[new.key] = new

    @rule(step=st.integers(1, 200))
    def wait(self, step: int) -> None:
        self.now += step

    @rule(data=st.data(), owner=st.integers(1, OWNERS))
    def cancel(self, data: st.DataObject, owner: int) -> None:
        known = [*self.waiting.values(), *(i for batch in self.running for i in batch.items)]
        theirs = sorted({i.sequence for i in known if i.owner == owner})
        if theirs:
            sequences = data.draw(st.lists(st.sampled_from(theirs), max_size=4))
            expected = {(owner, sequence) for sequence in sequences} & self.waiting.keys()
            gone = self.twins.cancel(owner, sequences)
            assert {i.key for i in gone} == expected
            for each in gone:
                self.leaves(each)

    @rule(owner=st.integers(1, OWNERS))
    def die(self, owner: int) -> None:
        self.living.discard(owner)
        for each in self.twins.drop_owner(owner):
            assert each.owner == owner
            self.leaves(each)
        assert all(i.owner != owner for i in self.waiting.values())
        self.slots.reclaim(owner)

    @precondition(lambda self: self.leases.any())
    @rule(owner=st.integers(1, OWNERS), count=st.integers(1, 2))
    def release(self, owner: int, count: int) -> None:
        self.leases[np.flatnonzero(self.leases == owner)[:count]] = FREE

    @precondition(lambda self: self.waiting)
    @rule()
    def start(self) -> None:
        first = self.slots.find(LIMITS.rows)
        if first is None:
            return
        blocked, idle = self.slots.over_share(), not self.running
        may_go = any(i.owner not in blocked for i in self.waiting.values())
        turn = self.twins.next_batch(self.now, idle=idle, blocked=blocked)
        assert all(i.deadline <= self.now for i in turn.expired)
        for each in (*turn.batch, *turn.expired):
            assert each.owner not in blocked
            self.leaves(each)
        if turn.batch:
            self.slots.compute(first, [i.sequence for i in turn.batch])
            self.rows[first : first + len(turn.batch)] = [vector(i) for i in turn.batch]
            self.running.append(Batch(turn.batch, first, self.now))
        assert turn.batch or turn.expired or not (idle and may_go), "an idle engine must not leave a text waiting"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        size = len(batch.items)
        good = np.array(data.draw(st.lists(st.sampled_from(MOSTLY), min_size=size, max_size=size)))
        batch.ran = Ran(good)
        fate = {i.key: Status.OK if ok else Status.FAILED for i, ok in zip(batch.items, good, strict=True)}
        for text, row, status, wait in self.outcomes.of(batch):
            assert wait >= 0
            if status == Status.OK:
                assert self.leases[row] == text.owner
                assert self.rows[row].tolist() == vector(text)
            if text.key in fate:
                assert fate.pop(text.key) == status
            else:
                assert status == Status.OK
                self.leaves(text)
        assert all(status == Status.OK and owner not in self.living for (owner, _), status in fate.items())

    @invariant()
    def nothing_is_lost(self) -> None:
        queued = {i.key: i for queue in self.twins._queues.values() for i in queue.waiting.values()}
        assert len(self.twins) == len(queued)
        assert queued.keys() | self.twins._leader_of.keys() == self.waiting.keys()
        assert not queued.keys() & self.twins._leader_of.keys()
        at_work = {*queued.values(), *(i for batch in self.running for i in batch.items)}
        assert at_work >= set(self.twins._leaders.values()), "a text that has left is nobody's leader"
        for key, leader in self.twins._leader_of.items():
            twin = self.waiting[key]
            assert leader in at_work
            assert leader.ids.tolist() == twin.ids.tolist()
            assert leader.priority <= twin.priority < SUSPECT

    @invariant()
    def rows_are_accounted_for(self) -> None:
        assert sum(self.slots.states()) == np.count_nonzero(self.leases) + sum(
            len(batch.items) for batch in self.running
        )

    @precondition(lambda self: len(self.waiting) > LIMITS.queue_items)
    @rule()
    def settle(self) -> None:
        """What there is leaves, once rows are free and nothing more comes."""
        for _ in range(len(self.waiting) + 1):
            self.leases[:] = FREE
            for batch in self.running:
                batch.ran = Ran(np.ones(len(batch.items), bool))
                for text, *_ in self.outcomes.of(batch):
                    self.waiting.pop(text.key, None)
            self.running.clear()
            self.start()
        assert not self.waiting
        assert not self.running
        assert not (self.twins or self.twins._leaders or self.twins._twins or self.twins._leader_of)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=80, deadline=None)
