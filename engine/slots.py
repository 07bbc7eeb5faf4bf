"""Who holds which rows of the slab: the engine's side of the table in ipc.slab."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ipc.slab import FREE, Leases, Running


class Slots:
    """Finds contiguous extents of free rows, next-fit, and keeps the two words that say who has a row.

    `leases` uint32 [rows] and `running` uint64 [rows] are the slab's. `share` is the most rows one front end may hold
    before it is passed over, so that a stalled one cannot starve the others.
    """

    def __init__(self, leases: Leases, running: Running, share: int) -> None:
        self._leases = leases
        self._running = running
        self._share = share
        self._cursor = 0

    def find(self, count: int) -> int | None:
        """First of `count` adjacent free rows; None where there is no such extent."""
        if self._cursor + count <= len(self._leases) and self._is_free(self._cursor, count):
            return self._cursor
        taken = (self._running != FREE) | (self._leases != FREE)
        # Free runs lie between neighbouring taken rows; the table's two ends count as taken.
        fences = np.flatnonzero(np.concatenate(([True], taken, [True])))
        gaps = np.flatnonzero(np.diff(fences) > count)
        return int(fences[gaps[0]]) if len(gaps) else None

    def compute(self, first: int, sequences: Sequence[int]) -> None:
        """Free → computing: before a lane may write rows `first`, `first` + 1, …, one for each text."""
        self._cursor = first + len(sequences)
        self._running[first : self._cursor] = sequences

    def lend(self, row: int, owner: int) -> None:
        """Computing → lent: before the REPLY that names the row."""
        self._leases[row] = owner
        self._running[row] = FREE

    def give_up(self, row: int) -> None:
        """Computing → free: nobody waits for this row any more."""
        self._running[row] = FREE

    def retract(self, row: int) -> None:
        """Lent → free, for a row whose REPLY was never handed to ZeroMQ, so that its owner does not know of it."""
        self._leases[row] = FREE

    def reclaim(self, owner: int) -> int:
        """Lent → free for every row of a dead front end; gives their number."""
        held = self._leases == owner
        self._leases[held] = FREE
        return int(np.count_nonzero(held))

    def states(self) -> tuple[int, int]:
        """How many rows are computing, and how many are lent."""
        return int(np.count_nonzero(self._running)), int(np.count_nonzero(self._leases))

    def over_share(self) -> frozenset[int]:
        """Front ends that hold their share or more: no row goes to them until they let some go."""
        if np.count_nonzero(self._leases) < self._share:
            return frozenset()
        owners, held = np.unique(self._leases, return_counts=True)
        return frozenset(int(o) for o, n in zip(owners, held, strict=True) if o != FREE and n >= self._share)

    def _is_free(self, first: int, count: int) -> bool:
        extent = slice(first, first + count)
        return not (self._leases[extent].any() or self._running[extent].any())
