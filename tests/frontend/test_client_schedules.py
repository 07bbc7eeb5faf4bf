"""Random schedules of submits, replies, cancels and engine deaths, checked against a model of what may come of them."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.client import EngineClient
from frontend.flight import Call
from ipc.errors import PoisonRequest
from ipc.messages import Ids
from tests.frontend.peer import DIGEST, EnginePeer, Text, eventually, expected, ids, refuse, start_call

MOST_DEATHS = 3
ROWS = 1024
STEPS = ("submit", "submit", "answer", "answer", "cancel", "die", "turn", "settle")


@dataclass
class Asked:
    """One call, and at how many deaths each of its texts was running."""

    texts: list[Ids]
    task: asyncio.Task[Call]
    deaths: list[int]
    is_cancelled: bool = False


class Schedule:
    """The steps; each is a method, and what it leaves open is drawn from `random`."""

    def __init__(self, run_dir: Path, random: Random) -> None:
        self.run_dir = run_dir
        self.random = random
        self.client = EngineClient(
            run_dir, DIGEST, refuse, most_flights=10_000, most_held=10_000, most_queue_s=30, grace_s=60, stall_s=60
        )
        self.peer = EnginePeer(run_dir, rows=ROWS)
        self.calls: list[Asked] = []
        self.unanswered: list[Text] = []
        self.seen = 0
        self.number = 0

    async def submit(self) -> None:
        texts = [ids(101, self.number + n, 102) for n in range(self.random.randint(1, 6))]
        self.number += len(texts)
        self.calls.append(Asked(texts, start_call(self.client, texts), [0] * len(texts)))

    async def answer(self) -> None:
        """Some of what has come, in any order, in any number of messages."""
        self._look()
        self.random.shuffle(self.unanswered)
        chosen = [self.unanswered.pop() for _ in range(self.random.randint(0, len(self.unanswered)))]
        while chosen:
            count = self.random.randint(1, len(chosen))
            message, chosen = chosen[:count], chosen[count:]
            self.peer.answer(*message)

    async def cancel(self) -> None:
        call = self.random.choice(self.calls) if self.calls else None
        if call is not None and call.task.cancel():
            call.is_cancelled = True

    async def die(self) -> None:
        """Some of what has come was running; the next engine knows of nothing."""
        self._look()
        running = [text for text in self.unanswered if self.random.random() < 0.3]
        self.peer.compute(*running)
        numbers = {int(text.ids[1]) for text in running}
        for call in self.calls:
            for place, text in enumerate(call.texts):
                call.deaths[place] += int(text[1]) in numbers
        self.peer.die()
        self.peer = EnginePeer(self.run_dir, rows=ROWS)
        self.unanswered, self.seen = [], 0

    async def turn(self) -> None:
        """One turn of the loop, which is between a call and its flush."""
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """Wait until all that was submitted has come: a front end sends in order, so a last text tells."""
        number = self.number
        await self.submit()
        await self.has_come(number)

    async def has_come(self, number: int) -> None:
        """Wait for the text of this number."""
        await eventually(lambda: any(text.ids[1] == number for text in self.peer.texts))

    async def end(self) -> None:
        """Answer what there is until every call has ended, and then what came for those that ended early."""
        await self.settle()
        await eventually(self._answers_end_all)
        await eventually(lambda: not self.peer.leased)

    def check(self) -> None:
        for call in self.calls:
            if call.task.cancelled():
                assert call.is_cancelled
            elif max(call.deaths) >= MOST_DEATHS:
                assert isinstance(call.task.exception(), PoisonRequest)
            else:
                assert call.task.result().parts == expected(call.texts)

    def close(self) -> None:
        self.client.close()
        self.peer.die()

    def _look(self) -> None:
        self.unanswered += self.peer.texts[self.seen :]
        self.seen = len(self.peer.texts)

    def _answers_end_all(self) -> bool:
        self._look()
        if self.unanswered:
            self.peer.answer(*self.unanswered)
            self.unanswered = []
        return all(call.task.done() for call in self.calls)


async def run(kind: type[Schedule], steps: list[str], random: Random) -> None:
    unexpected: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
    with tempfile.TemporaryDirectory() as run_dir:
        schedule = kind(Path(run_dir), random)
        try:
            for step in steps:
                await getattr(schedule, step)()
            await schedule.end()
            schedule.check()
        finally:
            schedule.close()
    assert not unexpected


def run_alone(kind: type[Schedule], steps: list[str], seed: int) -> None:
    """On a loop of its own, as front ends have it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(kind, steps, Random(seed)))  # noqa: S311


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=40), st.integers(0, 2**32))
def test_every_call_ends_once_with_its_own_vectors_and_no_row_stays_lent(steps: list[str], seed: int) -> None:
    run_alone(Schedule, steps, seed)
