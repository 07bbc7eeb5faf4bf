"""How urgent a text is."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Which queue an item waits in. A suspect was running when an engine died: it runs while nothing else does."""

    INTERACTIVE = 0
    BULK = 1
    SUSPECT = 2
