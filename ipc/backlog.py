"""What waits in the engine, for all front ends to see: tokens by priority and flow, and how fast they go.

The words of slab-<epoch>.backlog, uint64, of which the engine alone writes::

    0            tokens that all lanes together run in a second; 0 while nobody knows
    1            how often the engine has read all that had come
    2            tokens of bulk that run in a second beside what is interactive; 0 while nobody knows
    then, for each priority:
    0            tokens that wait
    1            flows that have some of them
    2 .. 257     tokens of each flow

A flow is what shares fairly with others: the requests of one key. Keys are spread over 256 of them, as stochastic
fairness queueing does (McKenney, 1990), so that neither table nor turn grows with the number of keys.

Words are aligned and so never seen in part. Those that change together may be seen one before the other, which makes
an estimate a little older than it is anyway.
"""

from __future__ import annotations

from typing import Final, Self

from ipc.priority import Priority

FLOWS: Final = 256
HEAD: Final = 3
TOTAL, ACTIVE, FIRST = 0, 1, 2
PART: Final = FIRST + FLOWS
BACKLOG_BYTES: Final = 8 * (HEAD + len(Priority) * PART)


class Backlog:
    """Reads the words, and writes them where `words` may be written to."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words
        self._parts = [words[HEAD + PART * priority : HEAD + PART * (priority + 1)] for priority in Priority]

    @classmethod
    def private(cls) -> Self:
        """One that nobody else sees: all zero."""
        return cls(memoryview(bytearray(BACKLOG_BYTES)).cast("Q"))

    @property
    def rate(self) -> int:
        """Tokens per second; 0 while nobody knows."""
        return self._words[0]

    @rate.setter
    def rate(self, tokens_per_second: int) -> None:
        self._words[0] = tokens_per_second

    @property
    def bulk_rate(self) -> int:
        """Tokens of bulk per second; 0 while nobody knows."""
        return self._words[2]

    @bulk_rate.setter
    def bulk_rate(self, tokens_per_second: int) -> None:
        self._words[2] = tokens_per_second

    def rate_of(self, priority: Priority) -> int:
        """Tokens of this priority that run in a second while some wait; 0 while nobody knows."""
        return (priority is Priority.BULK and self._words[2]) or self._words[0]

    @property
    def rounds(self) -> int:
        """How often the engine has read all that had come."""
        return self._words[1]

    def end_round(self) -> None:
        """Count one more."""
        self._words[1] += 1

    def part(self, priority: Priority) -> memoryview[int]:
        """A priority's own words: TOTAL, ACTIVE, then from FIRST on the flows."""
        return self._parts[priority]

    def seconds(self, priority: Priority, flow: int, tokens: int = 0) -> float:
        """How long it takes until this flow's texts, and so many tokens more, have run; 0 while nobody knows.

        Each flow that waits gets an equal share of the lanes, and bulk waits for all that is interactive.
        """
        rate = self.rate_of(priority)
        if not rate:
            return 0.0
        part = self._parts[priority]
        own, others = part[FIRST + flow], part[ACTIVE]
        flows = others if own else others + 1
        seconds = min(part[TOTAL] + tokens, (own + tokens) * flows) / rate
        return seconds + self._seconds(Priority.INTERACTIVE) if priority is Priority.BULK else seconds

    def most_seconds(self) -> float:
        """How long whoever comes now waits at most."""
        return self._seconds(Priority.INTERACTIVE) + self._seconds(Priority.BULK)

    def _seconds(self, priority: Priority) -> float:
        """How long it takes until all that waits has run."""
        rate = self.rate_of(priority)
        return self._parts[priority][TOTAL] / rate if rate else 0.0
