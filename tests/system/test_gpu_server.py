"""The GPU's server stages against a real server, here on the CPU."""

from __future__ import annotations

import pytest

from ipc.bundle import Bundle
from perf.gpu.server import Load, generate, offer, running, saturate

pytestmark = pytest.mark.system


def test_a_fixed_rate_is_offered_and_its_latencies_are_held_against_the_targets(bundle: Bundle) -> None:
    found = offer(bundle.folder, {"frontends": 1}, rate=20, seconds=2, p50=1e-6, p99=1e9)
    assert found.offered_rate == pytest.approx(20, rel=0.7)
    assert not found.errors
    assert 0 < found.p50 <= found.p99 <= found.max
    assert any("p50" in sentence for sentence in found.missed)


def test_saturation_adds_up_generators_and_compares_front_ends(bundle: Bundle) -> None:
    load = Load(tokens=8, per_request=2, connections=4, generators=2, least_requests=1e9)
    found = saturate(bundle.folder, {}, [1, 2], load, seconds=1)
    assert found.frontends.keys() == {1, 2}
    assert found.best == max(found.frontends.values()) > 0
    assert found.tokens_rate == found.best * 16
    [missed] = found.missed
    assert "1,000,000,000 the target" in missed


def test_a_generator_without_a_report_is_told(bundle: Bundle) -> None:
    with running(bundle.folder, {"frontends": 1}) as stack, pytest.raises(RuntimeError, match="without a report"):
        generate(stack.port, 1, 1, "--no-such-option")
