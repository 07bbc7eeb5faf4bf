"""Limits of keys over HTTP: what each dialect is told, what is charged, and that all front ends count as one."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from perf.stack import KEY, Stack
from tests.system.keyed import bearer, connect_to_each, keys, make_key
from tests.system.wire import Answer, Connection, openai_body

pytestmark = pytest.mark.system

FRONTENDS = 4
EMBED = "/v1/embeddings"
TEXT = openai_body("hello")
# A minute's window, and what the oldest part of it adds.
LONGEST_WAIT = 62
TOLD = {f"x-ratelimit-{what}{of}" for what in ("limit", "remaining", "reset") for of in ("", "-requests")}
DURATION = re.compile(r"([0-9]+ms|[0-9.]+s|1m[0-9]s)")


@pytest.fixture(scope="module")
def four() -> Iterator[Stack]:
    with Stack(frontends=FRONTENDS) as stack:
        yield stack
        # pytest shows this where a test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


class Client:
    """One connection, and the key that all its requests have."""

    def __init__(self, connection: Connection, key: str) -> None:
        self._connection = connection
        self._headers = bearer(key)

    async def post(self, path: str, content: Mapping[str, object]) -> Answer:
        return await self._connection.request("POST", path, json.dumps(content).encode(), self._headers)

    async def get(self, path: str) -> Answer:
        return await self._connection.request("GET", path, headers=self._headers)

    async def left(self, rule: str = "requests_per_minute") -> object:
        """What `/v1/usage` says is left of a limit."""
        return (await self.get("/v1/usage")).json()["remaining"][rule]


@asynccontextmanager
async def client(stack: Stack, key: str) -> AsyncIterator[Client]:
    async with await Connection.open(stack.port) as connection:
        yield Client(connection, key)


def limits(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}


# what a client is told


def is_openai(answer: Answer) -> None:
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert "limit is used up" in error["message"]


def is_tei(answer: Answer) -> None:
    body = answer.json()
    assert set(body) == {"error", "error_type"}
    assert body["error_type"] == "Overloaded"


def is_original(answer: Answer) -> None:
    body = answer.json()
    assert set(body) == {"error", "detail", "code", "correlation_id", "retry_after"}
    assert (body["error"], body["code"]) == ("RateLimited", "RATE_LIMIT_EXCEEDED")
    assert body["correlation_id"] == answer.headers["x-correlation-id"]
    assert math.ceil(body["retry_after"]) == int(answer.headers["retry-after"])


SIMILARITY = {"inputs": {"source_sentence": "a", "sentences": ["b"]}}
ROUTES: dict[str, tuple[Mapping[str, Any], Callable[[Answer], None]]] = {
    EMBED: (TEXT, is_openai),
    "/embeddings": (TEXT, is_openai),
    "/embed": ({"inputs": "a"}, is_tei),
    "/": ({"inputs": "a"}, is_tei),
    "/similarity": (SIMILARITY, is_tei),
    "/tokenize": ({"inputs": "a"}, is_tei),
    "/v1/embed": ({"input_text": "a"}, is_original),
}


@pytest.mark.parametrize("path", ROUTES)
def test_every_dialect_is_told_in_its_own_words(four: Stack, path: str) -> None:
    body, is_right = ROUTES[path]

    async def ask() -> list[Answer]:
        key = await make_key(four, f"dialect{path.replace('/', '.')}", "--rpm", "2")
        async with client(four, key) as one:
            return [await one.post(path, body) for _ in range(4)]

    answers = asyncio.run(ask())
    assert [answer.status for answer in answers] == [200, 200, 429, 429], "and none is charged twice"
    for answer, left in zip(answers, ("1", "0", "0", "0"), strict=True):
        told = limits(answer)
        assert set(told) == TOLD
        assert told["x-ratelimit-limit"] == told["x-ratelimit-limit-requests"] == "2"
        assert told["x-ratelimit-remaining"] == told["x-ratelimit-remaining-requests"] == left
        assert 0 < int(told["x-ratelimit-reset"]) <= LONGEST_WAIT
        assert DURATION.fullmatch(told["x-ratelimit-reset-requests"])
    for answer in answers[:2]:
        assert not {"retry-after", "retry-after-ms"} & set(answer.headers)
    for answer in answers[2:]:
        is_right(answer)
        assert 0 < int(answer.headers["retry-after-ms"]) <= LONGEST_WAIT * 1000
        assert int(answer.headers["retry-after"]) == math.ceil(int(answer.headers["retry-after-ms"]) / 1000)


def test_usage_before_and_after(four: Stack) -> None:
    async def ask() -> tuple[Any, int, Answer, Any]:
        key = await make_key(four, "usage", "--rpm", "10", "--rph", "8", "--tpm", "1000")
        async with client(four, key) as one:
            before = (await one.get("/v1/usage")).json()
            answers = [await one.post(EMBED, TEXT) for _ in range(3)]
            tokens = sum(answer.json()["usage"]["total_tokens"] for answer in answers)
            return before, tokens, answers[-1], (await one.get("/v1/usage")).json()

    before, tokens, last, after = asyncio.run(ask())
    names = ("requests_per_minute", "requests_per_hour", "tokens_per_minute")
    assert before["key"] == after["key"] == "usage"
    assert before["limits"] == before["remaining"] == after["limits"] == dict(zip(names, (10, 8, 1000), strict=True))
    assert set(before["reset_seconds"].values()) == {0}
    assert after["remaining"] == dict(zip(names, (7, 5, 1000 - tokens), strict=True))
    minute, hour, of_tokens = after["reset_seconds"].values()
    assert 0 < minute <= LONGEST_WAIT < hour <= LONGEST_WAIT * 60
    assert 0 < of_tokens <= LONGEST_WAIT
    told = limits(last)
    assert (told["x-ratelimit-limit"], told["x-ratelimit-remaining"]) == ("8", "5"), "the tighter one"
    assert told["x-ratelimit-limit-tokens"] == "1000"
    assert told["x-ratelimit-remaining-tokens"] == str(1000 - tokens)
    assert DURATION.fullmatch(told["x-ratelimit-reset-tokens"])


# what is charged


def test_all_front_ends_count_as_one(four: Stack) -> None:
    limit, connections, each = 50, 40, 10

    async def ask() -> tuple[Counter[int], list[object]]:
        key = await make_key(four, "exact", "--rpm", str(limit))
        async with AsyncExitStack() as block:
            one_each = list((await connect_to_each(four, block)).values())
            others = [await Connection.open(four.port) for _ in range(connections - FRONTENDS)]
            clients = [Client(await block.enter_async_context(o), key) for o in others]
            clients += [Client(connection, key) for connection in one_each]

            async def several(one: Client) -> list[int]:
                return [(await one.post(EMBED, TEXT)).status for _ in range(each)]

            found = await asyncio.gather(*map(several, clients))
            left = [await one.left() for one in clients[-FRONTENDS:]]
            return Counter(status for statuses in found for status in statuses), left

    counts, left = asyncio.run(ask())
    assert counts == {200: limit, 429: connections * each - limit}
    assert left == [0] * FRONTENDS


def test_tokens_are_charged_and_what_never_fits_is_told_so(four: Stack) -> None:
    async def ask() -> None:
        key = await make_key(four, "tokens", "--tpm", "100")
        async with client(four, key) as one:
            never = await one.post(EMBED, openai_body("word " * 200))
            assert never.status == 429
            assert not {"retry-after", "retry-after-ms"} & set(never.headers), "to wait is of no use"
            assert "send less" in never.json()["error"]["message"]
            assert await one.left("tokens_per_minute") == 100
            large = openai_body("word " * 38)
            for left in ("60", "20"):
                answer = await one.post(EMBED, large)
                assert (answer.status, answer.json()["usage"]["total_tokens"]) == (200, 40)
                assert limits(answer)["x-ratelimit-remaining-tokens"] == left
                assert "x-ratelimit-limit-requests" not in answer.headers
            refused = await one.post(EMBED, large)
            assert (refused.status, limits(refused)["x-ratelimit-remaining-tokens"]) == (429, "20")
            assert 0 < int(refused.headers["retry-after"]) <= LONGEST_WAIT
            small = await one.post(EMBED, TEXT)
            assert (small.status, limits(small)["x-ratelimit-remaining-tokens"]) == (200, "17"), "it still fits"
            # Two texts of 8 tokens and more are too much together, and one of them is not.
            two = {"inputs": ["word " * 8, "word " * 8]}
            assert (await one.post("/embed", two)).status == 429
            assert (await one.post("/embed", {"inputs": "word " * 8})).status == 200

    asyncio.run(ask())


def test_only_what_costs_something_is_charged(four: Stack) -> None:
    async def ask() -> None:
        key = await make_key(four, "charged", "--rpm", "50")
        async with client(four, key) as one:
            for path in ("/v1/models", "/health", "/ready", "/v1/usage", "/info", "/openapi.json"):
                answer = await one.get(path)
                assert (answer.status, limits(answer)) == (200, {})
            assert await one.left() == 50
            not_valid: list[dict[str, object]] = [{"input": []}, {"input": "a", "dimensions": 0}, {"input": None}]
            for wrong in not_valid:
                assert (await one.post(EMBED, wrong)).status == 400
            assert (await one.post("/nowhere", {})).status == 404
            assert await one.left() == 50, "what is not valid costs nothing"
            for path, (body, _) in ROUTES.items():
                assert (await one.post(path, body)).status == 200
            assert await one.left() == 50 - len(ROUTES)

    asyncio.run(ask())


# keys


def test_a_key_created_anew_begins_anew(four: Stack) -> None:
    async def ask() -> None:
        first = await make_key(four, "again", "--rpm", "1")
        async with client(four, first) as one:
            assert [(await one.post(EMBED, TEXT)).status for _ in range(2)] == [200, 429]
        await asyncio.to_thread(keys, four, "revoke", "again")
        second = await make_key(four, "again", "--rpm", "2")
        async with client(four, second) as other:
            assert [(await other.post(EMBED, TEXT)).status for _ in range(3)] == [200, 200, 429]
        async with client(four, first) as one:
            assert (await one.post(EMBED, TEXT)).status == 401

    asyncio.run(ask())


def test_other_keys_are_not_affected(four: Stack) -> None:
    async def ask() -> None:
        used_up, other = [await make_key(four, name, "--rpm", "3") for name in ("used-up", "other")]
        async with client(four, used_up) as one, client(four, other) as two, client(four, KEY) as own:
            assert [(await one.post(EMBED, TEXT)).status for _ in range(5)] == [200] * 3 + [429] * 2
            assert await two.left() == 3
            assert (await two.post(EMBED, TEXT)).status == 200
            unlimited = await own.post(EMBED, TEXT)
            assert (unlimited.status, limits(unlimited)) == (200, {})

    asyncio.run(ask())


def test_the_servers_limits_are_those_of_keys_without_their_own() -> None:
    async def ask(stack: Stack) -> None:
        free = await make_key(stack, "free", "--rpm", "0")
        half = await make_key(stack, "half", "--tpm", "9")
        async with client(stack, KEY) as own, client(stack, free) as one, client(stack, half) as two:
            assert [(await own.post(EMBED, TEXT)).status for _ in range(4)] == [200] * 3 + [429]
            assert {(await one.post(EMBED, TEXT)).status for _ in range(8)} == {200}
            assert (await two.get("/v1/usage")).json()["limits"] == {
                "requests_per_minute": 3,
                "requests_per_hour": None,
                "tokens_per_minute": 9,
            }

    with Stack(frontends=2, limit_rpm=3) as stack:
        asyncio.run(ask(stack))


def test_the_bypass_limits_nobody() -> None:
    async def ask(stack: Stack) -> None:
        key = await make_key(stack, "limited", "--rpm", "1", "--tpm", "1")
        for presented in (key, KEY):
            async with client(stack, presented) as one:
                answers = [await one.post(EMBED, TEXT) for _ in range(10)]
                assert {(answer.status, len(limits(answer))) for answer in answers} == {(200, 0)}
                assert set((await one.get("/v1/usage")).json()["limits"].values()) == {None}

    with Stack(frontends=2, limit_rpm=1, limits_bypass=True) as stack:
        asyncio.run(ask(stack))
