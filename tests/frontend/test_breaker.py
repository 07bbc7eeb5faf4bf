from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from frontend import breaker as module
from frontend.breaker import MOST_FAILED, REMEMBERED, Breaker, State
from ipc.errors import EngineFailure, EngineUnavailable
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio


class Engine:
    """What a breaker sees of an engine."""

    def __init__(self) -> None:
        self.owes = False
        self.is_there = True
        self.answers = False
        self.asked: list[asyncio.Future[None]] = []
        self.looks = 0
        self.breaker = Breaker(0.05, self.is_owed, self.ask)

    def is_owed(self) -> bool:
        self.looks += 1
        if self.answers:
            self.breaker.hear()
        return self.owes

    def ask(self) -> asyncio.Future[None] | None:
        if not self.is_there:
            return None
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    @property
    def state(self) -> State:
        return self.breaker.state


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.005)
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.02)
    engine = Engine()
    yield engine
    engine.breaker.stop("The test is over.")


async def test_a_closed_breaker_asks_nothing(engine: Engine) -> None:
    engine.breaker.check()
    await eventually(lambda: engine.looks > 8)
    assert engine.asked == []


async def test_an_engine_that_owes_and_answers_nothing_is_done_without(engine: Engine) -> None:
    engine.breaker.hear()
    engine.owes = True
    await eventually(lambda: engine.state is not State.CLOSED)
    with pytest.raises(EngineUnavailable, match="answered nothing") as caught:
        engine.breaker.check()
    assert caught.value.retry_after


async def test_an_engine_that_goes_on_answering_is_not(engine: Engine) -> None:
    engine.owes = engine.answers = True
    # Longer than what is taken for a stall, however seldom this loop gets its turn.
    await eventually(lambda: engine.looks > 40)
    assert engine.state is State.CLOSED


async def test_half_open_until_one_text_is_answered(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine.breaker.open("It is away.")
    await eventually(lambda: engine.state is State.HALF_OPEN)
    with pytest.raises(EngineUnavailable, match="It is away"):
        engine.breaker.check()
    engine.asked[-1].set_result(None)
    await eventually(lambda: engine.state is State.CLOSED)
    engine.breaker.check()
    assert [r.message for r in caplog.records if r.name == module.__name__] == ["breaker opens", "breaker closes"]


@pytest.mark.parametrize("outcome", ["nothing", "error", "cancelled"])
async def test_it_asks_again_where_no_vector_came(engine: Engine, outcome: str) -> None:
    engine.breaker.open("It is away.")
    for number in range(1, 4):
        await eventually(lambda number=number: len(engine.asked) == number)  # type: ignore[misc]
        if outcome == "error":
            engine.asked[-1].set_exception(EngineUnavailable("no"))
        elif outcome == "cancelled":
            engine.asked[-1].cancel()
        assert engine.state is not State.CLOSED


async def test_while_no_engine_is_connected_nobody_is_asked(engine: Engine) -> None:
    engine.is_there = False
    engine.breaker.open("It is not running.")
    await asyncio.sleep(0.05)
    assert engine.state is State.OPEN
    engine.is_there = True
    await eventually(lambda: engine.state is State.HALF_OPEN)


@pytest.mark.parametrize("ours_fails", [True, False])
async def test_it_opens_where_most_texts_fail_and_its_own_too(engine: Engine, ours_fails: bool) -> None:
    failing = int(REMEMBERED * MOST_FAILED) + 1
    for _ in range(REMEMBERED - failing):
        engine.breaker.note(failed=False)
    for _ in range(failing - 1):
        engine.breaker.note(failed=True)
    assert engine.asked == []
    engine.breaker.note(failed=True)
    engine.breaker.check()
    [answer] = engine.asked
    if ours_fails:
        answer.set_exception(EngineFailure("no"))
        await eventually(lambda: engine.state is not State.CLOSED)
    else:
        answer.set_result(None)
        await asyncio.sleep(0)
        assert engine.state is State.CLOSED, "it was the texts of somebody"


async def test_a_few_failing_texts_among_many_change_nothing(engine: Engine) -> None:
    for number in range(10 * REMEMBERED):
        engine.breaker.note(failed=number % 2 == 0)
    assert engine.state is State.CLOSED


async def test_the_same_reason_is_logged_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    for reason in ("a", "a", "b"):
        engine.breaker.open(reason)
    assert [getattr(r, "reason", None) for r in caplog.records if r.message == "breaker opens"] == ["a", "b"]
