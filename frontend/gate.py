"""Whether the engine would come to a request in time: if not it is refused at once, before its texts cost anything."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from frontend import outcomes
from frontend.flight import Place
from ipc.backlog import Backlog
from ipc.errors import Overloaded
from ipc.priority import Priority

# A request's own texts are refused only where half of the estimate is too long already: the rate is that of what ran
# last, and they may be texts of another kind.
CERTAINTY = 0.5
# What was sent during one round of the engine's reading is in the next but one for certain.
ROUNDS_TO_BE_SEEN = 2
# Of the time that is left until a request's deadline, what it may wait: the rest is for its own run, and for what the
# estimate does not know.
MOST_WAIT = 0.75


class Unseen:
    """Tokens that were sent and that the engine has not read yet, by priority and flow.

    A busy engine reads every few milliseconds, and what comes in one of them can be a second's work.
    """

    def __init__(self) -> None:
        self._sent: deque[tuple[int, Place, int]] = deque()
        self._tokens: dict[Place, int] = {}

    def send(self, rounds: int, place: Place, tokens: int) -> None:
        """Note what leaves now, when the engine has read for so many `rounds`."""
        self._sent.append((rounds, place, tokens))
        self._tokens[place] = self._tokens.get(place, 0) + tokens

    def of(self, rounds: int, place: Place) -> int:
        """Those of one flow, now."""
        # A new engine counts from 0 again.
        while self._sent and not rounds - ROUNDS_TO_BE_SEEN < self._sent[0][0] <= rounds:
            _, seen, tokens = self._sent.popleft()
            self._tokens[seen] -= tokens
            if not self._tokens[seen]:
                del self._tokens[seen]
        return self._tokens.get(place, 0)


class Gate:
    """`most_s` is how long a request may have to wait; `get_backlog` gives that of the engine that has joined."""

    def __init__(self, most_s: float, get_backlog: Callable[[], Backlog | None]) -> None:
        self._most_s = most_s
        self._get_backlog = get_backlog
        self._unseen = Unseen()

    def is_crowded(self, left_s: float) -> bool:
        """Whether so much waits that a request with so much time left may be refused, whoever's it is."""
        backlog = self._get_backlog()
        most = min(self._most_s, MOST_WAIT * left_s)
        return backlog is not None and backlog.most_seconds() > most

    def refusal(self, priority: Priority, flow: int, left_s: float) -> Overloaded | None:
        """What a request of this flow is told that has so much time left, if it is refused."""
        backlog = self._get_backlog()
        return None if backlog is None else self._refusal(backlog, priority, flow, left_s)

    def check(self, priority: Priority, flow: int, deadline_ns: int) -> None:
        """Before a request of this flow is read. Raises Overloaded."""
        if error := self.refusal(priority, flow, _left_s(deadline_ns)):
            raise error

    def admit(self, priority: Priority, flow: int, deadline_ns: int, tokens: int) -> None:
        """Before its texts are sent: once more, for meanwhile others were, and with what they are themselves.

        Raises Overloaded, or DeadlineExceeded where they alone are too much.
        """
        backlog = self._get_backlog()
        if backlog is None:
            return
        left_s = _left_s(deadline_ns)
        if error := self._refusal(backlog, priority, flow, left_s):
            raise error
        seconds = backlog.seconds(priority, flow, tokens)
        if CERTAINTY * seconds > left_s:
            raise outcomes.too_long(seconds)
        self._unseen.send(backlog.rounds, (priority, flow), tokens)

    def _refusal(self, backlog: Backlog, priority: Priority, flow: int, left_s: float) -> Overloaded | None:
        wait = backlog.seconds(priority, flow, self._unseen.of(backlog.rounds, (priority, flow)))
        most = min(self._most_s, MOST_WAIT * left_s)
        # Where nothing waits, the deadline is the engine's business.
        return outcomes.too_late(wait, wait - most) if wait > most else None


def _left_s(deadline_ns: int) -> float:
    return max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
