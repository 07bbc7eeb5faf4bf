from __future__ import annotations

import pytest

from engine.rates import BulkRate, Rate


def test_the_rate_is_that_of_all_lanes() -> None:
    assert Rate(lanes=2).after(tokens=100, compute_ns=50_000_000) == 4000


def test_large_batches_count_for_more() -> None:
    rate = Rate(lanes=1)
    rate.after(tokens=1, compute_ns=1_000_000_000)
    assert rate.after(tokens=1000, compute_ns=1_000_000_000) > 500


def test_what_was_is_forgotten() -> None:
    rate = Rate(lanes=1)
    rate.after(tokens=1_000_000, compute_ns=1_000_000)
    latest = [rate.after(tokens=10, compute_ns=1_000_000_000) for _ in range(1000)]
    assert latest == sorted(latest, reverse=True)
    assert latest[-1] == pytest.approx(10, abs=1)


def test_one_batch_that_was_stopped_changes_little() -> None:
    rate = Rate(lanes=1)
    for _ in range(100):
        usual = rate.after(tokens=100, compute_ns=10_000_000)
    assert rate.after(tokens=100, compute_ns=60_000_000_000) > 0.8 * usual


def test_a_clock_that_stands_still_breaks_nothing() -> None:
    assert Rate(lanes=1).after(tokens=1, compute_ns=0) == 1_000_000_000


def test_a_rate_given_at_first_counts_as_a_batch() -> None:
    rate = Rate(lanes=2, first=4000)
    assert rate.after(tokens=100, compute_ns=50_000_000) == 4000
    assert 4000 > rate.after(tokens=1, compute_ns=10_000_000_000) > 1000, "a stall is bounded from the first on"


SECOND = 1_000_000_000


def test_bulk_is_thought_to_get_what_others_leave() -> None:
    rate = BulkRate()
    assert rate.after(2 * SECOND, 1000, interactive=600, bulk=0, waited=False) == 700
    assert rate.after(3 * SECOND, 1000, interactive=0, bulk=0, waited=False) == 1000


def test_bulk_that_waits_gets_what_it_got() -> None:
    rate = BulkRate()
    assert rate.after(SECOND, 1000, interactive=200, bulk=500, waited=True) == 500
    assert rate.after(2 * SECOND, 1000, interactive=200, bulk=300, waited=True) == 400
    assert rate.after(3 * SECOND, 1000, interactive=200, bulk=10, waited=False) == 800, "what it got then says nothing"
    assert rate.after(4 * SECOND, 1000, interactive=200, bulk=600, waited=True) == 600


@pytest.mark.parametrize("waited", [False, True])
def test_bulk_gets_something_and_no_more_than_there_is(waited: bool) -> None:
    rate = BulkRate()
    assert rate.after(SECOND, 1600, interactive=5000, bulk=0, waited=waited) == 100
    assert rate.after(2 * SECOND, 1600, interactive=0, bulk=9000, waited=waited) == 1600
    assert rate.after(3 * SECOND, 0, interactive=0, bulk=0, waited=waited) == 0, "nobody knows"
