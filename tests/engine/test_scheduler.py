from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.queue import Item
from engine.scheduler import BATCHES_AHEAD, BULK_PATIENCE_NS, INTERACTIVE_FOR_NS, LOOK_NS, Limits, Scheduler
from ipc.backlog import ACTIVE, FIRST, TOTAL, Backlog
from ipc.priority import Priority

LIMITS = Limits(rows=4, tokens=32, max_wait=100, queue_items=50)
FAR = 2**62
numbers = itertools.count()


def item(
    length: int = 3,
    *,
    arrived: int = 0,
    owner: int = 1,
    deadline: int = FAR,
    priority: Priority = Priority.INTERACTIVE,
    flow: int = 0,
) -> Item:
    return Item(owner, next(numbers), np.zeros(length, np.int32), priority, deadline, arrived, flow)


def scheduler_with(items: Iterable[Item], limits: Limits = LIMITS) -> Scheduler:
    scheduler = Scheduler(limits)
    for each in items:
        assert scheduler.add(each)
    return scheduler


def test_nothing_waits_for_company_while_all_lanes_are_idle() -> None:
    only = item()
    assert scheduler_with([only]).next_batch(0, idle=True).batch == [only]


def test_a_text_waits_for_company_while_another_lane_works() -> None:
    scheduler = scheduler_with([item()])
    assert scheduler.next_batch(99, idle=False).batch == []
    assert scheduler.wake_at() == 100
    assert len(scheduler.next_batch(100, idle=False).batch) == 1


def test_a_full_batch_leaves_at_once() -> None:
    scheduler = scheduler_with(item() for _ in range(5))
    assert len(scheduler.next_batch(0, idle=False).batch) == LIMITS.rows
    assert len(scheduler) == 1


def test_tokens_bound_a_batch_as_rows_do() -> None:
    scheduler = scheduler_with(item(16) for _ in range(4))
    assert len(scheduler.next_batch(0, idle=False).batch) == 2


def test_a_text_longer_than_the_token_bound_goes_alone() -> None:
    scheduler = scheduler_with(item(40) for _ in range(2))
    assert len(scheduler.next_batch(0, idle=False).batch) == 1


@pytest.mark.parametrize("mixes_lengths", [False, True])
def test_batches_are_small_for_a_while_after_one_that_found_no_memory(mixes_lengths: bool) -> None:
    scheduler = scheduler_with((item(8) for _ in range(13)), replace(LIMITS, mixes_lengths=mixes_lengths))
    scheduler.keep_small(16, until=1000)
    assert len(scheduler.next_batch(0, idle=False).batch) == 2
    scheduler.keep_small(24, until=2000)
    assert len(scheduler.next_batch(1999, idle=True).batch) == 2, "never larger than what was found to fit"
    scheduler.keep_small(1, until=3000)
    assert len(scheduler.next_batch(2000, idle=True).batch) == 1
    assert len(scheduler.next_batch(3000, idle=True).batch) == LIMITS.rows
    scheduler.keep_small(100, until=4000)
    assert len(scheduler.next_batch(3000, idle=True).batch) == LIMITS.rows, "nor than there may be"


def test_a_batch_holds_one_length_and_goes_by_the_oldest() -> None:
    oldest, other, same = item(3), item(5, arrived=1), item(3, arrived=2)
    scheduler = scheduler_with([oldest, other, same])
    assert scheduler.next_batch(2, idle=True).batch == [oldest, same]
    assert scheduler.next_batch(2, idle=True).batch == [other]


def test_a_batch_is_of_the_oldest_texts_front_end_where_that_has_enough() -> None:
    items = [item(owner=1 + n % 2) for n in range(8)]
    scheduler = scheduler_with(items)
    assert scheduler.next_batch(0, idle=False).batch == items[0::2]
    assert scheduler.next_batch(0, idle=False).batch == items[1::2]


def test_a_batch_is_filled_up_with_other_front_ends_texts() -> None:
    first, *others = items = [item(owner=1), *(item(owner=2) for _ in range(4)), item(owner=3)]
    assert scheduler_with(items).next_batch(0, idle=False).batch == [first, *others[:3]]


