"""Lanes: threads that each run one batch at a time, so that the loop never waits for the model."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from engine.bisection import Ran, run_parts
from engine.queue import Item
from engine.runners import Runner, WideRunner
from ipc.priority import Priority
from ipc.slab import Rows

# A batch of so few tokens (a few ms) that is alone runs in the loop's own thread: waking a lane and being woken by it
# takes longer than what may arrive meanwhile would lose.
BRIEF_TOKENS = 64
# On a CPU lanes would take all cores, and front ends get theirs late: with five times as many requests as can be
# answered, one in a hundred refusals took 11 ms, and with this 4. docs/decisions/0017
NICENESS = 10
MOST_NICE = 19


@dataclass(slots=True)
class Batch:
    """Texts on their way through a lane: items[i] goes to row `first + i` of the slab.

    `alone` says that nothing else ran or waited when it started, `left_others` that more waited, no less urgent.
    """

    items: list[Item]
    first: int
    started: int
    alone: bool = False
    left_others: bool = False
    compute_ns: int = 0
    # Empty until it has run.
    ran: Ran = field(default_factory=Ran)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(len(item.ids) for item in self.items)


class Lanes:
    """A fixed number of threads around one runner. Not thread-safe: one loop starts batches and collects them.

    `wake` is called from a lane's thread when a batch is done.
    """

    def __init__(self, runner: Runner, rows: Rows, wake: Callable[[], None]) -> None:
        self._run_batch = runner.run
        self._is_cpu = runner.device == "cpu"
        self._is_wide = isinstance(runner, WideRunner)
        self._run_alone = runner.run_alone if isinstance(runner, WideRunner) else runner.run
        self._rows = rows
        self._wake = wake
        self._inbox: SimpleQueue[Batch | None] = SimpleQueue()
        self._done: deque[Batch] = deque()
        # Those that run, or whose end nobody has collected, by their first row.
        self._running: dict[int, Batch] = {}
        self.run_cpu_ns = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"lane-{n}", daemon=True) for n in range(runner.lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """How many batches run."""
        return len(self._running)

    @property
    def oldest(self) -> int | None:
        """When the oldest of the batches that run started."""
        return min((batch.started for batch in self._running.values()), default=None)

    @property
    def count(self) -> int:
        """How many lanes there are."""
        return len(self._threads)

    @property
    def has_spare(self) -> bool:
        """Whether a lane would be without a bulk batch if one more started; one that is alone is kept for nobody."""
        bulk = sum(batch.items[0].priority is Priority.BULK for batch in self._running.values())
        return self.count == 1 or bulk + 1 < self.count

    @property
    def free(self) -> bool:
        """Whether a batch started now would run at once."""
        return self.busy < len(self._threads)

    @property
    def has_ended(self) -> bool:
        """Whether there is something to collect."""
        return bool(self._done)

    def start(self, batch: Batch) -> None:
        """Give a batch to a lane that is free; a brief one that is alone has run when this returns."""
        assert self.free, "this is a bug: a batch was formed with no lane to run it"
        self._running[batch.first] = batch
        if batch.alone and self._is_wide and batch.tokens <= BRIEF_TOKENS:
            self._run(batch)
            self._done.append(batch)
        else:
            self._inbox.put(batch)

    def collect(self) -> list[Batch]:
        """Batches that ended since the last call."""
        done = []
        while self._done:
            batch = self._done.popleft()
            del self._running[batch.first]
            done.append(batch)
        return done

    def copy_row(self, source: int, target: int) -> None:
        """Give a row that no batch writes to the bits of one whose batch has ended."""
        self._rows[target] = self._rows[source]

    def close(self) -> None:
        """End the threads once their batches are done."""
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        if self._is_cpu:
            # On top of what the engine was started with: less would need privileges.
            os.setpriority(os.PRIO_PROCESS, 0, min(MOST_NICE, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS))
        while (batch := self._inbox.get()) is not None:
            self._run(batch)
            self._done.append(batch)
            self._wake()

    def _run(self, batch: Batch) -> None:
        rows = self._rows[batch.first : batch.first + len(batch.items)]
        run = self._run_alone if batch.alone else self._run_batch
        began, cpu = time.monotonic_ns(), time.thread_time_ns()
        batch.ran = run_parts(run, [i.ids for i in batch.items], rows, [i.sequence for i in batch.items])
        self.run_cpu_ns += time.thread_time_ns() - cpu
        batch.compute_ns = time.monotonic_ns() - began
