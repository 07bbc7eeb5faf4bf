"""The lock around each decision: a flock, which the kernel frees whatever way its holder dies.

A holder that is stopped (SIGSTOP, a debugger) cannot be waited for: the others agree on a new lock file, by its
number in a word of the table. A holder that goes on later finds that its number is past, and says so.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

GENERATION: Final = 0


class TableLock:
    """Exclusive among all processes, and never blocking; `words[GENERATION]` numbers the file in force."""

    def __init__(self, table: Path, words: memoryview[int]) -> None:
        self._table = table
        self._words = words
        self._generation = words[GENERATION]
        self._descriptor = self._open(self._generation)

    def try_acquire(self) -> bool:
        """Whether this process has the lock now. False: ask again soon, and `replace` it where that lasts."""
        generation = self._words[GENERATION]
        if generation != self._generation:
            self._follow(generation)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if self._words[GENERATION] == self._generation:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def release(self) -> bool:
        """Let go. False: it was replaced meanwhile, so that others may have written at the same time."""
        was_ours = self._words[GENERATION] == self._generation
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return was_ours

    def replace(self) -> bool:
        """Put the next lock in the place of one whose holder is stopped; whether it was this process that did so."""
        stuck = self._generation
        following = self._open(stuck + 1)
        try:
            # Under the lock to come: of those who find this one stuck only one counts up.
            fcntl.flock(following, fcntl.LOCK_EX | fcntl.LOCK_NB)
            replaced = self._words[GENERATION] == stuck
            if replaced:
                self._words[GENERATION] = stuck + 1
        except BlockingIOError:
            return False
        finally:
            os.close(following)
        return replaced

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _follow(self, generation: int) -> None:
        descriptor = self._open(generation)
        os.close(self._descriptor)
        self._descriptor, self._generation = descriptor, generation

    def _open(self, generation: int) -> int:
        path = self._table.with_suffix(f".lock{generation}")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
