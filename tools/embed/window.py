"""What goes through the stages: rows of the input, a window of them at a time.

reader ─▶ Row (texts, or a fault) ─▶ Window ─▶ Job (some texts of it) ─▶ vectors ─▶ writer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ipc.messages import Ids
from ipc.slab import Rows

# A window ends with the row that reaches so many characters, so that its memory is bounded whatever texts are like.
WINDOW_CHARS = 8 << 20
# The first window is small, and the next ones double: the model must not wait until thousands of rows are tokenized.
FIRST_ROWS = 1024


class Terms(NamedTuple):
    """How texts are to be embedded: cut where they are too long, or refused; with the model's prompt of this name."""

    truncate: bool = True
    prompt_name: str | None = None


DEFAULT = Terms()


class Fault(NamedTuple):
    """Why a row has no vector: a clause that goes on from "row 7: "; status and code are those a server answers."""

    reason: str
    status: int = 400
    code: str = "validation_error"


@dataclass(slots=True)
class Row:
    """One row of the input: its texts (one, or those of a request), and `about`, what the writer wants to know."""

    texts: list[str]
    about: Any = None
    fault: Fault | None = None
    terms: Terms = DEFAULT


class Reader(Protocol):
    """An input that can be read from where an earlier run ended.

    `size` is the position of the end, None where that is not known; `has_requests` says that rows are requests, whose
    tokens are counted for each.
    """

    size: int | None
    has_requests: bool

    def rows(self, position: int) -> Iterator[tuple[Row, int]]:
        """Each row from a position on (0: all), and the position after it."""


@dataclass(slots=True)
class Window:
    """Neighbouring rows: so many are before them, and `position` is where the reader goes on after them.

    `vectors` is float32 [texts, dim] and `tokens` int64 [texts], each complete once `left` jobs have ended. Where
    rows are requests, a job has texts of one row only, and may count all their tokens at its first.
    """

    first: int
    rows: list[Row]
    position: int
    has_requests: bool
    texts: list[str] = field(init=False)
    row_of: NDArray[np.int64] = field(init=False)
    vectors: Rows = field(init=False)
    tokens: NDArray[np.int64] = field(init=False)
    faults: dict[int, Fault] = field(default_factory=dict)
    truncated: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self.texts = [text for row in self.rows for text in row.texts]
        self.row_of = np.repeat(np.arange(len(self.rows)), [len(row.texts) for row in self.rows])
        self.tokens = np.zeros(len(self.texts), np.int64)

    def by_terms(self) -> dict[Terms, list[int]]:
        """Which texts share their terms: all, but for requests."""
        if not self.has_requests:
            return {self.rows[self.row_of[0]].terms: list(range(len(self.texts)))} if self.texts else {}
        groups: dict[Terms, list[int]] = {}
        for text, row in enumerate(self.row_of):
            groups.setdefault(self.rows[row].terms, []).append(text)
        return groups

    def settle(self) -> None:
        """Give the faults that were found in texts to their rows, once all jobs have ended."""
        for text in sorted(self.faults, reverse=True):
            self.rows[self.row_of[text]].fault = self.faults[text]

    def bad(self) -> list[int]:
        """Which rows have a fault."""
        return [number for number, row in enumerate(self.rows) if row.fault]

    def row_vectors(self) -> Rows:
        """float32 [rows, dim] where rows have one text each; not-a-number for those with a fault."""
        bad = self.bad()
        if not bad:
            return self.vectors
        vectors = np.empty((len(self.rows), self.vectors.shape[1]), np.float32)
        vectors[self.row_of] = self.vectors
        vectors[bad] = np.nan
        return vectors


class Job(NamedTuple):
    """Some texts of a window, by their numbers there, and their token ids where the backend has made them."""

    window: Window
    texts: NDArray[np.int64]
    ids: list[Ids]


class Backend(Protocol):
    """What makes vectors, in several threads. `identity` is all that their bits depend on, by names for people.

    `status` tells a person why nothing happens just now, if so; `prompts` names the model's.
    """

    dim: int
    workers: int
    identity: dict[str, str]
    prompts: frozenset[str]
    status: str

    def plan(self, window: Window) -> list[Job]:
        """Divide a window's texts into jobs; those that can have no vector are put into its faults."""

    def worker(self, number: int) -> AbstractContextManager[Callable[[Job], int]]:
        """What thread `number` of them calls for job after job, until its end.

        It writes vectors, tokens and faults, and gives the number of texts that it saw truncated.
        """

    def close(self) -> None:
        """End what waits, for nobody will ask for it."""


def windows(reader: Reader, first: int, position: int, most_rows: int) -> Iterator[Window]:
    """The reader's rows from a position on, `first` rows being before it. Where windows end depends on them alone."""
    rows: list[Row] = []
    texts = chars = 0
    for row, after in reader.rows(position):
        rows.append(row)
        texts += max(1, len(row.texts))
        chars += sum(map(len, row.texts))
        if texts >= min(most_rows, max(FIRST_ROWS, first)) or chars >= WINDOW_CHARS:
            yield Window(first, rows, after, reader.has_requests)
            first, rows, texts, chars = first + len(rows), [], 0, 0
        position = after
    if rows:
        yield Window(first, rows, position, reader.has_requests)
