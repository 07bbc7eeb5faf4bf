from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.gate import ROUNDS_TO_BE_SEEN, Gate, Unseen
from ipc.backlog import ACTIVE, FIRST, TOTAL, Backlog
from ipc.errors import DeadlineExceeded, Overloaded
from ipc.priority import Priority

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
MOST = 1.0


def gate_before(tokens: int, *, flow: int = 0, priority: Priority = INTERACTIVE, rate: int = 100) -> Gate:
    backlog = Backlog.private()
    backlog.rate = rate
    part = backlog.part(priority)
    part[TOTAL] = part[FIRST + flow] = tokens
    part[ACTIVE] = bool(tokens)
    return Gate(MOST, lambda: backlog)


def after(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def test_what_the_engine_comes_to_in_time_passes() -> None:
    gate = gate_before(100)
    gate.check(INTERACTIVE, 0, after(30))
    gate.admit(INTERACTIVE, 0, after(30), tokens=100)


def test_what_would_wait_too_long_is_told_when_to_come_again() -> None:
    gate = gate_before(400)
    with pytest.raises(Overloaded, match=r"a request waits 4\.0 s") as caught:
        gate.check(INTERACTIVE, 0, after(30))
    assert caught.value.retry_after == 3


def test_what_is_interactive_does_not_wait_for_bulk() -> None:
    gate_before(400, priority=BULK).check(INTERACTIVE, 0, after(30))
    with pytest.raises(Overloaded):
        gate_before(400, priority=BULK).check(BULK, 0, after(30))


def test_a_deadline_can_be_nearer_than_the_bound() -> None:
    gate_before(80).check(INTERACTIVE, 0, after(1.2))
    with pytest.raises(Overloaded):
        gate_before(80).check(INTERACTIVE, 0, after(1.0))


def test_another_keys_backlog_is_nobody_elses() -> None:
    gate_before(10_000, flow=1).check(INTERACTIVE, 2, after(30))


def test_nothing_waits_so_nothing_is_refused_however_near_the_deadline() -> None:
    gate_before(0).check(INTERACTIVE, 0, after(-1))


def test_texts_that_cannot_be_done_in_time_are_not_begun() -> None:
    gate_before(0).admit(INTERACTIVE, 0, after(10), tokens=1500)
    with pytest.raises(DeadlineExceeded, match=r"about 30\.0 s"):
        gate_before(0).admit(INTERACTIVE, 0, after(10), tokens=3000)


def test_what_has_left_counts_until_the_engine_has_read_it() -> None:
    backlog = Backlog.private()
    backlog.rate = 100
    gate = Gate(MOST, lambda: backlog)
    gate.admit(INTERACTIVE, 1, after(30), tokens=150)
    with pytest.raises(Overloaded):
        gate.check(INTERACTIVE, 1, after(30))
    gate.check(INTERACTIVE, 2, after(30))
    gate.check(BULK, 1, after(30))
    backlog.end_round()
    with pytest.raises(Overloaded):
        gate.admit(INTERACTIVE, 1, after(30), tokens=1)
    backlog.end_round()
    gate.admit(INTERACTIVE, 1, after(30), tokens=1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 99)), max_size=50))
def test_nothing_is_unseen_for_longer_than_two_rounds(steps: list[tuple[int, int, int]]) -> None:
    unseen, sent, rounds = Unseen(), list[tuple[int, int, int]](), 0
    for turned, flow, tokens in steps:
        rounds += turned
        unseen.send(rounds, (BULK, flow), tokens)
        sent.append((rounds, flow, tokens))
        for each in range(4):
            recent = sum(t for r, f, t in sent if f == each and r > rounds - ROUNDS_TO_BE_SEEN)
            assert unseen.of(rounds, (BULK, each)) == recent


def test_a_new_engine_has_read_nothing_that_the_last_one_was_sent() -> None:
    unseen = Unseen()
    unseen.send(1000, (BULK, 1), 7)
    assert unseen.of(0, (BULK, 1)) == 0


def test_without_an_engine_the_breaker_decides() -> None:
    gate = Gate(MOST, lambda: None)
    gate.check(INTERACTIVE, 0, after(-1))
    gate.admit(INTERACTIVE, 0, after(0), tokens=10**9)


def test_crowded_is_what_may_refuse_somebody() -> None:
    assert not gate_before(100).is_crowded(30)
    assert gate_before(101).is_crowded(30)
    assert gate_before(101, priority=BULK).is_crowded(30)
    assert gate_before(40).is_crowded(0.5)
    assert not Gate(MOST, lambda: None).is_crowded(0)
