"""What runs a batch: a small protocol, so that anything that gains from batching can be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ipc.messages import Ids
from ipc.slab import Rows


class Runner(Protocol):
    """A loaded model.

    `lanes` is how many threads may call `run` at once; `device` and `precision` are names for people.
    """

    device: str
    precision: str
    lanes: int

    def warm_up(self, rows: Rows) -> None:
        """Run what must not be slow later, with `rows` (float32 [n, dim]) as scratch."""

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """Write the vector of texts[i] (int32 [length], all of one length) into rows[i], float32 [n, dim].

        Gives the number of tokens that were computed besides those of the texts, to fill up a shape.
        """