def test_a_batch_looks_ahead_no_further_than_a_few_batches() -> None:
    ahead = BATCHES_AHEAD * LIMITS.rows
    items = [item(owner=1), *(item(owner=2) for _ in range(ahead - 1)), item(owner=1)]
    assert scheduler_with(items).next_batch(0, idle=False).batch == items[:4]


def test_a_full_batch_goes_before_an_older_text_that_may_still_wait() -> None:
    older = item(7)
    scheduler = scheduler_with([older, *(item(3, arrived=1) for _ in range(4))])
    assert {len(i.ids) for i in scheduler.next_batch(1, idle=False).batch} == {3}
    assert scheduler.next_batch(1, idle=False).batch == []


def test_the_oldest_goes_first_once_it_is_due_whatever_is_full() -> None:
    older = item(7)
    scheduler = scheduler_with([older, *(item(3, arrived=1) for _ in range(4))])
    assert scheduler.next_batch(100, idle=False).batch == [older]


def test_expired_texts_cost_no_row() -> None:
    late, live = item(deadline=5), [item() for _ in range(4)]
    turn = scheduler_with([late, *live]).next_batch(5, idle=True)
    assert turn.expired == [late]
    assert turn.batch == live


def test_cancelled_texts_are_not_run() -> None:
    gone, stays = item(), item()
    scheduler = scheduler_with([gone, stays])
    assert scheduler.cancel(gone.owner, [gone.sequence, gone.sequence, 10**9]) == [gone]
    assert scheduler.cancel(gone.owner + 1, [stays.sequence]) == []
    assert scheduler.next_batch(0, idle=True).batch == [stays]


def test_a_dead_front_ends_texts_go() -> None:
    mine = item(owner=2)
    scheduler = scheduler_with([item(owner=1), mine, item(owner=1, priority=Priority.BULK)])
    assert len(scheduler.drop_owner(1)) == 2
    assert scheduler.next_batch(0, idle=True).batch == [mine]


def test_a_blocked_front_end_holds_up_nobody() -> None:
    blocked, free = item(owner=1), item(owner=2, arrived=1)
    scheduler = scheduler_with([blocked, free])
    assert scheduler.next_batch(1, idle=True, blocked=frozenset({1})).batch == [free]
    assert scheduler.next_batch(1, idle=True, blocked=frozenset({1})).batch == []
    assert scheduler.wake_at(blocked=frozenset({1})) is None
    assert scheduler.next_batch(1, idle=True).batch == [blocked]


def test_each_priority_has_its_own_bound_and_a_flow_may_have_what_is_free() -> None:
    limits = Limits(rows=4, tokens=32, max_wait=0, queue_items=4)
    scheduler = scheduler_with([item(), item()], limits)
    assert not scheduler.add(item())
    assert scheduler.add(item(flow=1))
    assert not scheduler.add(item(flow=1))
    assert scheduler.add(item(priority=Priority.BULK))


def test_interactive_goes_before_bulk() -> None:
    bulk, interactive = item(priority=Priority.BULK), item(arrived=1)
    scheduler = scheduler_with([bulk, interactive])
    assert scheduler.next_batch(1, idle=True).batch == [interactive]
    assert scheduler.next_batch(1, idle=True).batch == [bulk]


def test_bulk_does_not_starve() -> None:
    bulk = item(priority=Priority.BULK)
    scheduler = scheduler_with([bulk, item(arrived=1)])
    assert scheduler.next_batch(BULK_PATIENCE_NS, idle=True, spare=False).batch == [bulk]


def test_of_much_bulk_one_batch_goes_first_and_then_what_is_interactive() -> None:
    bulk, interactive = [item(priority=Priority.BULK) for _ in range(12)], [item(arrived=1) for _ in range(8)]
    scheduler = scheduler_with([*bulk, *interactive])
    taken = [scheduler.next_batch(BULK_PATIENCE_NS + n, idle=True).batch for n in range(4)]
    assert taken == [bulk[:4], interactive[:4], interactive[4:], bulk[4:8]]


