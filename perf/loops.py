"""The two ways to offer load, over a pool of connections.

A closed loop hides stalls, for nobody asks while the server stalls: latency under load is measured open loop, from the
time at which a request should have left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from perf.http import Connection
from perf.pacing import Pacer, Schedule, Timer
from perf.record import Recorder, Run

DRAIN_SECONDS = 30.0
# Longer than a batch's answers take to arrive, and so short that a hundred clients keep a server busy.
THINK_SECONDS = 0.05
# From here to the first departure, for what is set up meanwhile.
LEAD_NS = 10_000_000

# Called with True when measuring begins and with False when it ends, to read other clocks at the same time.
Window = Callable[[bool], None]


@contextlib.contextmanager
def without_preempting() -> Iterator[None]:
    """Run without taking a core from another program at each waking.

    On the server's own machine every answer wakes the generator, on the core of the front end that is about to write
    the next one: a client elsewhere does no such thing. sched(7) on SCHED_BATCH. Not where latency counts.
    """
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, param)


class Pool(Protocol):
    """What a loop needs of its connections: both callbacks are set by the loop.

    `on_answer` gets every connection whose answer is in (or will not come), `on_ready` gets it once it may send again:
    at once, or when it is open again.
    """

    connections: list[Connection]
    on_answer: Callable[[Connection], None]
    on_ready: Callable[[Connection], None]


class ClosedLoop:
    """Every connection sends the next of `requests` (round and round) as soon as its answer is in."""

    _company: Callable[[], contextlib.AbstractContextManager[None]] = staticmethod(without_preempting)

    def __init__(self, pool: Pool, requests: Sequence[bytes], recorder: Recorder, window: Window) -> None:
        self._pool = pool
        self._requests = requests
        self._recorder = recorder
        self._window = window
        self._number = 0
        self._idle = 0
        self._is_ending = False
        self._ended = asyncio.Event()
        pool.on_answer, pool.on_ready = self._answer, self._send

    async def run(self, seconds: float, warm_up: float) -> Run:
        """Measure for `seconds` after `warm_up` seconds that do not count."""
        loop = asyncio.get_running_loop()
        loop.call_later(warm_up, self._begin)
        loop.call_later(warm_up + seconds, self._end)
        with self._company():
            for connection in self._pool.connections:
                self._send(connection)
            await asyncio.wait_for(self._ended.wait(), warm_up + seconds + DRAIN_SECONDS)
        return self._recorder.closed(len(self._pool.connections), len(self._requests))

    def _begin(self) -> None:
        self._window(True)
        self._recorder.begin()

    def _end(self) -> None:
        self._recorder.end()
        self._window(False)
        self._is_ending = True

    def _send(self, connection: Connection) -> None:
        if self._is_ending:
            self._idle += 1
            if self._idle == len(self._pool.connections):
                self._ended.set()
            return
        connection.send(self._requests[self._number % len(self._requests)], self._number)
        self._number += 1

    def _answer(self, connection: Connection) -> None:
        if self._recorder.is_open:
            self._recorder.note(connection)


class ThinkingLoop(ClosedLoop):
    """A closed loop of clients that think before they ask again, for exponential times of this mean.

    Where nobody thinks, answers of a batch come together, and so do the requests that follow: front ends then have a
    batch's requests to read at each waking, which spares them half of the CPU. Here they arrive one by one, as in an
    open loop, so this is the most that an open loop can get.
    """

    _company = contextlib.nullcontext

    def __init__(
        self, pool: Pool, requests: Sequence[bytes], recorder: Recorder, window: Window, think_seconds: float
    ) -> None:
        super().__init__(pool, requests, recorder, window)
        self._rate = 1 / think_seconds
        self._random = random.Random(0)  # noqa: S311 - pauses, no secret
        pool.on_ready = self._think

    def _think(self, connection: Connection) -> None:
        asyncio.get_running_loop().call_later(self._random.expovariate(self._rate), self._send, connection)


class OpenLoop:
    """Sends by a schedule (ns from the start) that waits for nobody. A request that finds no connection is dropped."""

    def __init__(self, pool: Pool, requests: Sequence[bytes], recorder: Recorder, window: Window) -> None:
        self._pool = pool
        self._requests = requests
        self._recorder = recorder
        self._window = window
        self._free = deque(pool.connections)
        self._first = 0
        self._waiting = 0
        self._dropped = 0
        self._ended = asyncio.Event()
        pool.on_answer, pool.on_ready = self._answer, self._free.append

    async def run(self, schedule: Schedule, warm_up: float) -> Run:
        """Go through the schedule; what it has in the first `warm_up` seconds does not count."""
        self._first = int(np.searchsorted(schedule, int(warm_up * 1e9)))
        self._waiting = len(schedule)
        if self._first == len(schedule):
            raise ValueError("Nothing is scheduled after the warm-up.")
        timer = Timer()
        pacer = Pacer(schedule, time.monotonic_ns() + LEAD_NS, time.monotonic_ns, timer.arm, self._depart)
        with contextlib.closing(timer), contextlib.suppress(TimeoutError):
            await self._pace(pacer, timer, float(schedule[-1]) / 1e9 + DRAIN_SECONDS)
        self._recorder.errors["unanswered"] = self._waiting
        return self._recorder.open(
            len(self._pool.connections),
            len(self._requests),
            offered=len(schedule) - self._first,
            dropped=self._dropped,
            lags=pacer.lags[self._first :],
        )

    async def _pace(self, pacer: Pacer, timer: Timer, seconds: float) -> None:
        def wake() -> None:
            timer.drain()
            pacer.wake()
            if pacer.is_finished:
                self._recorder.end()
                self._window(False)

        loop = asyncio.get_running_loop()
        loop.add_reader(timer, wake)
        try:
            timer.arm(1)
            await asyncio.wait_for(self._ended.wait(), seconds)
        finally:
            loop.remove_reader(timer)

    def _depart(self, number: int, scheduled: int) -> None:
        if number == self._first:
            self._window(True)
            self._recorder.begin()
        if self._free:
            self._free.popleft().send(self._requests[number % len(self._requests)], number, scheduled)
            return
        self._dropped += 1
        self._settle()

    def _answer(self, connection: Connection) -> None:
        if connection.number >= self._first:
            self._recorder.note(connection)
        else:
            self._recorder.note_early(connection)
        self._settle()

    def _settle(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._ended.set()
