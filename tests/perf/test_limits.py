from __future__ import annotations

from pathlib import Path

from perf.limits import PROCESSES, measure, measure_all
from perf.report import limits_table


def test_every_scenario_is_measured_and_has_a_row() -> None:
    found = measure_all(0.2)
    assert len(found) == 8
    for name, cost in found.items():
        assert (cost.decisions > 0) is not name.startswith("no store")
        assert cost.p50_us <= cost.p99_us
    table = limits_table({name: vars_of(cost) for name, cost in found.items()})
    assert all(name in table for name in found)


def test_processes_are_measured_together(tmp_path: Path) -> None:
    one, four = (measure(tmp_path, "", processes, 0.2) for processes in (1, PROCESSES))
    assert four.decisions == PROCESSES * one.decisions


def vars_of(cost: object) -> dict[str, float]:
    return {name: getattr(cost, name) for name in ("p50_us", "p99_us", "stall_ms")}
