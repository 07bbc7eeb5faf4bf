"""The Redis store: one script decides on all rules of a key, by Redis's own clock, for all machines.

What is asked in one turn of the event loop leaves in one pipeline: most of a call's cost is a round trip's.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from frontend.limits.embedded import bucket_width
from frontend.limits.quota import HOUR_SECONDS, MINUTE_SECONDS, Quota, Verdict, make_verdict
from frontend.limits.script import WINDOWS
from frontend.redis_link import RedisLink

SHA: Final = hashlib.sha1(WINDOWS.encode(), usedforsecurity=False).hexdigest()
PREFIX: Final = "embedlane:limits:"

Question = tuple[str | int, ...]
Answer = list[int]
# Whether it is admitted, then four numbers for each of three rules.
ANSWER_LENGTH: Final = 13


class RedisWindows:
    """Sliding windows in Redis; `minute` and `hour` are their lengths in seconds, the same on all machines."""

    def __init__(self, link: RedisLink, *, minute: float = MINUTE_SECONDS, hour: float = HOUR_SECONDS) -> None:
        self._link = link
        self._minute, self._hour = (bucket_width(seconds, 1e6) for seconds in (minute, hour))
        self._waiting: list[tuple[Question, asyncio.Future[Answer | None]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def admit(self, key_id: str, quota: Quota, tokens: int, requests: int = 1) -> Verdict | None:
        """Charge all rules, or none where one of them has too little left; None while Redis is away."""
        return await self._decide(key_id, quota, tokens, requests, charging=1)

    async def usage(self, key_id: str, quota: Quota) -> Verdict | None:
        """What is left; charges nothing. None while Redis is away."""
        return await self._decide(key_id, quota, 0, 0, charging=0)

    async def _decide(self, key_id: str, quota: Quota, tokens: int, requests: int, *, charging: int) -> Verdict | None:
        question = (
            # Braces: on a cluster the part in them alone says where the key lives.
            f"{PREFIX}{{{key_id}}}",
            *(charging, quota.rpm, requests, self._minute),
            *(quota.rph, requests, self._hour),
            *(quota.tpm, tokens, self._minute),
        )
        answer = await self._ask(question)
        if answer is None:
            return None
        states = [(answer[n], answer[n + 1] / 1e6, answer[n + 2] / 1e6, answer[n + 3] / 1e6) for n in (1, 5, 9)]
        return make_verdict(quota, bool(answer[0]), states)

    def _ask(self, question: Question) -> asyncio.Future[Answer | None]:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        future: asyncio.Future[Answer | None] = loop.create_future()
        self._waiting.append((question, future))
        return future

    def _send(self) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(self._waiting))
        self._waiting = []
        # The loop itself holds tasks only weakly.
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _answer(self, waiting: list[tuple[Question, asyncio.Future[Answer | None]]]) -> None:
        answers: list[Answer] | None = None
        try:
            answers = await self._link.call(lambda redis: run(redis, [question for question, _ in waiting]))
        finally:
            # Whatever happened, nobody waits for ever; without an answer the embedded store decides.
            for n, (_, future) in enumerate(waiting):
                if not future.done():
                    future.set_result(answers[n] if answers is not None else None)


async def run(redis: Redis, questions: list[Question]) -> list[Answer]:
    """Each question's answer, in one round trip, and two more after Redis lost its scripts. Raises RedisError."""
    if len(questions) == 1:
        try:
            return [_checked(await redis.evalsha(SHA, 1, *questions[0]))]
        except NoScriptError:
            await redis.script_load(WINDOWS)
            return [_checked(await redis.evalsha(SHA, 1, *questions[0]))]
    answers = await _pipeline(redis, questions)
    lost = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if lost:
        await redis.script_load(WINDOWS)
        for n, answer in zip(lost, await _pipeline(redis, [questions[n] for n in lost]), strict=True):
            answers[n] = answer
    found = [_checked(answer) for answer in answers if not isinstance(answer, ResponseError)]
    if len(found) < len(answers):
        raise next(answer for answer in answers if isinstance(answer, ResponseError))
    return found


async def _pipeline(redis: Redis, questions: list[Question]) -> list[Answer | ResponseError]:
    async with redis.pipeline(transaction=False) as pipeline:
        for question in questions:
            pipeline.evalsha(SHA, 1, *question)
        answers: list[Answer | ResponseError] = await pipeline.execute(raise_on_error=False)
        return answers


def _checked(answer: Answer) -> Answer:
    """The answer, if it is one of the script's. Raises InvalidResponse: what listens there may be no Redis."""
    if type(answer) is not list or len(answer) != ANSWER_LENGTH or {*map(type, answer)} != {int}:
        raise InvalidResponse("The limits' script gave something else than 13 whole numbers.")
    return answer
