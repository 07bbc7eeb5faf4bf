"""Ends an engine that hangs, so that supervisord starts the next one: the requests are sent again.

The standard library's faulthandler writes every thread's stack to the log and ends the process from a thread of its
own that needs neither the loop nor Python's lock. So it works where a lane or the loop itself is caught in native code.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable
from typing import Final

# Arming costs a thread.
ARM_EVERY_NS: Final = 1_000_000_000
NEVER: Final = 1 << 63


def _arm(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True)


class Watchdog:
    """Ends the process unless it is tended: `limit_ns` after the last time, or after a batch began that still runs.

    `arm` has the process end after so many seconds, in place of what was armed before.
    """

    def __init__(self, limit_ns: int, arm: Callable[[float], None] = _arm) -> None:
        self._limit_ns = limit_ns
        self._arm = arm
        self._again_at = 0
        # What is armed ends the process then.
        self._ends_at = NEVER

    def tend(self, now: int, oldest: int | None) -> None:
        """Say that the loop turns, and when the oldest of the batches that run began; CLOCK_MONOTONIC in ns.

        To be called several times a second. Nothing is armed anew once a batch has run for the limit, or the loop has
        not turned for it: a process that was stopped must not get to this before its watchdog does.
        """
        if now < self._again_at or now >= self._ends_at:
            return
        self._again_at = now + min(ARM_EVERY_NS, self._limit_ns // 4)
        left = self._limit_ns - (0 if oldest is None else now - oldest)
        if left > 0:
            self._arm(left / 1e9)
            self._ends_at = now + left

    @staticmethod
    def stop() -> None:
        """Let the process be."""
        faulthandler.cancel_dump_traceback_later()
