from __future__ import annotations

import msgspec
import pytest

import perf.restart
from perf.operation_tables import restart_table
from perf.restart import Span, line, measure, summarize
from tests.perf.reports import report


def span(p99: float, took: float | None = None) -> Span:
    return Span(report(p99), took)


def test_the_ratio_is_of_spans_of_one_turn() -> None:
    found = summarize(200, 100, [span(10), span(20)], [span(15, 5), span(50, 6)])
    assert (found.p99_ratio.min, found.p99_ratio.max) == (1.5, 2.5)
    assert not found.is_met
    assert summarize(200, 100, [span(10)], [span(19, 5)]).is_met


@pytest.mark.parametrize("fault", [{"errors": {"broken": 1}}, {"dropped": 1}])
def test_one_failed_request_is_one_too_many(fault: dict[str, object]) -> None:
    good = span(19, 5)
    bad = Span(msgspec.structs.replace(good.report, **fault), 5)
    found = summarize(200, 100, [span(10)], [bad])
    assert found.failed == 1
    assert not found.is_met


def test_a_restart_under_load_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf.restart, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(perf.restart, "DISTINCT_TEXTS", 2000)
    found = measure(1, 0.5, 1)
    assert found.failed == 0
    assert found.rate == found.capacity / 2 > 0
    assert found.quiet[0].restart_seconds is None
    assert found.restarted[0].restart_seconds is not None
    assert "0 failed: restarted in" in line(found.restarted[0])
    table = restart_table(msgspec.to_builtins(found))
    assert "| with a restart |" in table
