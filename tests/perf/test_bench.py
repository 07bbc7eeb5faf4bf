from __future__ import annotations

import pytest

from perf.bench import Verdict


@pytest.mark.parametrize(
    ("is_least", "measured", "met"),
    [(True, 0.9, True), (True, 0.89, False), (False, 0.9, True), (False, 0.91, False)],
)
def test_a_bound_itself_is_met(is_least: bool, measured: float, met: bool) -> None:
    assert Verdict(target="x", unit="ratio", bound=0.9, is_least=is_least, measured=measured).met is met
