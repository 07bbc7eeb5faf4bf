from __future__ import annotations

import pytest

from perf.ladder import all_rungs
from perf.tables import why_not


@pytest.mark.parametrize(("device", "precision"), [("cpu", "int8"), ("cuda", "fp16")])
def test_the_rungs_end_with_the_precision_of_the_device_and_the_cache(device: str, precision: str) -> None:
    rungs = all_rungs(device)
    assert list(rungs) == ["torch-single", "torch", "onnx", "precision", "cache"]
    assert rungs["precision"].settings["precision"] == precision
    # What the user must choose is not what the cache is shown with.
    assert rungs["cache"].settings["precision"] == ("fp16" if device == "cuda" else "fp32")
    assert [name for name, rung in rungs.items() if rung.is_repeated] == ["cache"]


@pytest.mark.parametrize(
    ("achieved", "void", "why"),
    [(500, [], ""), (500, ["late"], "void: late"), (400, ["dropped"], "overloaded"), (400, [], "overloaded")],
)
def test_latencies_of_a_server_that_does_not_keep_up_mean_nothing(achieved: float, void: list[str], why: str) -> None:
    assert why_not({"achieved_rate": achieved, "offered_rate": 500, "void": void}) == why
