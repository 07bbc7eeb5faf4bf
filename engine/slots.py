"""Who holds which rows of the slab: the engine's side of the lease table.

A row is computing (reserved for a batch, known to the engine alone), lent (its lease word names a front end) or free.
"""

from __future__ import annotations

import numpy as np

from ipc.slab import FREE, Leases


class Slots:
    """Hands out contiguous extents of rows, next-fit, and takes them back.

    `leases` is uint32 [rows], shared with the front ends. `share` is the most rows one front end may hold before
    it is passed over, so that a stalled one cannot starve the others.
    """

    def __init__(self, leases: Leases, share: int) -> None:
        self._leases = leases
        self._computing = np.zeros(len(leases), bool)
        self._share = share
        self._cursor = 0

    def reserve(self, count: int) -> int | None:
        """First row of `count` adjacent free rows, now computing; None where there is no such extent."""
        first = self._fit(count)
        if first is not None:
            self._computing[first : first + count] = True
            self._cursor = first + count
        return first

    def trim(self, first: int, reserved: int, count: int) -> None:
        """Keep the first `count` rows of an extent of `reserved`, and free the rest."""
        self._computing[first + count : first + reserved] = False
        self._cursor = first + count

    def lend(self, row: int, owner: int) -> None:
        """Computing → lent: before the REPLY that names the row."""
        self._leases[row] = owner
        self._computing[row] = False

    def give_up(self, row: int) -> None:
        """Computing → free: nobody waits for this row any more."""
        self._computing[row] = False

    def retract(self, row: int) -> None:
        """Lent → free, for a row whose REPLY was never handed to ZeroMQ, so that its owner does not know of it."""
        self._leases[row] = FREE

    def reclaim(self, owner: int) -> int:
        """Lent → free for every row of a dead front end; gives their number."""
        held = self._leases == owner
        self._leases[held] = FREE
        return int(np.count_nonzero(held))

    def in_use(self) -> int:
        """Rows that are computing or lent."""
        return int(np.count_nonzero(self._computing) + np.count_nonzero(self._leases))

    def over_share(self) -> frozenset[int]:
        """Front ends that hold their share or more: no row goes to them until they let some go."""
        if np.count_nonzero(self._leases) < self._share:
            return frozenset()
        owners, held = np.unique(self._leases, return_counts=True)
        return frozenset(int(o) for o, n in zip(owners, held, strict=True) if o != FREE and n >= self._share)

    def _fit(self, count: int) -> int | None:
        end = self._cursor + count
        if end <= len(self._leases) and self._is_free(self._cursor, end):
            return self._cursor
        taken = self._computing | (self._leases != FREE)
        # Free runs lie between neighbouring taken rows; the table's two ends count as taken.
        fences = np.flatnonzero(np.concatenate(([True], taken, [True])))
        gaps = np.flatnonzero(np.diff(fences) > count)
        return int(fences[gaps[0]]) if len(gaps) else None

    def _is_free(self, first: int, end: int) -> bool:
        return not (self._leases[first:end].any() or self._computing[first:end].any())
