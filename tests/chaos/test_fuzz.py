"""The fuzzer's short run. The long one: `make fuzz`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.chaos.fuzz.__main__ import run

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


def test_almost_valid_requests_and_frames(record_property: Callable[[str, object], None]) -> None:
    findings = run(1500, 30_000, seed=2, texts=100)
    record_property("figures", msgspec.to_builtins(findings))
    print(msgspec.to_builtins(findings))
    assert findings.problems == []
    assert {"200", "400", "404", "405", "415", "422"} <= findings.served.keys()
    assert findings.frames_refused > 10_000
