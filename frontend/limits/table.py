"""Rows of the embedded store in one file that all front ends of a machine map.

    words 0..7    generation of the lock · row being written · unused
    rows          id (2 words) · idle from (ns) · last charged (ns) · unused (4) · three rings (frontend.limits.ring)

A file of zeros is an empty table, so whoever comes first makes it without a lock. Its name holds what it was made for:
the boot, since the clock starts anew with it, and the sizes. A key's row is one of the 32 from where its hash says.
Rows that are idle, and only those, go to other keys; where all 32 are busy, the one that was charged longest ago
goes: its key may then use its limits once more than it should, and no key is locked out.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
from pathlib import Path
from typing import Final

from frontend.limits import ring
from frontend.limits.lock import GENERATION
from ipc.errors import StartError

log = logging.getLogger(__name__)

RULES: Final = 3
CAPACITY: Final = 4096
PROBES: Final = 32
WORD_BYTES: Final = 8
TABLE_WORDS: Final = 8
ROW_WORDS: Final = 8 + RULES * ring.WORDS
# Offsets in the table, and in a row.
WRITING: Final = GENERATION + 1
ID_LOW, ID_HIGH, IDLE_FROM, CHARGED_AT = range(4)
RINGS: Final = 8
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Table:
    """The mapped file; all but the constructor and `close` want the lock. A row is the index of its first word.

    Raises StartError where the folder has no room for it.
    """

    def __init__(self, folder: Path, capacity: int, sizes: object) -> None:
        made_for = f"1 {BOOT_ID.read_text()} {capacity} {ROW_WORDS} {sizes}"
        name = hashlib.blake2b(made_for.encode(), digest_size=8).hexdigest()
        self.path = folder / f"limits-{name}.table"
        self.evicted = 0
        self._capacity = capacity
        self._known: dict[str, tuple[int, int, int]] = {}
        size = (TABLE_WORDS + capacity * ROW_WORDS) * WORD_BYTES
        try:
            self._map = _map_file(self.path, size)
        except OSError as error:
            raise StartError(
                f"The table of limits needs {-(-size >> 20)} MiB in {folder}, which cannot be had ({error.strerror}): "
                "free memory there, or set EMBEDLANE_RUN_DIR to a larger tmpfs."
            ) from None
        self.words: memoryview[int] = memoryview(self._map).cast("q")

    def close(self) -> None:
        """Unmap; the file stays for the others."""
        self.words.release()
        self._map.close()

    def find(self, key_id: str) -> int | None:
        """The key's row, or None where nothing is counted for it."""
        row, low, high = self._known.get(key_id) or self._remember(key_id)
        words = self.words
        if words[row] == low and words[row + 1] == high:
            return row
        for row in self._probes(low):
            if words[row] == low and words[row + 1] == high:
                self._known[key_id] = (row, low, high)
                return row
        return None

    def take(self, key_id: str, now: int) -> int:
        """The key's row, else the first idle one, else the one charged longest ago."""
        row = self.find(key_id)
        if row is not None:
            return row
        _, low, high = self._known[key_id]
        words, rows = self.words, self._probes(low)
        free = next((row for row in rows if words[row + IDLE_FROM] <= now), None)
        row = min(rows, key=lambda row: words[row + CHARGED_AT]) if free is None else free
        if free is None:
            self._note_eviction()
        self._give(row, low, high)
        self._known[key_id] = (row, low, high)
        return row

    def repair(self) -> None:
        """Make right what a process wrote that died, or was stopped for long, while it held the lock."""
        row = self.words[WRITING]
        if row:
            self.repair_row(row)
            self.words[WRITING] = 0

    def repair_row(self, row: int) -> None:
        """Make the totals of a row right."""
        for rule in range(RULES):
            ring.repair(self.words, ring_of(row, rule))

    def _give(self, row: int, low: int, high: int) -> None:
        """Empty the row, then rename it: half a name is nobody's, and the row is idle by then."""
        self.words[WRITING] = row
        for rule in range(RULES):
            ring.clear(self.words, ring_of(row, rule))
        self.words[row + IDLE_FROM] = 0
        self.words[row + ID_LOW] = low
        self.words[row + ID_HIGH] = high

    def _probes(self, low: int) -> list[int]:
        return [TABLE_WORDS + (low + step) % self._capacity * ROW_WORDS for step in range(min(PROBES, self._capacity))]

    def _remember(self, key_id: str) -> tuple[int, int, int]:
        """The key's hash, and where its row would be."""
        if len(self._known) >= self._capacity:
            self._known.clear()
        digest = hashlib.blake2b(key_id.encode(), digest_size=16).digest()
        low, high = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
        known = self._known[key_id] = (self._probes(low)[0], low, high)
        return known

    def _note_eviction(self) -> None:
        if not self.evicted:
            log.warning("more keys are in use than limits can be counted for", extra={"rows": self._capacity})
        self.evicted += 1


def ring_of(row: int, rule: int) -> int:
    """Where a rule's ring begins."""
    return row + RINGS + rule * ring.WORDS


def _map_file(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Without this a full tmpfs shows itself much later, as SIGBUS on the first touch of a page.
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def remove_old_tables(folder: Path, current: Path) -> None:
    """Remove what earlier boots and other sizes left; who still has it mapped goes on with it."""
    for path in folder.glob("limits-*"):
        if path.stem != current.stem:
            path.unlink(missing_ok=True)