def test_while_there_are_interactive_texts_a_lane_is_kept_for_them() -> None:
    first, bulk = item(arrived=10), item(arrived=20, priority=Priority.BULK)
    scheduler = scheduler_with([first, bulk])
    assert scheduler.next_batch(20, idle=True).batch == [first]
    assert scheduler.next_batch(200, idle=False, spare=False).batch == []
    due = scheduler.wake_at(spare=False)
    assert due == 20 + BULK_PATIENCE_NS, "however many interactive texts there are"
    assert scheduler.next_batch(due, idle=False, spare=False).batch == [bulk]
    scheduler.add(item(arrived=due, priority=Priority.BULK))
    scheduler.add(later := item(arrived=due, priority=Priority.BULK))
    kept_until = 10 + INTERACTIVE_FOR_NS
    assert scheduler.wake_at(spare=False) == min(kept_until, due + BULK_PATIENCE_NS)
    assert later in scheduler.next_batch(kept_until, idle=False, spare=False).batch


def test_another_lane_may_have_bulk_meanwhile() -> None:
    scheduler = scheduler_with([item(arrived=10), bulk := item(arrived=20, priority=Priority.BULK)])
    scheduler.next_batch(20, idle=True)
    assert scheduler.wake_at(spare=True) == 20 + LIMITS.max_wait
    assert scheduler.next_batch(20 + LIMITS.max_wait, idle=False, spare=True).batch == [bulk]


@pytest.mark.parametrize("mixes_lengths", [False, True])
def test_flows_take_turns_whatever_each_has_queued(mixes_lengths: bool) -> None:
    greedy, modest = [item(flow=1) for _ in range(40)], [item(flow=2, arrived=1) for _ in range(2)]
    scheduler = scheduler_with([*greedy, *modest], replace(LIMITS, queue_items=100, mixes_lengths=mixes_lengths))
    batch = scheduler.next_batch(1, idle=True).batch
    assert [i.flow for i in batch] == [1, 2, 1, 2]
    assert set(modest) <= set(batch)


def test_the_next_length_is_that_of_the_text_whose_turn_it_is() -> None:
    greedy, modest = [item(3, flow=1) for _ in range(40)], item(5, flow=2, arrived=1)
    scheduler = scheduler_with([*greedy, modest], replace(LIMITS, queue_items=100))
    assert scheduler.next_batch(1, idle=True).batch == greedy[:4]
    assert scheduler.next_batch(1, idle=True).batch == [modest]


def test_front_ends_see_what_waits() -> None:
    backlog = Backlog.private()
    scheduler = Scheduler(LIMITS, backlog)
    for each in (item(3, flow=1), item(5, flow=1), item(7, flow=9)):
        scheduler.add(each)
    part = backlog.part(Priority.INTERACTIVE)
    assert (part[TOTAL], part[ACTIVE], part[FIRST + 1], part[FIRST + 9]) == (15, 2, 8, 7)
    scheduler.next_batch(0, idle=True)
    assert (part[TOTAL], part[ACTIVE], part[FIRST + 1]) == (12, 2, 5)
    scheduler.drop_owner(1)
    assert not any(part)


def test_front_ends_see_how_fast_bulk_goes() -> None:
    backlog = Backlog.private()
    backlog.rate = 1000
    scheduler = Scheduler(replace(LIMITS, rows=50, tokens=400, queue_items=100), backlog)
    scheduler.look(LOOK_NS)
    assert backlog.bulk_rate == 1000
    for _ in range(40):
        assert scheduler.add(item(10, arrived=LOOK_NS))
    assert len(scheduler.next_batch(LOOK_NS, idle=True).batch) == 40
    scheduler.look(2 * LOOK_NS - 1)
    assert backlog.bulk_rate == 1000, "not yet"
    scheduler.look(2 * LOOK_NS)
    assert backlog.bulk_rate == 600, "what is interactive leaves so much"
    for _ in range(40):
        assert scheduler.add(item(10, arrived=2 * LOOK_NS, priority=Priority.BULK))
    scheduler.keep_small(200, until=FAR)
    assert len(scheduler.next_batch(3 * LOOK_NS, idle=True).batch) == 20
    scheduler.look(3 * LOOK_NS)
    assert backlog.bulk_rate == 200, "it waited all the time, and got that"
    assert len(scheduler.next_batch(4 * LOOK_NS, idle=True).batch) == 20
    scheduler.look(4 * LOOK_NS)
    assert backlog.bulk_rate == 1000, "none waits any more"


