"""The stages at work: one thread reads and plans, a backend's threads make vectors, and windows come out in order.

    produce (reader, plan) ──jobs──▶ workers ──┐
           └───────windows─────────────────────┴──events──▶ results (the caller's thread)

Everything is bounded by how many windows there are at once: no window is begun before an older one is taken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import NamedTuple

from tools.embed.window import Backend, Job, Window

# One is computed, the next is ready, the one before is written.
MOST_WINDOWS = 3
TICK_SECONDS = 0.2
# Longer than a batch takes; only a request to a server may last longer, and nothing is lost with it.
END_SECONDS = 10


class Planned(NamedTuple):
    """A window whose jobs are under way."""

    window: Window


class Ended(NamedTuple):
    """A window all of whose jobs have ended."""

    window: Window


class Failed(NamedTuple):
    """What a thread ended with."""

    error: BaseException


class Pipeline:
    """A context manager around the threads; `results` is to be called once."""

    def __init__(self, windows: Iterator[Window], backend: Backend) -> None:
        self._windows = windows
        self._backend = backend
        self._room = threading.Semaphore(MOST_WINDOWS)
        self._stopped = False
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # None: there are no more windows. One event for a window and not for each job, which would wake the caller's
        # thread each time.
        self._events: SimpleQueue[Planned | Ended | Failed | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._texts_done = 0
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._produce,), name="producer", daemon=True),
            *(
                threading.Thread(target=self._guarded, args=(self._work, n), name=f"worker-{n}", daemon=True)
                for n in range(backend.workers)
            ),
        ]

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Let all threads end: none may be inside the model when the interpreter goes."""
        self._stopped = True
        self._room.release()
        self._backend.close()
        for _ in range(self._backend.workers):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(END_SECONDS)

    def results(self, on_progress: Callable[[int], None]) -> Iterator[Window]:
        """Windows in order, complete. `on_progress` gets the number of texts done since its last call, and is called
        several times a second. Raises what a thread ended with.
        """
        waiting: deque[Window] = deque()
        is_last = False
        while waiting or not is_last:
            if waiting and not waiting[0].left:
                window = waiting.popleft()
                window.settle()
                yield window
                self._room.release()
                continue
            match self._next_event():
                case Planned(window):
                    waiting.append(window)
                case Failed(error):
                    raise error
                case None:
                    is_last = True
            on_progress(self._take_done())

    def _take_done(self) -> int:
        with self._lock:
            done, self._texts_done = self._texts_done, 0
        return done

    def _next_event(self) -> Planned | Ended | Failed | Empty | None:
        try:
            return self._events.get(timeout=TICK_SECONDS)
        except Empty as nothing:
            return nothing

    def _produce(self) -> None:
        while True:
            self._room.acquire()
            window = None if self._stopped else next(self._windows, None)
            if window is None:
                self._events.put(None)
                return
            jobs = self._backend.plan(window)
            window.left = len(jobs)
            self._events.put(Planned(window))
            for job in jobs:
                self._jobs.put(job)

    def _work(self, number: int) -> None:
        with self._backend.worker(number) as run:
            while (job := self._jobs.get()) is not None and not self._stopped:
                self._end(job, run(job))

    def _end(self, job: Job, truncated: int) -> None:
        window = job.window
        with self._lock:
            self._texts_done += len(job.texts)
            window.truncated += truncated
            window.left -= 1
            if window.left:
                return
        self._events.put(Ended(window))

    def _guarded(self, work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self._events.put(Failed(error))
