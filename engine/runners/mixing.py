"""Texts of any lengths as the arrays of a mixed graph (tools/graphs/mixed.py). Pure NumPy.

    input_ids     int32 [tokens]        all texts' ids, one text after the other
    position_ids  int32 [tokens]        each token's place in its text, from 0
    places_g      int32 [texts, width]  the tokens of group g's texts, a row each, filled up with the text's own first
    lengths_g     int32 [texts]         the tokens of each of them
    back          int32 [tokens]        where each token lies in the rows of all groups, one group after the other
    order         int32 [texts]         where each text lies there

Attention alone sees rows, and its cost grows with their width: so the texts are sorted by length and cut into groups
where the padding is least. No width that is a multiple of MIXED_STEP changes a bit of a vector (docs/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ipc.bundle import MIXED_GROUPS, MIXED_STEP
from ipc.messages import Ids

Int32 = NDArray[np.int32]
# A row's cost is width · (width + this): what attention does with two tokens, and what it does with each.
TOKEN_COST = 200


def arrange(texts: Sequence[Ids], *, fill: bool = False) -> dict[str, Int32]:
    """The graph's inputs for texts of int32 [length] each. With `fill` no group is empty: one has a row for nothing."""
    lengths = np.array([len(text) for text in texts], np.int32)
    starts = np.cumsum(lengths, dtype=np.int32) - lengths
    by_length = np.argsort(lengths, kind="stable")
    widths = -(-lengths[by_length] // MIXED_STEP) * MIXED_STEP
    arrays: dict[str, Int32] = {}
    first_place, order = np.empty_like(starts), np.empty_like(starts)
    place = row = 0
    for group, (begin, end) in enumerate(pairwise(_bounds(widths))):
        width = int(widths[end - 1]) if end > begin else MIXED_STEP
        rows = by_length[begin:end]
        first_place[rows] = np.arange(place, place + len(rows) * width, width)
        order[rows] = np.arange(row, row + len(rows))
        begins, sizes = starts[rows], lengths[rows]
        if fill and not len(rows):
            begins, sizes = np.zeros(1, np.int32), np.ones(1, np.int32)
        columns = np.arange(width, dtype=np.int32)
        arrays[f"places_{group}"] = begins[:, None] + np.where(columns < sizes[:, None], columns, np.int32(0))
        arrays[f"lengths_{group}"] = sizes
        place, row = place + len(sizes) * width, row + len(sizes)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    arrays["input_ids"] = np.concatenate(texts)
    arrays["position_ids"] = tokens - np.repeat(starts, lengths)
    arrays["back"] = tokens + np.repeat(first_place - starts, lengths)
    arrays["order"] = order
    return arrays


def _bounds(widths: Int32) -> list[int]:
    """Where each group begins and the last one ends, of least cost for sorted widths. The last group is not empty."""
    count = len(widths)
    steps = np.flatnonzero(np.diff(widths)) + 1
    if not len(steps):
        return [0] * MIXED_GROUPS + [count]
    cuts = np.concatenate(([0], steps))
    cost = widths.astype(np.int64) * (widths + TOKEN_COST)
    # Of the texts from one cut to another, if they are one group: cost[cut - 1] is that of its widest row.
    between = (cuts[None] - cuts[:, None]) * cost[cuts - 1][None]
    between[cuts[None] < cuts[:, None]] = np.iinfo(np.int64).max // 2
    total = between[0][:, None] + between + ((count - cuts) * cost[-1])[None]
    first, second = divmod(int(np.argmin(total)), len(cuts))
    return [0, int(cuts[first]), int(cuts[second]), count]
