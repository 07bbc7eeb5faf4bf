"""Both stores together: what one machine and all machines may use, and Redis that dies, hangs and comes back empty."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from frontend import redis_link
from frontend.limits import limiter as limiter_module
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.limiter import Limiter
from frontend.limits.quota import Quota, Verdict
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from perf.redis_server import RedisServer

pytestmark = pytest.mark.anyio

QUOTA = Quota(rpm=20, tpm=1000)

Machine = Callable[[str], Limiter]


@pytest.fixture
async def link(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RedisLink]:
    monkeypatch.setattr(redis_link, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(redis_link, "TIMEOUT_SECONDS", 0.5)
    link = RedisLink(redis_server.url)
    yield link
    await link.close()


@pytest.fixture
async def machine(tmp_path: Path, link: RedisLink) -> AsyncIterator[Machine]:
    """Limiters that share one Redis, each with the run directory of its machine."""
    started: list[Limiter] = []

    def start(name: str) -> Limiter:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        started.append(Limiter(EmbeddedWindows(folder), RedisWindows(link)))
        return started[-1]

    yield start
    for limiter in started:
        limiter.close()


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Limiter]:
    """A limiter without Redis."""
    limiter = Limiter(EmbeddedWindows(tmp_path))
    yield limiter
    limiter.close()


def remaining(verdict: Verdict) -> int:
    assert verdict.rpm is not None
    return verdict.rpm.remaining


async def admitted(limiter: Limiter, count: int) -> int:
    return sum([(await limiter.admit("key", QUOTA, 1)).admitted for _ in range(count)])


async def test_the_limit_is_that_of_all_machines_and_what_redis_refuses_costs_nothing(machine: Machine) -> None:
    one, other = machine("one"), machine("other")
    assert await admitted(one, 15) == 15
    assert await admitted(other, 15) == 5
    assert remaining(await other._embedded.usage("key", QUOTA)) == 15, "what Redis refused was taken back"
    assert [remaining(await limiter.usage("key", QUOTA)) for limiter in (one, other)] == [0, 0]


async def test_front_ends_of_one_machine_share_its_store(machine: Machine) -> None:
    one, other = machine("same"), machine("same")
    assert await admitted(one, 12) + await admitted(other, 12) == 20


async def test_limits_hold_while_redis_is_dead_and_after_it_came_back_empty(
    machine: Machine, redis_server: RedisServer, link: RedisLink
) -> None:
    limiter = machine("one")
    assert await admitted(limiter, 5) == 5
    redis_server.kill()
    assert await admitted(limiter, 5) == 5
    assert link.failures
    redis_server.start()
    give_up = time.monotonic() + 20
    while await link.call(lambda redis: redis.ping()) is None:
        assert time.monotonic() < give_up
    failures = link.failures
    assert await admitted(limiter, 30) == 10, "an empty Redis frees nothing that this machine counted"
    assert link.failures == failures
    found = await RedisWindows(link).usage("key", QUOTA)
    assert found is not None
    assert remaining(found) == 10, "Redis counts again"


async def test_limits_hold_while_redis_hangs(machine: Machine, redis_server: RedisServer, link: RedisLink) -> None:
    limiter = machine("one")
    assert await admitted(limiter, 5) == 5
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        assert await admitted(limiter, 30) == 15
        assert link.failures
    finally:
        redis_server.process.send_signal(signal.SIGCONT)


async def test_a_key_without_limits_is_not_counted(alone: Limiter) -> None:
    verdict = await alone.admit("key", Quota(), 10**9)
    assert verdict == Verdict(True)
    assert verdict.headers() == []


async def test_a_used_up_key_is_refused_without_asking_until_something_is_free(
    alone: Limiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = Quota(rpm=1)
    assert alone.blocked_until("key", quota) is None
    await alone.admit("key", quota, 1)
    refused = await alone.admit("key", quota, 1)
    assert not refused.admitted
    assert refused.retry_after is not None
    now = time.monotonic()
    monkeypatch.setattr("frontend.limits.limiter.monotonic", lambda: now + 30)
    blocked = alone.blocked_until("key", quota)
    assert blocked is not None
    assert (blocked.admitted, remaining(blocked)) == (False, 0)
    assert blocked.retry_after == pytest.approx(refused.retry_after - 30, abs=5)
    assert alone.blocked_until("other", quota) is None
    monkeypatch.setattr("frontend.limits.limiter.monotonic", lambda: now + refused.blocked_for + 5)
    assert alone.blocked_until("key", quota) is None


async def test_another_quota_ends_the_block(alone: Limiter) -> None:
    for _ in range(2):
        await alone.admit("key", Quota(rpm=1), 1)
    assert alone.blocked_until("key", Quota(rpm=2)) is None
    assert (await alone.admit("key", Quota(rpm=2), 1)).admitted


async def test_one_refusal_for_want_of_tokens_blocks_no_smaller_request(alone: Limiter) -> None:
    quota = Quota(tpm=100)
    await alone.admit("key", quota, 60)
    assert not (await alone.admit("key", quota, 50)).admitted
    assert alone.blocked_until("key", quota) is None
    assert (await alone.admit("key", quota, 40)).admitted


async def test_a_block_is_told_to_requests_of_any_size(alone: Limiter) -> None:
    quota = Quota(rpm=1, tpm=100)
    await alone.admit("key", quota, 1)
    assert (await alone.admit("key", quota, 101)).never_fits
    blocked = alone.blocked_until("key", quota)
    assert blocked is not None
    assert not blocked.never_fits, "another request will fit"


async def test_the_memory_of_blocks_is_bounded(alone: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_module, "MOST_BLOCKED", 2)
    quota = Quota(rpm=1)
    for key in ("a", "b", "c"):
        for _ in range(2):
            await alone.admit(key, quota, 1)
    assert [alone.blocked_until(key, quota) is not None for key in ("a", "b", "c")] == [False, False, True]


async def test_redis_is_asked_only_for_what_this_machine_admits(machine: Machine, link: RedisLink) -> None:
    limiter = machine("one")
    assert await admitted(limiter, 25) == 20
    found = await RedisWindows(link).usage("key", QUOTA)
    assert found is not None
    assert found.tpm is not None
    assert found.tpm.remaining == 980
