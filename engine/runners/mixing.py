"""Texts of any lengths as the arrays of a mixed graph (tools/graphs/mixed.py). Pure NumPy.

    input_ids     int32 [tokens]        all texts' ids, one text after the other
    position_ids  int32 [tokens]        each token's place in its text, from 0
    places_g      int32 [texts, width]  the tokens of group g's texts, a row each, filled up with the text's own first
    lengths_g     int32 [texts]         the tokens of each of them
    back          int32 [tokens]        where each token lies in the rows of all groups, one group after the other
    order         int32 [texts]         where each text lies there

Attention alone sees rows, and its cost grows with their width. The last group is for texts of one length, and has
neither padding nor a mask, which saves a few percent. It gets the longest; the others are sorted by length and cut in
two where the padding is least. Neither changes a bit of a vector (docs/decisions/0013).
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipc.bundle import MIXED_GROUPS, MIXED_STEP
from ipc.messages import Ids

Int32 = NDArray[np.int32]
PLAIN = MIXED_GROUPS - 1
# x86's kernels add up what is left of a sum after whole vectors as if zeros followed; others may not.
PLAIN_AT_ANY_LENGTH = platform.machine() == "x86_64"
NO_GROUPS = {f"places_{group}": np.zeros((0, MIXED_STEP), np.int32) for group in range(MIXED_GROUPS)} | {
    f"lengths_{group}": np.zeros(0, np.int32) for group in range(MIXED_GROUPS)
}
# A row's cost is width · (width + this): what attention does with two tokens, and what it does with each.
TOKEN_COST = 200


def arrange(texts: Sequence[Ids], *, fill: bool = False) -> dict[str, Int32]:
    """The graph's inputs for texts of int32 [length] each. With `fill` no group is empty: one has a row for nothing."""
    lengths = np.array([len(text) for text in texts], np.int32)
    if not fill and _is_plain(len(texts[0])) and (lengths == lengths[0]).all():
        return _equal(texts, lengths)
    starts = np.cumsum(lengths, dtype=np.int32) - lengths
    by_length = np.argsort(lengths, kind="stable")
    ordered = lengths[by_length]
    arrays: dict[str, Int32] = {}
    first_place, order = np.empty_like(starts), np.empty_like(starts)
    place = row = 0
    for group, (begin, end) in enumerate(pairwise(_bounds(ordered))):
        rows = by_length[begin:end]
        begins, sizes = starts[rows], ordered[begin:end]
        if fill and not len(rows):
            begins, sizes = np.zeros(1, np.int32), np.ones(1, np.int32)
        width = int(sizes[-1]) if len(sizes) else MIXED_STEP
        columns = np.arange(width if group == PLAIN else _padded(width), dtype=np.int32)
        first_place[rows] = place + np.arange(len(rows)) * len(columns)
        order[rows] = row + np.arange(len(rows))
        arrays[f"places_{group}"] = begins[:, None] + np.where(columns < sizes[:, None], columns, np.int32(0))
        arrays[f"lengths_{group}"] = sizes
        place, row = place + len(sizes) * len(columns), row + len(sizes)
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    arrays["input_ids"] = np.concatenate(texts)
    arrays["position_ids"] = tokens - np.repeat(starts, lengths)
    arrays["back"] = tokens + np.repeat(first_place - starts, lengths)
    arrays["order"] = order
    return arrays


def _equal(texts: Sequence[Ids], lengths: Int32) -> dict[str, Int32]:
    """As `arrange`, in fewer steps: a text that is alone waits for them."""
    tokens = np.arange(lengths.sum(), dtype=np.int32)
    return {
        **NO_GROUPS,
        "input_ids": np.concatenate(texts),
        "position_ids": tokens % lengths[0],
        "back": tokens,
        "order": np.arange(len(texts), dtype=np.int32),
        f"places_{PLAIN}": tokens.reshape(len(texts), -1),
        f"lengths_{PLAIN}": lengths,
    }


def _is_plain(length: int) -> bool:
    return PLAIN_AT_ANY_LENGTH or length % MIXED_STEP == 0


def _padded(width: Any) -> Any:
    """An int, or an array of them, up to the next multiple of MIXED_STEP."""
    return -(-width // MIXED_STEP) * MIXED_STEP


def _bounds(lengths: Int32) -> list[int]:
    """Where each group begins and the last one ends, of least cost for sorted lengths."""
    count = len(lengths)
    longest = int(lengths[-1])
    others = int(np.searchsorted(lengths, longest)) if _is_plain(longest) else count
    return [0, _cut(_padded(lengths[:others])), others, count]


def _cut(widths: Int32) -> int:
    """Where to cut these sorted widths in two at the least cost; 0 where one group is as good."""
    cuts = np.concatenate(([0], np.flatnonzero(np.diff(widths)) + 1))
    if len(cuts) == 1:
        return 0
    cost = widths.astype(np.int64) * (widths + TOKEN_COST)
    # cost[cut - 1] is that of the widest row of the first group; with no text in it, it does not matter.
    return int(cuts[np.argmin(cuts * cost[cuts - 1] + (len(widths) - cuts) * cost[-1])])
