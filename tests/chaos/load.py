"""Steady load from another thread, with every answer looked at: what the processes' deaths must not change."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.system.processes import boot_clock
from tests.system.wire import Answer, Connection, ConnectionLost, openai_bits, openai_body

TEXTS_OF_A_REQUEST = (1, 1, 1, 2, 4)
# Long texts cost fifty times as much as short ones: a few are enough, and more would only make a queue.
LONG_CHARS = 200
LONG_SHARE = 0.03
# A request may still be sent to a dead process until its peers have noticed the death.
NOTICED_SECONDS = 0.1


@dataclass(frozen=True)
class Outcome:
    """What became of one request; `port` is the client's, times are on CLOCK_BOOTTIME.

    `verdict` is "right" or "wrong" (200, by the bits of every vector), the status of an error answer that is as it
    should be ("503"), "lost" where the connection ended first, or a description of what should never be.
    """

    verdict: str
    port: int
    began: float
    ended: float

    def spans(self, moments: Sequence[float]) -> int:
        """How many of these moments lie between request and answer."""
        return sum(self.began - NOTICED_SECONDS <= moment <= self.ended for moment in moments)


@dataclass
class Load:
    """`connections` clients, each sending one request after another while the `with` block lasts.

    `bits` has the texts to send and the vector each must get. A request that is open when the block ends is waited
    for, so one that hangs is noticed. Each client rests up to `pause` seconds between requests, so that the server is
    busy but keeps up. `fresh` opens a new connection for each request. `refused` counts vain attempts to connect.
    `others` has what `bits` has for models that may be served meanwhile, by their names; their answers' verdict is
    "right for" the name.
    """

    port: int
    bits: Mapping[str, bytes]
    connections: int = 32
    seed: int = 0
    pause: float = 0.4
    fresh: bool = False
    others: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    refused: int = 0

    def __post_init__(self) -> None:
        self._long = [text for text in self.bits if len(text) > LONG_CHARS]
        self._short = [text for text in self.bits if len(text) <= LONG_CHARS]
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def counts(self) -> Counter[str]:
        """How many requests ended in which way."""
        return Counter(outcome.verdict for outcome in self.outcomes)

    def first_right(self, after: float) -> Outcome | None:
        """The first right answer that came after this moment."""
        return next((o for o in list(self.outcomes) if o.verdict == "right" and o.ended > after), None)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(self.connections):
                clients.create_task(self._client(self._chance(number)))

    def _chance(self, number: int) -> random.Random:
        return random.Random(f"{self.seed} {number}")  # noqa: S311 - nothing secret here

    async def _client(self, chance: random.Random) -> None:
        connection = await self._open()
        while not self._stop.is_set():
            outcome = await self._request(connection, chance)
            self.outcomes.append(outcome)
            await asyncio.sleep(chance.uniform(0, self.pause))
            if self.fresh or connection.is_over:
                await connection.close()
                connection = await self._open()
        await connection.close()

    async def _open(self) -> Connection:
        while True:
            try:
                connection = await Connection.open(self.port)
            except (ConnectionRefusedError, ConnectionResetError) as error:
                # Refused only while every front end is dead: supervisord closes the listening socket with the last of
                # them. Reset where its front end, or that socket with it in the queue, went before this end had looked.
                if self._stop.is_set():
                    raise
                self.refused += isinstance(error, ConnectionRefusedError)
                await asyncio.sleep(0.02)
            else:
                self.ports.add(connection.local_port)
                return connection

    async def _request(self, connection: Connection, chance: random.Random) -> Outcome:
        texts = [self._text(chance) for _ in range(chance.choice(TEXTS_OF_A_REQUEST))]
        began = boot_clock()
        try:
            verdict = self._judge(texts, await connection.post("/v1/embeddings", openai_body(texts)))
        except ConnectionLost:
            verdict = "lost"
        except TimeoutError:
            verdict = "hangs"
        return Outcome(verdict, connection.local_port, began, boot_clock())

    def _text(self, chance: random.Random) -> str:
        return chance.choice(self._long if chance.random() < LONG_SHARE else self._short)

    def _judge(self, texts: list[str], answer: Answer) -> str:
        if answer.status == 200:
            model = answer.json()["model"]
            assert answer.headers["x-model"] == model
            bits = self.others.get(model, self.bits)
            is_right = openai_bits(answer) == [bits[text] for text in texts]
            return "wrong" if not is_right else f"right for {model}" if model in self.others else "right"
        error = answer.json()["error"]
        if answer.status == 503 and answer.headers.get("retry-after") and error["code"] == "engine_unavailable":
            return "503"
        if answer.status == 500 and error["code"] == "poison_request":
            return "poison"
        return f"{answer.status} {answer.body!r}"
