"""More than the server can do: what is admitted is right, the rest is told to come again, other keys notice little."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from perf.stack import Stack
from tests.system.keyed import make_key
from tests.system.reference import Reference
from tests.system.wire import Answer, Connection, openai_bits, openai_body

pytestmark = [pytest.mark.system, pytest.mark.anyio]

CLIENTS = 60
TEXTS = 16
ROUNDS = 10


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(frontends=2, max_queue_ms=200) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


@pytest.fixture
def text(references: list[Reference]) -> str:
    """The text that takes longest."""
    return max(references, key=lambda reference: reference.tokens).text


async def ask(stack: Stack, text: str, rounds: int, **headers: str) -> list[Answer]:
    async with await Connection.open(stack.port) as connection:
        return [await connection.post("/v1/embeddings", openai_body([text] * TEXTS), **headers) for _ in range(rounds)]


async def flood(stack: Stack, text: str, **headers: str) -> list[Answer]:
    """Far more than the server does meanwhile, from clients that come again at once."""
    answers = await asyncio.gather(*(ask(stack, text, ROUNDS, **headers) for _ in range(CLIENTS)))
    return [answer for each in answers for answer in each]


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
async def test_the_rest_is_told_to_come_again(stack: Stack, text: str, priority: str) -> None:
    answers = await flood(stack, text, X_Priority=priority)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}
    refusals = [answer for answer in answers if answer.status == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refusals)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refusals)
    (once,) = await ask(stack, text, 1)
    assert {bits for answer in answers if answer.status == 200 for bits in openai_bits(answer)} == set(
        openai_bits(once)
    )


async def test_another_key_is_not_refused_for_it(stack: Stack, text: str) -> None:
    modest = await make_key(stack, "modest")
    flooded = asyncio.ensure_future(flood(stack, text))
    statuses = []
    async with await Connection.open(stack.port) as connection:
        while not flooded.done():
            answer = await connection.post("/v1/embeddings", openai_body("a word"), Authorization=f"Bearer {modest}")
            statuses.append(answer.status)
    assert Counter(answer.status for answer in await flooded)[429]
    assert set(statuses) == {200}
