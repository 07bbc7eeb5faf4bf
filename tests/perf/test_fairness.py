from __future__ import annotations

import msgspec
import pytest

import perf.fairness
from perf.fairness import Turn, measure, summarize
from perf.overload_tables import fairness_table
from perf.record import Report
from tests.perf.reports import report


def test_the_median_turn_counts() -> None:
    turns = [Turn(report(10), report(p99), report(1)) for p99 in (20, 29, 100)]
    found = summarize(turns)
    assert (found.ratio.median, found.failed, found.is_met("bulk")) == (2.9, 0, True)


@pytest.mark.parametrize(
    "beside", [report(31), report(None), report(20, errors={"429": 1}), report(20, dropped=1)], ids=range(4)
)
def test_what_misses_the_target(beside: Report) -> None:
    assert not summarize([Turn(report(10), beside, report(1))]).is_met("bulk")


def test_a_greedy_key_may_take_its_turns_but_nobody_is_refused_for_it() -> None:
    assert summarize([Turn(report(10), report(200), report(1))]).is_met("greedy")
    assert not summarize([Turn(report(10), report(20, errors={"429": 1}), report(1))]).is_met("greedy")


def test_the_others_failures_are_its_own() -> None:
    assert summarize([Turn(report(10), report(12), report(1, errors={"429": 100}))]).is_met("bulk")


@pytest.mark.timeout(120)
def test_both_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf.fairness, "WARM_UP_SECONDS", 0.3)
    found = measure(1, 1)
    assert set(found) == {"bulk", "greedy"}
    for each in found.values():
        assert each.failed == 0, "the modest key is refused nothing"
        assert each.turns[0].other.requests > 0
    assert "| bulk |" in fairness_table(msgspec.to_builtins(found))
