"""The fault driver's short run, and a model that fails in every way there is. The long run: `make chaos`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from perf.stack import Stack
from tests.chaos.faults.__main__ import FAULTS, run
from tests.chaos.faults.faulty import EXITS, GIVES_INFINITY, GIVES_NAN, HANGS, KILLS, RAISES, STARVES
from tests.chaos.load import Load
from tests.system.processes import log_records, wait_for
from tests.system.wire import Answer, Connection, openai_body

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

OPENAI, OCTETS = "/v1/embeddings", {"Accept": "application/octet-stream"}
EACH = 3


def test_every_kind_of_fault_once(record_property: Callable[[str, object], None]) -> None:
    findings = run(len(FAULTS), 0, seed=3, texts=300)
    record_property("figures", msgspec.to_builtins(findings))
    print(json.dumps(msgspec.to_builtins(findings), indent=1))
    assert findings.problems == []
    assert findings.faults == len(FAULTS) - len(findings.not_tried)
    assert findings.outcomes["right"] > 1000


async def ask(port: int, text: str) -> list[Answer]:
    """The text in every form in which a vector leaves."""
    bodies = [
        openai_body([text]),
        openai_body([text]) | {"dimensions": 8},
        {"input": text},
        {"input": ["a text", text]},
    ]
    async with await Connection.open(port) as connection:
        answers = [await connection.post(OPENAI, body) for body in bodies]
        return [*answers, await connection.post(OPENAI, {"input": text}, **OCTETS)]


async def ask_once(port: int, texts: str | list[str]) -> Answer:
    async with await Connection.open(port) as connection:
        return await connection.post(OPENAI, openai_body(texts))


def of(word: str, number: int) -> str:
    return f"the {word} of number {number} sounds"


def test_a_model_that_fails_fails_on_its_own_texts_alone(bits: dict[str, bytes]) -> None:
    root = Path(__file__).parent.parent.parent
    runner = "tests.chaos.faults.faulty:FaultyRunner"
    # The model's doings are looked at, not how soon a busy machine has the next engine.
    with Stack(frontends=2, runner=runner, cache_mb=1, engine_grace_ms=60_000) as stack:
        assert stack.root == root, "where the engine finds the runner"
        with Load(stack.port, bits, connections=12, pause=0.05, seed=6) as load:
            wait_for(lambda: load.counts()["right"] > 32, "right answers")
            for number in range(EACH):
                for word in (RAISES, GIVES_NAN, GIVES_INFINITY, EXITS):
                    answers = asyncio.run(ask(stack.port, of(word, number)))
                    assert {answer.status for answer in answers} == {500}, word
                    assert {answer.json()["error"]["code"] for answer in answers} == {"engine_failure"}
            numbers = itertools.count()

            def starve() -> object:
                several = [of(STARVES, next(numbers)) for _ in range(8)]
                assert asyncio.run(ask_once(stack.port, several)).status == 200
                # Now and then each is run by itself, and then there is memory enough.
                return log_records(stack.log, "a batch found no memory")

            wait_for(starve, "a batch of several texts")
            assert {answer.status for answer in asyncio.run(ask(stack.port, of(HANGS, 0)))} == {200}
            answer = asyncio.run(ask_once(stack.port, of(KILLS, 0)))
            assert (answer.status, answer.json()["error"]["code"]) == (500, "poison_request")
            answered = load.counts()["right"]
            wait_for(lambda: load.counts()["right"] > answered + 64, "right answers afterwards")
        assert set(load.counts()) == {"right"}
        assert log_records(stack.log, "a text failed by itself")
