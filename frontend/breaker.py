"""The circuit breaker between a front end and its engine: while it is open, requests get 503 at once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from frontend import outcomes

log = logging.getLogger(__name__)

# How often an open breaker tries a text of its own.
PROBE_SECONDS = 1.0
WATCH_SECONDS = 0.25
# So many texts are remembered, and if more than this part of them failed the engine is taken for broken.
REMEMBERED = 64
MOST_FAILED = 0.5


class State(IntEnum):
    """Closed lets requests through. Half-open does not yet: one text of the front end's own is on its way."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Opens on an engine that is away, answers nothing, or fails most texts and ours too; closes once one is answered.

    `is_owed` says whether a connected engine has texts to answer. `ask` sends it one text more and gives what ends
    with the answer, or None where there is no engine.
    """

    def __init__(
        self, stall_s: float, is_owed: Callable[[], bool], ask: Callable[[], asyncio.Future[None] | None]
    ) -> None:
        self.state = State.CLOSED
        self.opened = 0
        self._stall_s = stall_s
        self._is_owed = is_owed
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._reason = ""
        self._failures: deque[bool] = deque(maxlen=REMEMBERED)
        self._quiet_since = self._loop.time()
        self._probe_at = 0.0
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)

    def stop(self, reason: str) -> None:
        """Refuse requests for good, and watch no more."""
        self.state, self._reason = State.OPEN, reason
        self._timer.cancel()

    def check(self) -> None:
        """Raise EngineUnavailable unless closed."""
        if self.state is not State.CLOSED:
            raise outcomes.unavailable(self._reason)

    def open(self, reason: str) -> None:
        """Refuse requests with this sentence from now on."""
        if self.state is State.CLOSED:
            self.opened += 1
        if self.state is State.CLOSED or reason != self._reason:
            log.error("breaker opens", extra={"reason": reason})
        self.state, self._reason = State.OPEN, reason
        self._failures.clear()

    def close(self) -> None:
        """Let requests through."""
        if self.state is not State.CLOSED:
            log.info("breaker closes")
        self.state = State.CLOSED
        self.hear()

    def hear(self) -> None:
        """The engine owes nothing that is older than now."""
        self._quiet_since = self._loop.time()

    def note(self, failed: bool) -> None:
        """Remember what became of a text."""
        self._failures.append(failed)
        if failed and len(self._failures) == REMEMBERED and sum(self._failures) > MOST_FAILED * REMEMBERED:
            self._failures.clear()
            self._doubt()

    def _doubt(self) -> None:
        """Ask with a text of our own: it may be the texts of one client that fail, and not the engine."""
        if self.state is State.CLOSED and (answer := self._ask()) is not None:
            answer.add_done_callback(self._on_doubt)

    def _on_doubt(self, answer: asyncio.Future[None]) -> None:
        if not answer.cancelled() and answer.exception() is not None and self.state is State.CLOSED:
            self.open("The engine fails on most texts: try again later, its log has the reason.")

    def _watch(self) -> None:
        self._timer = self._loop.call_later(WATCH_SECONDS, self._watch)
        now = self._loop.time()
        if self.state is not State.CLOSED:
            if now - self._probe_at >= PROBE_SECONDS:
                self._probe_at = now
                self._send_probe()
        elif self._is_owed() and now - self._quiet_since > self._stall_s:
            self.open(f"The engine has answered nothing for {self._stall_s:g} s: try again later.")

    def _send_probe(self) -> None:
        answer = self._ask()
        if answer is not None:
            self.state = State.HALF_OPEN
            answer.add_done_callback(self._on_answer)

    def _on_answer(self, answer: asyncio.Future[None]) -> None:
        # An error is an answer too, but not of an engine that is well.
        if not answer.cancelled() and answer.exception() is None:
            self.close()
