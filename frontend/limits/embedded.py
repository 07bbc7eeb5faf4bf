"""The embedded store: exact over the front ends of one machine, without a server, in some 10 us a decision."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from frontend.limits import ring
from frontend.limits.lock import TableLock
from frontend.limits.quota import (
    BUCKETS,
    COUNTED,
    HOUR_SECONDS,
    MINUTE_SECONDS,
    UNUSED,
    Quota,
    RuleState,
    Verdict,
    make_verdict,
)
from frontend.limits.table import CAPACITY, CHARGED_AT, IDLE_FROM, WRITING, Table, remove_old_tables, ring_of

log = logging.getLogger(__name__)

Amounts = tuple[int, int, int]
NOTHING: Final[Amounts] = (0, 0, 0)

# A decision takes some µs: most who find the lock taken need only let its holder run.
YIELDS: Final = 20
POLL_SECONDS: Final = 0.001
# Longer than a holder is off its core on a busy machine: then it is stopped, and the others agree on another lock.
STUCK_SECONDS: Final = 0.1


def boot_clock() -> int:
    """Nanoseconds since the machine's boot, the same for all its processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class EmbeddedWindows:
    """Sliding windows in a file of `folder`, which should be on a tmpfs; of one event loop.

    `minute` and `hour` are the windows' lengths in seconds, and the same in all processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        minute: float = MINUTE_SECONDS,
        hour: float = HOUR_SECONDS,
        capacity: int = CAPACITY,
        clock: Callable[[], int] = boot_clock,
    ) -> None:
        self._widths = tuple(bucket_width(seconds, 1e9) for seconds in (minute, hour, minute))
        self._clock = clock
        self._table = Table(folder, capacity, self._widths)
        self._lock = TableLock(self._table.path, self._table.words)
        # A row this process may have written while others did.
        self._row = self._doubtful = 0
        remove_old_tables(folder, self._table.path)

    async def admit(self, key_id: str, quota: Quota, tokens: int, requests: int = 1) -> Verdict:
        """Charge all rules, or none where one of them has too little left."""
        amounts = (requests, requests, tokens)
        if not self._lock.try_acquire():
            await self._acquire()
        try:
            now = self._clock()
            self._repair()
            return self._decide(self._table.take(key_id, now), quota, amounts, now)
        finally:
            self._release()

    async def usage(self, key_id: str, quota: Quota) -> Verdict:
        """What is left; charges nothing."""
        await self._acquire()
        try:
            self._repair()
            row = self._table.find(key_id)
            if row is None:
                return make_verdict(quota, True, (UNUSED, UNUSED, UNUSED))
            return self._decide(row, quota, NOTHING, self._clock())
        finally:
            self._release()

    async def refund(self, key_id: str, quota: Quota, tokens: int, requests: int, at: int) -> None:
        """Take back what was charged when the verdict's `at` says, unless it is past already."""
        await self._acquire()
        try:
            self._repair()
            row = self._table.find(key_id)
            if row is not None:
                words = self._table.words
                words[WRITING] = self._row = row
                for rule, amount in enumerate((requests, requests, tokens)):
                    if quota.limits[rule]:
                        ring.refund(words, ring_of(row, rule), amount, at // self._widths[rule])
                words[WRITING] = 0
        finally:
            self._release()

    def close(self) -> None:
        """Unmap the table; it stays for the others."""
        self._lock.close()
        self._table.close()

    def _decide(self, row: int, quota: Quota, amounts: Amounts, now: int) -> Verdict:
        """Under the lock: what is too old leaves, and all rules are charged if each has enough left."""
        words = self._table.words
        words[WRITING] = self._row = row
        rules = []
        admitted = True
        for rule, limit in enumerate(quota.limits):
            if limit:
                base, width, amount = ring_of(row, rule), self._widths[rule], amounts[rule]
                ring.advance(words, base, now // width)
                # What asks for nothing fits always.
                excess = words[base + ring.TOTAL] + amount - limit if amount else 0
                admitted = admitted and excess <= 0
                rules.append((rule, base, width, amount, excess))
        if admitted and amounts is not NOTHING:
            self._charge(row, rules, now)
        states: list[RuleState] = [UNUSED, UNUSED, UNUSED]
        for rule, base, width, _, excess in rules:
            if excess <= 0:
                states[rule] = ring.used(words, base, now, width)
            else:
                states[rule] = ring.refused(words, base, now, width, excess)
        words[WRITING] = 0
        return make_verdict(quota, admitted, states, now)

    def _charge(self, row: int, rules: list[tuple[int, int, int, int, int]], now: int) -> None:
        words = self._table.words
        words[row + CHARGED_AT] = now
        for _, base, width, amount, _ in rules:
            words[row + IDLE_FROM] = max(words[row + IDLE_FROM], now + COUNTED * width)
            ring.charge(words, base, amount)

    async def _acquire(self) -> None:
        """Wait for the lock without holding up the event loop."""
        lock = self._lock
        give_up = time.monotonic() + STUCK_SECONDS
        while True:
            for _ in range(YIELDS):
                if lock.try_acquire():
                    return
                os.sched_yield()
            if time.monotonic() > give_up:
                if lock.replace():
                    log.warning("a front end is stopped while it holds the lock of the limits; the others go on")
                give_up = time.monotonic() + STUCK_SECONDS
            await asyncio.sleep(POLL_SECONDS)

    def _repair(self) -> None:
        """Begin a decision: make right what another process, or this one, may have left half written."""
        self._table.repair()
        if self._doubtful:
            self._table.repair_row(self._doubtful)
            self._doubtful = 0

    def _release(self) -> None:
        if not self._lock.release():
            self._doubtful = self._row


def bucket_width(seconds: float, unit: float) -> int:
    """A bucket's width; rounded up, so that 60 of them are never shorter than the window."""
    return -int(-seconds * unit // BUCKETS)
