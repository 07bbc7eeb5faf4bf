from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.trend import find_trend

FLOOR = 1.0
TIMES = [30.0 * n for n in range(100)]
SERIES = st.lists(st.floats(-1, 1), min_size=len(TIMES), max_size=len(TIMES))


@given(SERIES, st.floats(0, 1000))
def test_what_stays_within_the_floor_is_flat_whatever_it_does_there(noise: list[float], level: float) -> None:
    # A line by least squares rises by at most 1.5 times the range of its values.
    assert find_trend(TIMES, [level + each * FLOOR / 3 for each in noise], FLOOR).is_flat


@given(SERIES, st.floats(20, 1000), st.floats(0, 100), st.sampled_from([-1, 1]))
def test_a_drift_is_seen_under_noise_of_an_eighth_of_it(
    noise: list[float], level: float, more: float, sign: int
) -> None:
    drift = sign * (0.02 * level + 2 * FLOOR + more)
    values = [level + drift * (n / len(TIMES) + each / 8) for n, each in enumerate(noise)]
    found = find_trend(TIMES, values, FLOOR)
    assert not found.is_flat
    assert found.growth * sign > 0


@pytest.mark.parametrize("at", [0.02, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98])
def test_a_step_is_no_noise(at: float) -> None:
    values = [100.0 + 20 * (n >= at * len(TIMES)) for n in range(len(TIMES))]
    assert not find_trend(TIMES, values, FLOOR).is_flat


def test_a_line_gives_its_growth_and_has_no_noise() -> None:
    found = find_trend(TIMES, [100 + second / 100 for second in TIMES], FLOOR)
    assert found.growth == pytest.approx(29.7)
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.allowed == pytest.approx(1.14, abs=0.01)
    assert found.first == pytest.approx(102.85)
    assert found.last == pytest.approx(126.85)


def test_what_goes_up_and_down_without_a_drift_is_flat() -> None:
    chance = Random(0)  # noqa: S311 - reproducible noise, no secret
    found = find_trend(TIMES, [300 + chance.gauss(0, 10) for _ in TIMES], FLOOR)
    assert found.allowed == pytest.approx(20, rel=0.2)
    assert found.is_flat


@pytest.mark.parametrize(("last", "is_no_more"), [(10, True), (90, True), (102, True), (103, False)])
def test_counts_may_become_fewer(last: float, is_no_more: bool) -> None:
    assert find_trend([0, 1], [100, last], 2.0).is_no_more is is_no_more
