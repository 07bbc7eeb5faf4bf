from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.queue import Item, Queue
from ipc.backlog import Backlog
from ipc.priority import Priority

numbers = itertools.count()


def item(flow: int, length: int = 1, *, owner: int = 1) -> Item:
    return Item(owner, next(numbers), np.zeros(length, np.int32), Priority.INTERACTIVE, 2**62, 0, flow)


def queue_of(*items: Item) -> Queue:
    queue = Queue(1000, Backlog.private().part(Priority.INTERACTIVE), by_length=True)
    for each in items:
        queue.add(each)
    return queue


def run(queue: Queue, count: int) -> list[Item]:
    taken = list(itertools.islice(queue.in_turn(), count))
    queue.run(taken)
    return taken


def test_one_flow_goes_by_age() -> None:
    items = [item(3) for _ in range(5)]
    assert run(queue_of(*items), 5) == items


def test_flows_get_equal_tokens_not_equal_texts() -> None:
    queue = queue_of(*(item(1, 30) for _ in range(20)), *(item(2, 10) for _ in range(60)))
    tokens = {1: 0, 2: 0}
    for each in run(queue, 40):
        tokens[each.flow] += len(each.ids)
    assert abs(tokens[1] - tokens[2]) <= 30


def test_who_was_away_has_saved_nothing_up() -> None:
    queue = queue_of(item(1), item(2))
    run(queue, 2)
    for each in [item(1) for _ in range(50)]:
        queue.add(each)
    run(queue, 40)
    for each in [item(2) for _ in range(50)]:
        queue.add(each)
    flows = [each.flow for each in run(queue, 10)]
    assert flows.count(1) == flows.count(2) == 5


def test_a_new_flow_waits_for_nobody_elses_backlog() -> None:
    queue = queue_of(*(item(1, 20) for _ in range(100)))
    run(queue, 50)
    queue.add(late := item(2))
    assert late in run(queue, 2)


def test_who_runs_alone_for_long_is_not_made_to_pay_for_it() -> None:
    queue = queue_of(*(item(1) for _ in range(100)))
    run(queue, 90)
    queue.add(item(2))
    run(queue, 2)
    assert {each.flow for each in run(queue, 5)} == {1}


def test_who_is_passed_over_has_no_claim_to_make_up_for_it() -> None:
    queue = queue_of(*(item(1, owner=1) for _ in range(50)), *(item(2, owner=2) for _ in range(100)))
    for _ in range(40):
        (taken,) = itertools.islice(queue.in_turn(frozenset({1})), 1)
        assert taken.flow == 2
        queue.run([taken])
    flows = [each.flow for each in run(queue, 10)]
    assert abs(flows.count(1) - flows.count(2)) <= 2


@given(st.lists(st.integers(0, 9), max_size=200))
def test_a_flow_that_has_nothing_finds_a_place_whatever_others_ask_for(asked: list[int]) -> None:
    most = 30
    queue = Queue(most, Backlog.private().part(Priority.INTERACTIVE), by_length=False)
    for flow in asked:
        if queue.has_room(flow):
            queue.add(item(flow))
    assert len(queue.waiting) <= most
    assert all(queue.has_room(flow) for flow in range(10) if flow not in queue.line.flows)
    # One alone gets half.
    assert max(map(len, queue.line.flows.values()), default=0) <= most / 2
    for each in list(queue.waiting.values()):
        queue.remove(each)
    for _ in range(most // 2):
        assert queue.has_room(0)
        queue.add(item(0))
    assert not queue.has_room(0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.booleans()), max_size=60))
def test_flows_that_wait_are_never_further_apart_than_the_longest_text(steps: list[tuple[int, int, bool]]) -> None:
    queue = queue_of()
    served: dict[int, int] = {}
    waiting: set[int] = set()
    for flow, length, takes in steps:
        queue.add(item(flow, length))
        if takes:
            (taken,) = run(queue, 1)
            served[taken.flow] = served.get(taken.flow, 0) + len(taken.ids)
        if waiting != set(queue.line.flows):
            # Fairness is among those that wait all the time.
            waiting, served = set(queue.line.flows), {}
        amounts = [served.get(each, 0) for each in waiting]
        assert max(amounts, default=0) - min(amounts, default=0) <= 2 * 9
