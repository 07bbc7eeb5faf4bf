from __future__ import annotations

import msgspec
import pytest

import perf.overload
from perf.http import Target, build_request
from perf.overload import DEADLINE_MS, Found, Kind, Overload, line, measure, with_deadline
from perf.overload_tables import overload_table
from perf.stats import Percentiles


def times(p99: float) -> Percentiles:
    return Percentiles(1, 2, p99, p99, p99)


GOOD = Overload(
    factor=2,
    peaks=(100, 100),
    offered=200,
    achieved=95,
    goodput=0.95,
    accepted_ms=times(1500),
    refused=100,
    refused_ms=times(4),
    other_errors={},
    void=(),
    quiet_before_ms=times(10),
    quiet_after_ms=times(12),
    failed_after=0,
    memory_before=500,
    memory_after=510,
    cores={"generator": 0.1, "frontends": 0.3, "engine": 1.5, "lanes": 1.4},
    peak_cores={"generator": 0.1, "frontends": 0.1, "engine": 1.8, "lanes": 1.7},
)


def test_all_targets_can_be_met() -> None:
    assert GOOD.missed() == []
    assert "PASS" in line(Kind("a", 1, 1, 1), GOOD)
    assert Found("a", [GOOD]).missed() == []


def test_a_turn_does_not_tell_of_goodput() -> None:
    assert line(Kind("a", 1, 1, 1), msgspec.structs.replace(GOOD, goodput=0.5)).endswith(
        "but for goodput, which all turns tell"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accepted_ms": times(DEADLINE_MS + 1)}, "too late"),
        ({"accepted_ms": None}, "too late"),
        ({"refused_ms": times(11)}, "refusals"),
        ({"other_errors": {"504": 1}}, "504"),
        ({"memory_after": 600}, "memory"),
        ({"quiet_after_ms": times(20)}, "not normal"),
        ({"quiet_after_ms": None}, "not normal"),
        ({"failed_after": 1}, "not normal"),
    ],
)
def test_each_of_them_can_be_missed(change: dict[str, object], said: str) -> None:
    (missed,) = msgspec.structs.replace(GOOD, **change).missed()
    assert said in missed


def found(*goodputs: float) -> Found:
    return Found("a", [msgspec.structs.replace(GOOD, goodput=goodput) for goodput in goodputs])


def test_goodput_is_judged_by_the_median_of_its_factor() -> None:
    assert found(0.80, 0.90, 0.95).missed() == []
    (missed,) = found(0.80, 0.89, 0.95).missed()
    assert "goodput 0.89 at 2 times" in missed
    other = [msgspec.structs.replace(GOOD, factor=5, goodput=0.5)]
    (missed,) = Found("a", found(0.95).overloads + other).missed()
    assert "goodput 0.50 at 5 times" in missed


def test_all_else_is_missed_where_one_turn_missed_it() -> None:
    late = msgspec.structs.replace(GOOD, other_errors={"504": 1})
    (missed,) = Found("a", [GOOD, GOOD, late]).missed()
    assert "504" in missed


def test_the_table_has_a_row_for_each_factor() -> None:
    *_, row = overload_table(msgspec.to_builtins({"kinds": [found(0.80, 0.90, 0.95)]})).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["a", "2", "200", "0.90 (0.80–0.95)"]
    assert cells[4:7] == ["1500", "300", "4.0"]


def test_a_deadline_is_a_header() -> None:
    request = build_request(Target("h", 1, "k"), ["a"])
    head, _, body = with_deadline(request).partition(b"\r\n\r\n")
    assert f"X-Request-Timeout-Ms: {DEADLINE_MS}".encode() in head.split(b"\r\n")
    assert body == request.partition(b"\r\n\r\n")[2]


def test_far_above_capacity_some_are_answered_and_the_rest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf.overload, "FACTORS", (5,))
    monkeypatch.setattr(perf.overload, "WARM_UP_SECONDS", 0.5)
    measured = measure(Kind("one text of 128 tokens", 128, 1, 24), 2, turns=1)
    (overload,) = measured.overloads
    assert overload.refused > 0
    assert overload.accepted_ms is not None
    assert overload.goodput == pytest.approx(overload.achieved / (sum(overload.peaks) / 2))
    assert "| one text of 128 tokens | 5 |" in overload_table(msgspec.to_builtins({"kinds": [measured]}))
