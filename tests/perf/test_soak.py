from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import perf.soak
from perf.http import Connection
from perf.plots import plot_soak
from perf.procfs import Usage
from perf.record import Report
from perf.report import markdown
from perf.results import load_result, make_result, save_result
from perf.soak import Plan, Timeline, measure, parts_of
from perf.soak_verdicts import Part, Soak, judge
from perf.stats import Percentiles, spread
from perf.watch import GENERATOR, Tracks

POINTS = 120
PROCESSES = {"engine": 360.0, "frontend-0": 100.0, "serve": 60.0}


def tracks(**changed: list[float]) -> Tracks:
    """An hour in which nothing changes but the series that are given as kind_name."""
    seconds = [30.0 * n for n in range(POINTS)]
    flat = {name: [level + math.sin(n) for n in range(POINTS)] for name, level in PROCESSES.items()}
    counts = {name: [50.0] * POINTS for name in PROCESSES}
    growing = {GENERATOR: [100.0 + n for n in range(POINTS)]}
    values = {
        "rss": flat | growing,
        "descriptors": counts | growing,
        "mappings": counts | growing,
        "files": {"run": [12.0] * POINTS, "metrics": [9.0] * POINTS},
        "rows": {"lent": [n % 7.0 for n in range(POINTS)]},
    }
    for name, series in changed.items():
        kind, _, process = name.partition("_")
        values[kind] = {**values[kind], process: series}
    return Tracks(seconds, values)


def part(p99: float) -> Part:
    return Part(
        answers=360_000,
        latency_ms=Percentiles(20, 30, p99, 90, 120),
        lag_p99_ms=3,
        cpu_us={"engine": 900.0},
        foreign=0.01,
    )


def soak(**changed: Any) -> Soak:
    """One that meets all targets, but for what is changed."""
    report = Report(
        mode="open",
        connections=1024,
        seconds=3600,
        achieved_rate=600,
        requests=2_160_000,
        distinct=5000,
        errors={},
        latency_ms=Percentiles(20, 30, 60, 90, 120),
        generator_cpu_us=100,
        offered_rate=600,
    )
    found = Soak(
        seconds=3600,
        capacity_before=spread([740, 750, 760]),
        capacity_after=spread([720, 740, 750]),
        rate=600,
        report=msgspec.structs.replace(report, **changed.pop("report", {})),
        probes={"answered": 1442},
        complaints={"WARNING slow": 2},
        rows_left=0,
        parts=[part(60), *(part(70),) * 4, part(63)],
        latency_ms=[Percentiles(20, 30, 60 + n % 5, 90, 120) for n in range(59)] + [None],
        tracks=tracks(),
    )
    return judge(msgspec.structs.replace(found, **changed))


def missed(found: Soak) -> list[str]:
    return [verdict.target for verdict in found.verdicts if not verdict.is_met]


def test_a_steady_hour_meets_every_target() -> None:
    found = soak()
    assert missed(found) == []
    assert found.is_met
    targets = [verdict.target for verdict in found.verdicts]
    assert targets[3:6] == ["memory of engine", "memory of frontend-0", "memory of serve"]
    assert found.verdicts[0].measured == (
        "600 of 600 requests/s for 60 min, which is 80% of capacity before and 81% of that after"
    )


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({"report": {"achieved_rate": 500}}, "the load was held"),
        ({"report": {"void": ("the generator was late: p99 9.0 ms",)}}, "the load was held"),
        ({"report": {"errors": {"wrong": 1}}}, "failed requests"),
        ({"report": {"dropped": 1}}, "failed requests"),
        ({"probes": {"answered": 1441, "failed /ready": 1}}, "failed requests"),
        ({"complaints": {"ERROR broken": 1}}, "errors in the log"),
        ({"rows_left": 1}, "rows lent in the end"),
        ({"parts": [part(60)] * 5 + [part(66.1)]}, "p99 in the last 10 minutes, of the first"),
        ({"parts": [part(60)] * 5 + [part(53.9)]}, "p99 in the last 10 minutes, of the first"),
        (
            {"parts": [part(60)] * 5 + [msgspec.structs.replace(part(60), answers=0, latency_ms=None)]},
            "p99 in the last 10 minutes, of the first",
        ),
        (
            {"tracks": tracks(**{"rss_frontend-0": [100 + n / 30 + math.sin(n) for n in range(POINTS)]})},
            "memory of frontend-0",
        ),
        ({"tracks": tracks(rss_engine=[360 - n / 10 for n in range(POINTS)])}, "memory of engine"),
        ({"tracks": tracks(descriptors_engine=[50 + n / 30 for n in range(POINTS)])}, "descriptors"),
        ({"tracks": tracks(mappings_serve=[50 + n / 5 for n in range(POINTS)])}, "mappings"),
        ({"tracks": tracks(files_run=[12.0] * 100 + [13.0] * 20)}, "files"),
    ],
)
def test_each_fault_misses_its_own_target(changed: dict[str, Any], target: str) -> None:
    found = soak(**changed)
    assert missed(found) == [target]
    assert not found.is_met
    assert [each.line.startswith("MISSED ") for each in found.verdicts].count(True) == 1


