"""A second runner, tiny and exact: the proof that the engine serves whatever keeps the Runner protocol."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ipc.messages import Ids
from ipc.slab import Rows

FAILS = 13
NOT_A_NUMBER = 17
PATIENCE_SECONDS = 30


@dataclass
class SumRunner:
    """The "vector" of a text is its length and the sum of its ids; one id makes the run fail, one gives NaN.

    Each run announces itself in `started` and waits for `gate`, which is open unless a test closes it.
    """

    device: str = "cpu"
    precision: str = "exact"
    lanes: int = 2
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def warm_up(self, rows: Rows) -> None:
        rows[:] = 0

    def run(self, texts: Sequence[Ids], rows: Rows) -> None:
        self.started.release()
        assert self.gate.wait(PATIENCE_SECONDS)
        self.batches.append(len(texts))
        for text, row in zip(texts, rows, strict=True):
            if FAILS in text:
                raise RuntimeError("this id fails")
            row[:] = (len(text), text.sum())
            if NOT_A_NUMBER in text:
                row[0] = np.nan

    def wait_started(self) -> None:
        assert self.started.acquire(timeout=PATIENCE_SECONDS)


@dataclass
class WideSumRunner(SumRunner):
    """The same with a wide run, which notes the thread it ran in."""

    alone: list[str] = field(default_factory=list)

    def run_alone(self, texts: Sequence[Ids], rows: Rows) -> None:
        self.alone.append(threading.current_thread().name)
        self.run(texts, rows)
