"""What a person sees: a bar with the rate and the time left, on stderr, and one line at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from tools.embed.journal import Mark


class Progress:
    """`before` is what earlier runs have done; `size` is the reader's, None where it is not known.

    Without a terminal there is no bar. `status` tells why nothing happens, if so.
    """

    def __init__(self, before: Mark, size: int | None, status: Callable[[], str], *, quiet: bool) -> None:
        # Its own lock is one between processes, and its own thread watches other bars.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor_interval = 0
        self._before = before
        self._size = size
        self._status = status
        self._began = time.monotonic()
        self._bar = tqdm(unit=" texts", initial=before.texts, disable=True if quiet else None, dynamic_ncols=True)
        self._bar.total = self._total(before)

    def on_texts(self, count: int) -> None:
        """So many more are done."""
        self._bar.set_postfix_str(self._status(), refresh=False)
        self._bar.update(count)

    def on_mark(self, mark: Mark) -> None:
        """A window is written: how many texts there are in all can be told better now."""
        self._bar.total = self._total(mark)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def summary(self, mark: Mark, out: Path) -> str:
        """All that there is to say."""
        seconds = time.monotonic() - self._began
        texts = mark.texts - self._before.texts
        parts = [f"{mark.texts:,} texts in {mark.rows:,} rows" if mark.texts != mark.rows else f"{mark.texts:,} texts"]
        if self._before.texts:
            parts.append(f"{self._before.texts:,} of them by earlier runs")
        parts.append(f"{seconds:.1f} s, {texts / max(seconds, 1e-9):,.0f} texts/s")
        parts += [f"{mark.truncated:,} truncated"] if mark.truncated else []
        parts += [f"{mark.bad:,} rows without a vector"] if mark.bad else []
        return f"embed: {out}: {', '.join(parts)}"

    def _total(self, mark: Mark) -> int | None:
        """By how much of the input the texts so far took."""
        if self._size is None or not mark.position:
            return None
        return max(mark.texts, round(mark.texts * self._size / mark.position))