def test_what_grows_during_the_warm_up_alone_is_flat() -> None:
    grown = [200.0 + min(n, 19) * 10 + math.sin(n) for n in range(POINTS)]
    assert missed(soak(tracks=tracks(rss_engine=grown))) == []


def answer(due: int, took: int) -> Connection:
    connection = Connection(lambda _: None)
    connection.from_ns, connection.answered_ns = due, due + took
    return connection


def test_latencies_are_sorted_by_when_requests_were_due() -> None:
    timeline = Timeline(lambda connection: connection.from_ns != 13)
    # The first that was due is answered late.
    for due, took in ((1_000_000_000, 50), (10, 2_000_000_000), (13, 1), (1_999_999_999, 60)):
        timeline(answer(due, took))
    assert [times.tolist() for times in timeline.split(2, 2)] == [[50, 2_000_000_000], [60]]
    assert timeline.latest().tolist() == [50, 2_000_000_000, 60]
    timeline(answer(2_500_000_000, 70))
    assert timeline.latest().tolist() == [70]
    assert [times.tolist() for times in timeline.split(3, 3)][2] == [70]


def test_nothing_answered_leaves_empty_spans() -> None:
    assert [len(times) for times in Timeline(lambda _: False).split(60, 3)] == [0, 0, 0]


def test_parts_have_what_was_used_in_each() -> None:
    timeline = Timeline(lambda _: True)
    for due in range(0, 6_000_000_000, 500_000_000):
        timeline(answer(due, 1_000_000 * (1 + due // 1_000_000_000)))
    usages = [Usage(1.0, {"engine": 0.5}, {}, n / 10) for n in range(6)]
    lags = [np.array([n * 1_000_000]) for n in range(5)] + [np.zeros(0, np.int64)]
    found = parts_of(timeline, lags, usages, 6)
    assert [each.answers for each in found] == [2] * 6
    assert [each.latency_ms and each.latency_ms.p99 for each in found] == [1, 2, 3, 4, 5, 6]
    assert [each.lag_p99_ms for each in found] == [0, 1, 2, 3, 4, 0]
    assert found[3].cpu_us == {"engine": 250_000}
    assert found[3].foreign == 0.3


@pytest.mark.parametrize(("seconds", "samples"), [(3600, 720), (600, 120), (120, 24), (2, 24), (3599, 720)])
def test_samples_are_taken_where_parts_end(seconds: float, samples: int) -> None:
    plan = Plan(seconds=seconds, share=0.8, kind="short", capacity_seconds=1, turns=1)
    assert plan.samples == samples


def test_the_same_result_gives_the_same_plot_and_a_table(tmp_path: Path) -> None:
    path = save_result(make_result("soak", "python -m perf.soak", {}, soak()), tmp_path)
    assert path.stat().st_size < 200_000
    result = load_result(path)
    (first,), (second,) = plot_soak(result, tmp_path / "a"), plot_soak(result, tmp_path / "b")
    assert first.name == path.with_suffix(".png").name
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    table = markdown(result)
    assert "| memory of frontend-0 | at most " in table
    assert "| 50 to 60 | 360,000 | 20.0 / 63.0 / 120.0 | 3.00 | engine 900 | 1.0% |" in table


def test_a_short_soak_of_a_real_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf.soak, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(perf.soak, "CAPACITY_WARM_UP_SECONDS", 0.5)
    monkeypatch.setattr(perf.soak, "TEXTS", 200)
    monkeypatch.setattr(perf.soak, "CONNECTIONS", 256)
    said: list[str] = []
    # Memory and latency are not at rest in seconds; that nothing fails must hold at once.
    found = measure(Plan(seconds=3, share=0.5, kind="short", capacity_seconds=0.5, turns=1), said.append)
    assert (found.failures, found.rows_left) == ({}, 0)
    assert found.rate == found.capacity_before.median / 2 > 0
    assert found.probes == {"answered": 50}
    assert sum(each.answers for each in found.parts) == found.report.requests > 0
    assert len(found.latency_ms) == 60
    assert found.trends["rss"].keys() == {"engine", "frontend-0", "frontend-1", "supervisord", "serve"}
    assert len(said) == 7
    assert said[1].startswith("0.00833 min: p50 ")
