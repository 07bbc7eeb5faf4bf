"""What both stores promise, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.limits.quota import COUNTED, Quota, Rule
from perf.redis_server import RedisServer
from tests.frontend.limits.clocked import Clocked, clocked_embedded, clocked_redis

WIDTHS_US = (1_000_000, 60_000_000, 1_000_000)
QUOTA = Quota(rpm=5, rph=12, tpm=50)

# What happens: time passes (ms), or a request of so many tokens comes.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.sampled_from([1, 400, 999, 1000, 13_000, 59_999, 60_000, 61_000, 3_600_000])),
        st.tuples(st.just("ask"), st.integers(1, 55)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=60,
)

_keys = itertools.count()

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def one_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Model:
    """All that was admitted, kept for ever, and added up anew for each decision."""

    def __init__(self) -> None:
        self.charged: list[tuple[int, tuple[int, int, int]]] = []

    def used(self, rule: int, now: int) -> int:
        width = WIDTHS_US[rule]
        return sum(amounts[rule] for at, amounts in self.charged if at // width > now // width - COUNTED)

    def in_window(self, rule: int, now: int) -> int:
        """What any client with a stopwatch would count."""
        return sum(amounts[rule] for at, amounts in self.charged if at > now - 60 * WIDTHS_US[rule])

    def admits(self, now: int, amounts: tuple[int, int, int]) -> bool:
        return all(self.used(n, now) + amounts[n] <= limit for n, limit in enumerate(QUOTA.limits))


async def replay(clocked: Clocked, key: str, events: list[tuple[str, int]]) -> None:
    model, clock = Model(), clocked.clock
    for kind, value in events:
        if kind == "pass":
            clock.advance(value / 1000)
            continue
        amounts = (1, 1, value)
        if kind == "look":
            verdict = await clocked.usage(key, QUOTA)
        else:
            expected = model.admits(clock.now_us, amounts)
            verdict = await clocked.admit(key, QUOTA, value)
            assert verdict.admitted is expected
            assert verdict.never_fits is (value > QUOTA.tpm)
            if expected:
                model.charged.append((clock.now_us, amounts))
        for n, (rule, limit) in enumerate(zip((verdict.rpm, verdict.rph, verdict.tpm), QUOTA.limits, strict=True)):
            assert rule is not None
            assert (rule.limit, rule.remaining) == (limit, limit - model.used(n, clock.now_us))
            assert model.in_window(n, clock.now_us) <= limit
            assert (rule.reset > 0) is (rule.remaining < limit)
        if verdict.retry_after is not None:
            assert not model.admits(clock.now_us + round(verdict.retry_after * 1e6) - 1, amounts)
            clock.advance(verdict.retry_after)
            assert model.admits(clock.now_us, amounts)


@given(EVENTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_embedded_decides_as_a_model_that_keeps_everything(tmp_path: Path, events: list[tuple[str, int]]) -> None:
    with clocked_embedded(tmp_path) as clocked:
        # A new key each time; the table is that of earlier examples, with their rows.
        asyncio.run(replay(clocked, f"key {next(_keys)}", events))


@given(EVENTS)
@settings(max_examples=40, deadline=None)
def test_redis_decides_as_a_model_that_keeps_everything(one_redis: RedisServer, events: list[tuple[str, int]]) -> None:
    async def run() -> None:
        with clocked_redis(one_redis) as (clocked, link):
            await link.call(lambda redis: redis.delete("embedlane:limits:{key}"))
            await replay(clocked, "key", events)
            await link.close()

    asyncio.run(run())


async def test_a_burst_at_the_edge_of_two_windows_does_not_pass_twice(clocked: Clocked) -> None:
    """As it does where two counters of whole minutes are weighted by time: see the decision record."""
    quota = Quota(rpm=600)
    clocked.clock.advance(59.9)
    assert sum([(await clocked.admit("k", quota)).admitted for _ in range(700)]) == 600
    clocked.clock.advance(59.9)
    assert not (await clocked.admit("k", quota)).admitted
    clocked.clock.advance(1.1)
    assert (await clocked.admit("k", quota)).admitted


async def test_steady_overload_gets_98_percent(clocked: Clocked) -> None:
    quota = Quota(rpm=60)
    admitted = 0
    for _ in range(4 * 305):
        admitted += (await clocked.admit("k", quota)).admitted
        clocked.clock.advance(0.25)
    assert admitted == 5 * 60, "the limit in each 61 s"


async def test_all_rules_are_charged_or_none(clocked: Clocked) -> None:
    quota = Quota(rpm=10, rph=10, tpm=10)
    assert (await clocked.admit("k", quota, 8)).admitted
    refused = await clocked.admit("k", quota, 3)
    assert not refused.admitted
    assert refused.retry_after == pytest.approx(61)
    assert refused.blocked_for == 0, "two tokens are left"
    found = await clocked.usage("k", quota)
    assert [rule and rule.remaining for rule in (found.rpm, found.rph, found.tpm)] == [9, 9, 2]


async def test_only_rules_with_a_limit_are_told(clocked: Clocked) -> None:
    verdict = await clocked.admit("k", Quota(rph=3), 5)
    assert (verdict.rpm, verdict.tpm) == (None, None)
    assert verdict.rph == Rule(3, 2, verdict.rph.reset if verdict.rph else 0)


async def test_keys_do_not_share_limits(clocked: Clocked) -> None:
    quota = Quota(rpm=1)
    assert [(await clocked.admit(key, quota)).admitted for key in ("a", "b}", "a", "ü")] == [True, True, False, True]


async def test_a_request_larger_than_the_limit_never_fits_and_costs_nothing(clocked: Clocked) -> None:
    quota = Quota(rpm=5, tpm=100)
    verdict = await clocked.admit("k", quota, 101)
    assert verdict.never_fits
    verdict = await clocked.usage("k", quota)
    assert (verdict.rpm, verdict.tpm) == (Rule(5, 5, 0.0), Rule(100, 100, 0.0))


async def test_a_lowered_limit_holds_at_once_and_a_raised_one_too(clocked: Clocked) -> None:
    for _ in range(5):
        assert (await clocked.admit("k", Quota(rpm=5))).admitted
    lowered = await clocked.admit("k", Quota(rpm=2))
    assert not lowered.admitted
    assert lowered.rpm is not None
    assert lowered.rpm.remaining == 0
    assert (await clocked.admit("k", Quota(rpm=6))).admitted


async def test_amounts_beyond_32_bits_are_exact(clocked: Clocked) -> None:
    quota = Quota(tpm=1 << 40)
    assert (await clocked.admit("k", quota, (1 << 40) - 1)).admitted
    assert (await clocked.admit("k", quota, 1)).admitted
    assert not (await clocked.admit("k", quota, 1)).admitted
    clocked.clock.advance(61)
    assert (await clocked.admit("k", quota, 1 << 40)).admitted
