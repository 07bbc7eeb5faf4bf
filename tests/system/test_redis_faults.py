"""A Redis that refuses, or is none at all: the server answers as if there were none, and says why, without secrets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from redis import Redis

from ipc.errors import StartError
from perf.redis_server import RedisServer
from perf.stack import Stack, free_port
from tests.system.processes import log_records, wait_for
from tests.system.reference import Reference, differing
from tests.system.wire import Answer, Connection, openai_bits, openai_body

pytestmark = pytest.mark.system

PASSWORD = "s3cret-of-the-tests"  # noqa: S105 - nobody's
LIMIT = 8


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def with_password(server: RedisServer, given: str) -> str:
    """Its URL with this password, where PASSWORD is the right one."""
    with contextlib.closing(Redis.from_url(server.url)) as client:
        client.config_set("requirepass", PASSWORD)
    return server.url.replace("//", f"//:{given}@")


def missing_password(server: RedisServer) -> str:
    with_password(server, "")
    return server.url


def wrong_password(server: RedisServer) -> str:
    return with_password(server, f"not-{PASSWORD}")


def tls_to_plain(server: RedisServer) -> str:
    return server.url.replace("redis://", f"rediss://:{PASSWORD}@")


def full(server: RedisServer) -> str:
    with contextlib.closing(Redis.from_url(server.url)) as client:
        client.config_set("maxmemory", 1)
    return server.url


def replica(server: RedisServer) -> str:
    with contextlib.closing(Redis.from_url(server.url)) as client:
        client.replicaof("127.0.0.1", str(free_port()))
    return server.url


def nobody(server: RedisServer) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"


FAULTS = (missing_password, wrong_password, tls_to_plain, full, replica, nobody)


async def ask(stack: Stack, references: list[Reference]) -> list[Answer]:
    """Each text, twice as many as the limit allows, and then the use of the key."""
    texts = [openai_body(reference.text) for reference in references]
    async with await Connection.open(stack.port) as connection:
        answers = [await connection.post("/v1/embeddings", text) for text in texts]
        return [*answers, await connection.request("GET", "/v1/usage")]


def assert_served(answers: list[Answer], references: list[Reference]) -> None:
    *answers, usage = answers
    assert [answer.status for answer in answers] == [200] * LIMIT + [429] * LIMIT
    vectors = [np.frombuffer(openai_bits(answer)[0], np.float32) for answer in answers[:LIMIT]]
    assert not differing(references[:LIMIT], vectors)
    assert usage.json()["remaining"]["requests_per_minute"] == 0


def reasons(stack: Stack) -> list[str]:
    messages = ("redis is away", "redis refuses a command")
    return [str(record["reason"]) for message in messages for record in log_records(stack.log, message)]


def some(references: list[Reference]) -> list[Reference]:
    return [reference for reference in references if reference.text][: 2 * LIMIT]


@pytest.mark.parametrize("fault", FAULTS)
def test_limits_hold_and_vectors_are_right(
    redis: RedisServer, references: list[Reference], fault: Callable[[RedisServer], str]
) -> None:
    url = fault(redis)
    with Stack(frontends=1, redis_url=url, cache_mb=1, limit_rpm=LIMIT, log_level="debug") as stack:
        assert_served(asyncio.run(ask(stack, some(references))), some(references))
        assert all(wait_for(lambda: reasons(stack), "the reason"))
        assert PASSWORD not in stack.log.read_text()


def test_the_servers_own_port_is_no_redis(references: list[Reference]) -> None:
    stack = Stack(frontends=1, cache_mb=1, limit_rpm=LIMIT, log_level="debug")
    stack.env["EMBEDLANE_REDIS_URL"] = f"redis://:{PASSWORD}@127.0.0.1:{stack.port}/0"
    with stack:
        assert_served(asyncio.run(ask(stack, some(references))), some(references))
        assert all(wait_for(lambda: reasons(stack), "the reason"))
        assert PASSWORD not in stack.log.read_text()


def test_the_right_password_is_used_and_in_no_log(redis: RedisServer, references: list[Reference]) -> None:
    url = with_password(redis, PASSWORD)
    with (
        Stack(frontends=1, redis_url=url, cache_mb=1, limit_rpm=LIMIT, log_level="debug") as stack,
        contextlib.closing(Redis.from_url(url)) as client,
    ):
        assert_served(asyncio.run(ask(stack, some(references))), some(references))
        wait_for(lambda: len(client.keys("el:v:*")) >= LIMIT, "vectors in Redis")
        assert client.keys("embedlane:limits:*")
        assert PASSWORD not in stack.log.read_text()


def test_a_bad_url_stops_the_start_and_is_not_shown() -> None:
    stack = Stack(frontends=1, redis_url=f"redis://:1/{PASSWORD}@127.0.0.1:6379/0")
    try:
        stack.start(wait=False)
        assert stack.process is not None
        assert stack.process.wait(30) == StartError.EXIT_CODE
        log = stack.log.read_text()
        assert "EMBEDLANE_REDIS_URL is not valid" in log
        assert PASSWORD not in log
    finally:
        stack.__exit__()
