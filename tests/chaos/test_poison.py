"""A text that kills the engine whenever it runs: it alone is refused, and whoever ran beside it gets the answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tokenizers

from ipc.bundle import TOKENIZER
from perf.stack import Stack
from tests.chaos.load import Load
from tests.system.processes import log_records, wait_for
from tests.system.wire import Answer, Connection, openai_body

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

WORD = "accordion"


def deadly_stack() -> Stack:
    """A server whose engine dies of WORD."""
    stack = Stack(frontends=2)
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(stack.env["EMBEDLANE_MODEL"]) / TOKENIZER))
    stack.env |= {
        "PYTHONPATH": str(Path(__file__).parent / "deadly"),
        "DEADLY_ID": str(tokenizer.token_to_id(WORD)),
    }
    return stack


async def ask(port: int, text: str) -> Answer:
    async with await Connection.open(port) as connection:
        return await connection.post("/v1/embeddings", openai_body([text]))


def test_only_the_text_that_kills_is_refused(bits: dict[str, bytes]) -> None:
    assert not any(WORD in text.lower() for text in bits)
    with deadly_stack() as stack:
        with Load(stack.port, bits, connections=16, seed=5) as load:
            wait_for(lambda: load.counts()["right"] > 32, "right answers")
            answer = asyncio.run(ask(stack.port, f"the {WORD} plays"))
            answered = load.counts()["right"]
            wait_for(lambda: load.counts()["right"] > answered + 32, "right answers of the fourth engine")
        lives = [record for record in log_records(stack.log, "ready") if record["process"] == "engine"]
    assert (answer.status, answer.json()["error"]["code"]) == (500, "poison_request")
    assert set(load.counts()) == {"right"}
    assert len(lives) == 1 + 3, "once in a batch, twice alone"
