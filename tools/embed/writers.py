"""Outputs that are written once, from the first row to the last: what a window adds, and what makes the file whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import orjson

from frontend.raw import npy_head
from tools.embed.window import Window

EMBEDDING: Final = "embedding"
Data = Sequence[bytes | memoryview]


class Writer(Protocol):
    """An output format. `head` is what OUT.partial begins with.

    What a window adds depends on nothing but the window, so that a resumed output has the same bytes.
    """

    head: bytes

    def data(self, window: Window) -> Data:
        """What a complete window adds."""

    def finish(self, partial: BinaryIO, path: Path, rows: int) -> Path:
        """Make it whole, given OUT.partial open and by name; gives the file that is to become OUT.

        May have been done before, by a run that was killed.
        """


class NpyWriter:
    """`.npy`, float32 [rows, dim]. The number of rows is filled in at the end: the head has room for any."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.head = npy_head(0, dim)

    def data(self, window: Window) -> Data:
        """See Writer."""
        return [window.row_vectors().data.cast("B")]

    def finish(self, partial: BinaryIO, path: Path, rows: int) -> Path:
        """See Writer."""
        head = npy_head(rows, self._dim)
        assert len(head) == len(self.head), "this is a bug: NumPy leaves room for 21 digits"
        partial.seek(0)
        partial.write(head)
        partial.flush()
        return path


class JsonlWriter:
    """A JSON object a row: the fields that are kept, and `embedding`; null beside an `error` where there is none."""

    head = b""

    def __init__(self, keep: Sequence[str]) -> None:
        self._keep = keep

    def data(self, window: Window) -> Data:
        """See Writer."""
        lines = []
        for row, vector in zip(window.rows, window.row_vectors(), strict=True):
            said: dict[str, Any] = dict(zip(self._keep, row.about, strict=True))
            said |= {EMBEDDING: None, "error": row.fault.reason} if row.fault else {EMBEDDING: vector}
            lines.append(encode(said))
        return lines

    def finish(self, partial: BinaryIO, path: Path, rows: int) -> Path:
        """See Writer."""
        return path


def encode(said: Mapping[str, Any]) -> bytes:
    """A line of JSON; numbers of a vector read back as the same float32. What JSON has not (dates) is as text."""
    return orjson.dumps(said, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
