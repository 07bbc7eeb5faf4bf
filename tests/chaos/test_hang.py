"""An engine that hangs is ended by its own watchdog and started anew; no request but the one that hangs is refused."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import tokenizers

from ipc.bundle import TOKENIZER
from perf.stack import Stack
from tests.chaos.load import Load
from tests.chaos.test_poison import WORD, ask
from tests.system.processes import log_records, wait_for
from tests.system.wire import Answer

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

# A busy machine takes most of a second for a batch now and then.
HANG_SECONDS = 2
# What is left of the limit when it was last armed is what is said.
ENDED = "Timeout (0:00:0"


def test_a_text_that_hangs_in_a_lane_is_refused_in_the_end(bits: dict[str, bytes]) -> None:
    stack = Stack(frontends=2, runner="tests.chaos.hanging:HangingRunner", engine_hang_ms=HANG_SECONDS * 1000)
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(stack.env["EMBEDLANE_MODEL"]) / TOKENIZER))
    stack.env["HANGING_ID"] = str(tokenizer.token_to_id(WORD))
    with stack:
        with Load(stack.port, bits, connections=8, seed=6) as load:
            wait_for(lambda: load.counts()["right"] > 16, "right answers")
            answer = asyncio.run(ask(stack.port, f"the {WORD} plays"))
            answered = load.counts()["right"]
            wait_for(lambda: load.counts()["right"] > answered + 16, "right answers of the fourth engine")
        lives = [record for record in log_records(stack.log, "ready") if record["process"] == "engine"]
        said = stack.log.read_text()
    assert (answer.status, answer.json()["error"]["code"]) == (500, "poison_request")
    assert set(load.counts()) == {"right"}
    assert len(lives) == 1 + 3, "once in a batch, twice alone"
    assert said.count(ENDED) == 3
    # Other lanes may be in the same file then.
    assert said.count('tests/chaos/hanging.py"') >= 3, "and where it hung"


def test_an_engine_that_was_stopped_for_too_long_ends_as_it_goes_on() -> None:
    """A stopped process cannot end itself. Its watchdog's time goes on, so it does once it can."""

    async def run(stack: Stack) -> Answer:
        engine = stack.signal("engine", signal.SIGSTOP)
        request = asyncio.ensure_future(ask(stack.port, "one text"))
        # The limit itself, and not a wait for anything: the request is sent in any case.
        await asyncio.sleep(1.5 * HANG_SECONDS)
        os.kill(engine, signal.SIGCONT)
        answer = await request
        await asyncio.to_thread(wait_for, lambda: engine not in stack.pids("engine"), "its end")
        return answer

    with Stack(frontends=2, engine_hang_ms=HANG_SECONDS * 1000) as stack:
        assert asyncio.run(run(stack)).status == 200
        assert ENDED in stack.log.read_text()
