from __future__ import annotations

import select
import time

import numpy as np
import pytest

from perf.pacing import Pacer, Schedule, Timer, make_schedule


class Clock:
    """A clock that stands still until it is told to go on, and the pacer's alarm."""

    def __init__(self) -> None:
        self.now = 0
        self.alarm: int | None = None
        self.gone: list[tuple[int, int, int]] = []

    def read(self) -> int:
        return self.now

    def arm(self, at: int) -> None:
        self.alarm = at

    def depart(self, number: int, scheduled: int) -> None:
        self.gone.append((number, scheduled, self.now))

    def pacer(self, times: list[int], start: int = 0) -> Pacer:
        return Pacer(np.array(times, np.int64), start, self.read, self.arm, self.depart)

    def go_to(self, now: int, pacer: Pacer) -> None:
        self.now = now
        pacer.wake()


def test_pacer_waits_for_the_first_departure() -> None:
    clock = Clock()
    pacer = clock.pacer([5, 10], start=100)
    pacer.wake()
    assert (clock.gone, clock.alarm) == ([], 105)


def test_pacer_keeps_to_absolute_times_after_a_late_wake_up() -> None:
    clock = Clock()
    pacer = clock.pacer([0, 10, 20, 30])
    clock.go_to(0, pacer)
    clock.go_to(25, pacer)
    assert clock.gone == [(0, 0, 0), (1, 10, 25), (2, 20, 25)]
    assert clock.alarm == 30, "lateness must not move the departures that follow"


def test_pacer_reports_each_departures_own_lag() -> None:
    clock = Clock()
    pacer = clock.pacer([0, 10, 20])
    clock.go_to(3, pacer)
    clock.go_to(27, pacer)
    assert pacer.lags.tolist() == [3, 17, 7]
    assert pacer.is_finished


def test_pacer_sees_time_pass_while_it_departs() -> None:
    clock = Clock()

    def depart(number: int, scheduled: int) -> None:
        clock.depart(number, scheduled)
        clock.now += 10

    pacer = Pacer(np.array([0, 10, 100], np.int64), 0, clock.read, clock.arm, depart)
    pacer.wake()
    assert [number for number, _, _ in clock.gone] == [0, 1]
    assert clock.alarm == 100


def test_constant_schedule_is_evenly_spaced() -> None:
    assert make_schedule("constant", 1000, 0.005).tolist() == [0, 1_000_000, 2_000_000, 3_000_000, 4_000_000]


@pytest.mark.parametrize("rate", [3.0, 500.0, 7000.0])
def test_poisson_schedule_has_the_rate_and_the_spread_of_a_poisson_process(rate: float) -> None:
    seconds = 20_000 / rate
    schedule = make_schedule("poisson", rate, seconds)
    gaps = np.diff(schedule) / 1e9
    assert len(schedule) == pytest.approx(20_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert gaps.min() >= 0
    assert schedule[-1] < seconds * 1e9


def test_poisson_schedule_is_repeatable() -> None:
    def times(seed: int) -> Schedule:
        return make_schedule("poisson", 100, 1, seed)

    assert np.array_equal(times(1), times(1))
    assert not np.array_equal(times(1)[:50], times(2)[:50])


def test_timer_fires_at_a_past_time_and_not_before_a_future_one() -> None:
    timer = Timer()
    poll = select.poll()
    poll.register(timer, select.POLLIN)
    timer.arm(time.monotonic_ns() + 3600 * 10**9)
    assert not poll.poll(0)
    timer.arm(0)
    assert poll.poll(10_000)
    timer.drain()
    assert not poll.poll(0)
    timer.close()