def test_a_suspect_runs_while_nothing_else_does() -> None:
    suspects, other = [item(priority=Priority.SUSPECT) for _ in range(2)], item()
    scheduler = scheduler_with([other, *suspects])
    assert scheduler.next_batch(FAR - 1, idle=False).batch == [], "the other lanes run dry first"
    assert scheduler.next_batch(0, idle=True).batch == suspects[:1]
    assert scheduler.next_batch(FAR - 1, idle=False).batch == [], "nothing runs beside it"
    assert scheduler.next_batch(0, idle=True).batch == suspects[1:]
    assert scheduler.next_batch(0, idle=True).batch == [other]


def test_while_a_suspect_waits_or_runs_only_a_lanes_end_is_waited_for() -> None:
    scheduler = scheduler_with([item(), item(priority=Priority.SUSPECT)])
    assert scheduler.wake_at() is None
    assert len(scheduler.next_batch(0, idle=True).batch) == 1
    assert scheduler.wake_at() is None
    scheduler.next_batch(0, idle=True)
    scheduler.add(item(arrived=7))
    assert scheduler.wake_at() == 7 + LIMITS.max_wait


def test_a_suspect_of_a_blocked_front_end_holds_up_nobody() -> None:
    other = item(owner=2)
    scheduler = scheduler_with([item(owner=1, priority=Priority.SUSPECT), other])
    assert scheduler.next_batch(100, idle=False, blocked=frozenset({1})).batch == [other]


MIXED = replace(LIMITS, mixes_lengths=True)


def test_a_packing_runner_gets_the_oldest_texts_of_any_lengths() -> None:
    items = [item(3), item(5, owner=2), item(7), item(3), item(3)]
    scheduler = scheduler_with(items, MIXED)
    assert scheduler.next_batch(0, idle=True).batch == items[:4]
    assert scheduler.next_batch(0, idle=True).batch == items[4:]


def test_a_mixed_batch_ends_before_the_first_text_that_has_no_place() -> None:
    items = [item(20), item(13), item(2)]
    scheduler = scheduler_with(items, MIXED)
    assert scheduler.next_batch(0, idle=True).batch == items[:1], "and the short one overtakes nobody"
    assert scheduler.next_batch(0, idle=True).batch == items[1:]


def test_a_text_longer_than_the_token_bound_goes_alone_in_a_mixed_batch() -> None:
    items = [item(40), item(2)]
    assert scheduler_with(items, MIXED).next_batch(0, idle=True).batch == items[:1]


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4], [16, 16], [40]], ids=["rows", "tokens", "one long"])
def test_a_full_mixed_batch_leaves_at_once(lengths: list[int]) -> None:
    items = [item(length) for length in lengths]
    assert scheduler_with(items[:-1], MIXED).next_batch(99, idle=False).batch == []
    assert scheduler_with(items, MIXED).next_batch(99, idle=False).batch == items


def test_a_mixed_batch_leaves_when_its_oldest_is_due() -> None:
    items = [item(3), item(5, arrived=50)]
    scheduler = scheduler_with(items, MIXED)
    assert scheduler.next_batch(99, idle=False).batch == []
    assert scheduler.wake_at() == 100
    assert scheduler.next_batch(100, idle=False).batch == items


def test_a_mixed_batch_leaves_out_the_blocked_and_the_expired() -> None:
    blocked, late, live = item(3, owner=1), item(4, owner=2, deadline=5), item(5, owner=2)
    scheduler = scheduler_with([blocked, late, live], MIXED)
    turn = scheduler.next_batch(5, idle=True, blocked=frozenset({1}))
    assert turn == ([live], [late])
    assert scheduler.next_batch(5, idle=True).batch == [blocked]


@pytest.mark.parametrize(("length", "rows"), [(1, 4), (8, 4), (9, 3), (16, 2), (17, 1), (33, 1)])
def test_rows_of_a_length(length: int, rows: int) -> None:
    assert LIMITS.rows_of(length) == rows


