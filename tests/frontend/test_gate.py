from __future__ import annotations

import time

import pytest

from frontend.gate import Gate
from ipc.backlog import ACTIVE, FIRST, TOTAL, Backlog
from ipc.errors import DeadlineExceeded, Overloaded
from ipc.priority import Priority

INTERACTIVE, BULK = Priority.INTERACTIVE, Priority.BULK
MOST = {INTERACTIVE: 1.0, BULK: 5.0}


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
    gate.check_texts(INTERACTIVE, 0, after(30), tokens=100)
    assert gate.refused == 0


def test_what_would_wait_too_long_is_told_when_to_come_again() -> None:
    gate = gate_before(400)
    with pytest.raises(Overloaded, match=r"a request waits 4\.0 s") as caught:
        gate.check(INTERACTIVE, 0, after(30))
    assert caught.value.retry_after == 3
    assert gate.refused == 1


def test_each_class_has_its_own_bound() -> None:
    gate_before(400, priority=BULK).check(BULK, 0, after(30))
    gate_before(400, priority=BULK).check(INTERACTIVE, 0, after(30))
    with pytest.raises(Overloaded):
        gate_before(600, priority=BULK).check(BULK, 0, after(30))


def test_a_deadline_can_be_nearer_than_the_bound() -> None:
    with pytest.raises(Overloaded):
        gate_before(80).check(INTERACTIVE, 0, after(0.5))


def test_another_keys_backlog_is_nobody_elses() -> None:
    gate_before(10_000, flow=1).check(INTERACTIVE, 2, after(30))


def test_nothing_waits_so_nothing_is_refused_however_near_the_deadline() -> None:
    gate_before(0).check(INTERACTIVE, 0, after(-1))


def test_texts_that_cannot_be_done_in_time_are_not_begun() -> None:
    gate = gate_before(0)
    gate.check_texts(INTERACTIVE, 0, after(10), tokens=1500)
    with pytest.raises(DeadlineExceeded, match=r"about 30\.0 s"):
        gate.check_texts(INTERACTIVE, 0, after(10), tokens=3000)


def test_without_an_engine_the_breaker_decides() -> None:
    gate = Gate(MOST, lambda: None)
    gate.check(INTERACTIVE, 0, after(-1))
    gate.check_texts(INTERACTIVE, 0, after(0), tokens=10**9)
