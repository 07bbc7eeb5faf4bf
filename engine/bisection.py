"""A bad text fails alone: a batch whose run raises is run again in halves, and those in theirs, down to the text.

However many are bad, each text is run 1 + log2(texts) times at most, and what a part has computed stays. Where a run
lacked memory, the parts are tried until they fit, and later batches are kept as small for a while.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ipc.messages import Ids
from ipc.slab import Rows

log = logging.getLogger(__name__)

# How long batches stay small after a run that lacked memory; then a full one is tried again.
SMALL_NS = 60_000_000_000
# What ONNX Runtime's arenas, CUDA, its libraries and PyTorch say. Not by type: that would need their packages.
NO_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|smaller than requested bytes|STATUS_ALLOC_FAILED|can't allocate memory"
    r"|bad_?\s?alloc",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Ran:
    """What came of a batch: which rows hold numbers (bool [texts]), tokens of padding, and the runs that raised.

    `fits` is the most tokens that a later batch should have; None where no run lacked memory.
    """

    finite: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    padding: int = 0
    failures: int = 0
    fits: int | None = None


def run_parts(
    run: Callable[[Sequence[Ids], Rows], int], texts: Sequence[Ids], rows: Rows, sequences: Sequence[int]
) -> Ran:
    """Run texts (int32 [length] each) into rows (float32 [texts, dim]), whole if that works; raises nothing.

    `sequences` are the texts' names in the log.
    """
    ran = Ran(np.zeros(len(texts), bool))
    parts = [(0, len(texts))]
    while parts:
        begin, end = parts.pop()
        try:
            ran.padding += run(texts[begin:end], rows[begin:end])
        except BaseException as error:
            # Also what is no Exception: a lane that ended by it would never answer its batch.
            _note(ran, error, texts[begin:end], sequences[begin:end])
        else:
            ran.finite[begin:end] = np.isfinite(rows[begin:end]).all(axis=1)
            continue
        # Here the error is gone, and with it the memory that its traceback kept.
        if end - begin > 1:
            middle = (begin + end) // 2
            parts += [(middle, end), (begin, middle)]
    return ran


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a run failed for want of memory, on the device or the host, so that a smaller one may not."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or NO_MEMORY.search(str(error)) is not None
    )


def _note(ran: Ran, error: BaseException, texts: Sequence[Ids], sequences: Sequence[int]) -> None:
    lengths = [len(text) for text in texts]
    ran.failures += 1
    lacks_memory = is_out_of_memory(error)
    if lacks_memory:
        fits = sum(lengths) if len(texts) == 1 else sum(lengths) // 2
        ran.fits = fits if ran.fits is None else min(fits, ran.fits)
    told = {"sequences": list(sequences), "lengths": lengths, "reason": str(error)}
    if ran.failures == 1:
        # Out of memory needs no traceback, and is no failure as long as the parts fit.
        log.log(
            logging.WARNING if lacks_memory else logging.ERROR,
            "a batch found no memory" if lacks_memory else "a batch failed",
            extra=told,
            exc_info=None if lacks_memory else error,
        )
    elif len(texts) == 1:
        log.error("a text failed by itself", extra=told)
