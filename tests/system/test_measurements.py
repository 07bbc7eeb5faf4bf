"""The measurements themselves, as short as can be, against real servers: what they find, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.bench import Plan, run_bench
from perf.ladder import CannotStart, Rung, climb
from perf.load_test import LoadTest, run_locust, run_open
from perf.phases import Server
from perf.plots import plot_ladder
from perf.protocols import WAYS
from perf.protocols import measure as measure_protocols
from perf.report import markdown
from perf.restarts import measure_restarts
from perf.results import load_result, make_result, save_result
from perf.scrapes import Done
from perf.scrapes import measure as measure_scrapes
from perf.stack import Stack
from perf.tracing import OFF, VARIABLES
from perf.tracing import measure as measure_tracing

pytestmark = pytest.mark.system

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.timeout(300)
def test_a_bench_judges_every_target_and_makes_a_table(tmp_path: Path) -> None:
    said: list[str] = []
    with Stack() as stack:
        bench = run_bench(stack, Plan(1, 0.3, 0.3, 0.3, 0.3), 50, 2, said.append)
    assert said
    assert len(bench.verdicts) == len(bench.met) == 10
    assert bench.met["vectors with other bits"] and bench.met["requests without a right answer"]
    assert all(bench.exactness.vectors.values())
    assert set(bench.open["poisson"].cpu_us) >= {"engine", "frontend-0", "frontend-1", "generator-0", "generator-1"}
    assert bench.open["constant"].shares
    table = markdown(load_result(save_result(make_result("bench", "python -m perf.bench", {}, bench), tmp_path)))
    assert all(f"| {verdict.target} |" in table for verdict in bench.verdicts)


def test_every_protocol_is_asked_and_makes_a_table(tmp_path: Path) -> None:
    found = measure_protocols(1, 0.4, [1])
    assert set(found.served) > set(found.alone)
    for ways in (*found.served.values(), *found.alone.values()):
        assert set(ways) == set(WAYS)
        assert ways["json"].p50_of_json.median == 1
        assert all(way.frontend_us.min > 0 and way.generator_us.min > 0 for way in ways.values())
    assert set(found.libraries) == {"openai", "httpx, raw", "grpcio"}
    table = markdown(load_result(save_result(make_result("protocols", "python", {}, found), tmp_path)))
    assert all(f"| {name} |" in table for name in (*WAYS, *found.libraries))


def test_a_ladder_measures_every_rung_and_makes_a_table_and_plots(tmp_path: Path) -> None:
    rungs = {
        "single": Rung("One text a run", {"max_batch_rows": 1}),
        "cache": Rung("A cache", {"cache_mb": 32}, is_repeated=True),
    }
    ladder = climb(rungs, rate=50, rounds=1, seconds=0.4, step_seconds=0.2, warm_up=0.2, say=lambda _: None)
    single, cache = ladder.rungs["single"], ladder.rungs["cache"]
    assert single.relative.median == 1.0
    # Told from times: two runs that took equally long, to the microsecond, look like one.
    assert single.saturation[0].batch == pytest.approx(1.0, abs=0.2)
    assert single.open[0].served is not None and single.open[0].served.hits == 0
    assert cache.open[0].served is not None and cache.open[0].served.hits > 0
    assert single.cdf_ms == sorted(single.cdf_ms)
    result = load_result(save_result(make_result("ladder", "python -m perf.ladder", {}, ladder), tmp_path))
    assert all(f"| {rung.title} " in markdown(result) for rung in rungs.values())
    images = plot_ladder(result, tmp_path)
    assert len(images) == 3
    assert all(image.read_bytes().startswith(PNG) for image in images)


def test_a_rung_that_cannot_start_says_why_before_anything_is_measured() -> None:
    rungs = {"bad": Rung("Without rows", {"max_batch_rows": 0})}
    with pytest.raises(CannotStart, match=r"'Without rows' does not start: .*EMBEDLANE_MAX_BATCH_ROWS is not valid"):
        climb(rungs, rate=1, rounds=1, seconds=1, step_seconds=1)


def test_the_original_load_test_and_the_open_loop_beside_it(tmp_path: Path) -> None:
    with Stack() as stack:
        closed = run_locust(stack, 2)
        opened = run_open(Server(stack), 0.5, 20)
    assert closed.requests > 0
    assert closed.failures == 0
    assert opened.report.errors == {}
    result = make_result("load-test", "python -m perf.load_test", {}, LoadTest(closed, opened))
    assert "closed loop, Locust, 50 users" in markdown(load_result(save_result(result, tmp_path)))


def test_scrapes_take_turns_with_quiet_rounds_and_come_after_restarts(tmp_path: Path) -> None:
    said: list[str] = []
    with Stack() as stack:
        load = measure_scrapes(Server(stack), rounds=1, seconds=0.5, scrapes=20, say=said.append)
    assert len(said) == 4
    assert [each.scrapes is None for each in load.rounds] == [True, False, True]
    assert (load.scrapes, load.errors) == (20, {})
    assert load.scrape_ms.max >= load.scrape_ms.p50 > 0
    restarted = measure_restarts(0, said.append, passes=1)
    assert (restarted.restarts, restarted.files) == (0, 27)
    result = make_result("scrapes", "python -m perf.scrapes", {}, Done(load, restarted))
    text = markdown(load_result(save_result(result, tmp_path)))
    assert "| 20 under load | " in text
    assert "| 8 front ends after 0 were killed (27 files, " in text


def test_the_cost_of_spans_is_measured_each_way(tmp_path: Path) -> None:
    ways = {name: VARIABLES[name] for name in (OFF, "all requests")}
    costs = measure_tracing(rounds=1, seconds=0.2, ways=ways)
    assert costs.keys() == ways.keys()
    # In phases so short a ratio says nothing.
    assert all(cost.frontend_us.min > 0 and cost.times.min > 0 for cost in costs.values())
    result = make_result("tracing", "python -m perf.tracing", {}, costs)
    assert "| all requests | " in markdown(load_result(save_result(result, tmp_path)))