class Against(RuleBasedStateMachine):
    """Whatever happens, each text leaves exactly once, in a batch that keeps the bounds."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.limits)
        self.waiting: dict[tuple[int, int], Item] = {}
        self.now = 0
        self.suspect_runs = False

    @rule(
        owner=st.integers(1, 3),
        length=st.integers(1, 40),
        priority=st.sampled_from(Priority),
        patience=st.integers(-5, 300),
        flow=st.integers(0, 3),
    )
    def add(self, owner: int, length: int, priority: Priority, patience: int, flow: int) -> None:
        new = item(length, arrived=self.now, owner=owner, deadline=self.now + patience, priority=priority, flow=flow)
        flows = [i.flow for i in self.waiting.values() if i.priority == priority]
        room = flows.count(flow) < LIMITS.queue_items - len(flows)
        assert self.scheduler.add(new) == room
        if room:
            self.waiting[new.key] = new

    @rule(step=st.integers(1, 200))
    def wait(self, step: int) -> None:
        self.now += step

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            owner, sequence = data.draw(st.sampled_from(sorted(self.waiting)))
            self.scheduler.cancel(owner, [sequence])
            del self.waiting[owner, sequence]

    @rule(owner=st.integers(1, 3))
    def die(self, owner: int) -> None:
        theirs = [key for key in self.waiting if key[0] == owner]
        assert len(self.scheduler.drop_owner(owner)) == len(theirs)
        for key in theirs:
            del self.waiting[key]

    @rule(idle=st.booleans(), blocked=st.frozensets(st.integers(1, 3), max_size=2))
    def batch(self, idle: bool, blocked: frozenset[int]) -> None:
        may_go = [i for i in self.waiting.values() if i.owner not in blocked]
        turn = self.scheduler.next_batch(self.now, idle=idle, blocked=blocked)
        gone = [*turn.batch, *turn.expired]
        for each in gone:
            del self.waiting[each.key]
        assert all(i.owner not in blocked for i in gone)
        assert all(i.deadline <= self.now for i in turn.expired)
        assert all(i.deadline > self.now for i in turn.batch)
        assert len({i.priority for i in gone}) <= 1
        if turn.batch:
            self.keeps_the_bounds(turn.batch)
            assert idle or not self.suspect_runs, "nothing runs beside a suspect"
        if idle:
            self.suspect_runs = False
        if any(i.priority is Priority.SUSPECT for i in turn.batch):
            assert idle
            assert len(turn.batch) == 1
            self.suspect_runs = True
        if idle and may_go:
            assert gone, "an idle engine must not leave a text waiting"

    def keeps_the_bounds(self, batch: list[Item]) -> None:
        assert len({len(i.ids) for i in batch}) == 1
        assert len(batch) <= LIMITS.rows_of(len(batch[0].ids))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.scheduler) == len(self.waiting)

    @invariant()
    def front_ends_see_it(self) -> None:
        for priority in Priority:
            tokens: dict[int, int] = {}
            for each in self.waiting.values():
                if each.priority is priority:
                    tokens[each.flow] = tokens.get(each.flow, 0) + len(each.ids)
            part = self.scheduler.backlog.part(priority)
            assert (part[TOTAL], part[ACTIVE]) == (sum(tokens.values()), len(tokens))
            assert {n: words for n, words in enumerate(part[FIRST:]) if words} == tokens


class AgainstMixed(Against):
    """The same with texts of several lengths in a batch; within a flow none overtakes another."""

    limits = MIXED

    def keeps_the_bounds(self, batch: list[Item]) -> None:
        assert len(batch) <= MIXED.rows
        assert len(batch) == 1 or sum(len(i.ids) for i in batch) <= MIXED.tokens
        taken: dict[tuple[int, int], list[int]] = {}
        for each in batch:
            taken.setdefault((each.owner, each.flow), []).append(each.sequence)
        for (owner, flow), numbers in taken.items():
            same = owner, flow, batch[0].priority
            left = [i.sequence for i in self.waiting.values() if (i.owner, i.flow, i.priority) == same]
            assert max(numbers) < min(left, default=FAR)


for machine in (Against, AgainstMixed):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAgainstModel, TestAgainstModelMixed = Against.TestCase, AgainstMixed.TestCase
