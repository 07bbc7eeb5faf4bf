"""Whether the engine would come to a request in time: if not it is refused at once, before its texts cost anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from frontend import outcomes
from ipc.backlog import Backlog
from ipc.priority import Priority

# A request's own texts are refused only where half of the estimate is too long already: the rate is that of what ran
# last, and they may be texts of another kind.
CERTAINTY = 0.5


class Gate:
    """`most_s` is how long a request may have to wait, by priority; `get_backlog` gives the joined engine's, if any.

    `refused` counts requests.
    """

    def __init__(self, most_s: Mapping[Priority, float], get_backlog: Callable[[], Backlog | None]) -> None:
        self._most_s = most_s
        self._get_backlog = get_backlog
        self.refused = 0

    def check(self, priority: Priority, flow: int, deadline_ns: int) -> None:
        """Before a request of this flow is read. Raises Overloaded."""
        backlog = self._get_backlog()
        if backlog is None:
            return
        wait = backlog.seconds(priority, flow)
        most = min(self._most_s[priority], (deadline_ns - time.monotonic_ns()) / 1e9)
        # Where nothing waits the deadline is the engine's business.
        if wait > max(0.0, most):
            self.refused += 1
            raise outcomes.too_late(wait, wait - most)

    def check_texts(self, priority: Priority, flow: int, deadline_ns: int, tokens: int) -> None:
        """Once it is known what is to be computed. Raises DeadlineExceeded."""
        backlog = self._get_backlog()
        if backlog is None:
            return
        seconds = backlog.seconds(priority, flow, tokens)
        if CERTAINTY * seconds > max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9):
            self.refused += 1
            raise outcomes.too_long(seconds)
