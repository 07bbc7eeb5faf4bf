from __future__ import annotations

import pytest

from perf.alone import Alone
from perf.ceiling import cpu_ratios, ratios
from perf.http import Connection
from perf.phases import Phase, Runs
from perf.record import Report


def phase(rate: float, cpu: float) -> Phase:
    report = Report(
        mode="closed",
        connections=1,
        seconds=1.0,
        achieved_rate=rate,
        requests=1,
        distinct=1,
        errors={},
        latency_ms=None,
        generator_cpu_us=1.0,
    )
    return Phase(
        texts_rate=rate,
        batch=None,
        cpu_us={"engine": cpu - 100, "generator": 100},
        engine_us={},
        shares={},
        foreign=0.0,
        report=report,
    )


def test_a_ratio_compares_with_both_neighbours() -> None:
    alone = [Alone(16, 100.0, 1000.0), Alone(16, 300.0, 3000.0), Alone(16, 100.0, 1000.0)]
    served = [phase(180.0, 4000.0), phase(100.0, 2000.0)]
    assert ratios(alone, served) == pytest.approx([0.9, 0.5])
    assert cpu_ratios(alone, served) == pytest.approx([0.5, 1.0])


def test_runs_of_the_model_are_told_apart_by_their_time() -> None:
    runs, connection = Runs(), Connection(lambda _: None)
    assert runs.mean() is None
    for compute in (b"1.234", b"1.234", b"5.678", b"5.678", b"5.678"):
        connection.head = b"HTTP/1.1 200 OK\r\nx-inference-time: " + compute
        assert runs(connection)
    assert runs.mean() == 2.5
