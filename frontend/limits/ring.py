"""One rule's sliding window, in 64 words of the table: total, head, last, and a ring of 61 buckets.

    word      what                                         invariant
    TOTAL     amount counted                               the sum of the buckets
    HEAD      number of the newest bucket of the ring      bucket n is at FIRST + n % 61; those after HEAD are long past
    LAST      number of the bucket last charged            <= HEAD
    FIRST...  amounts                                      >= 0

A bucket's number is time // width. What is charged in bucket n is counted until bucket n + 61 begins: at least 60
widths, so no window of that length ever holds more than the limit. Only a process that holds the table's lock writes
here. It may be killed between two writes, each of which is whole: the order of writes leaves every state such that
`repair`, which adds up the buckets, makes it one that could have been (the request of the dead is charged to some
of the rules).
"""

from __future__ import annotations

from typing import Final

from frontend.limits.quota import COUNTED, RuleState

TOTAL, HEAD, LAST, FIRST = range(4)
WORDS: Final = FIRST + COUNTED


def advance(words: memoryview[int], base: int, bucket: int) -> None:
    """Let the ring's newest bucket be at least this one: what is too old is no longer counted. O(1) amortized."""
    head, total = words[base + HEAD], words[base + TOTAL]
    if head >= bucket:
        return
    if total:
        for number in range(head + 1, min(bucket, head + COUNTED) + 1):
            slot = base + FIRST + number % COUNTED
            total -= words[slot]
            words[slot] = 0
        words[base + TOTAL] = total
    words[base + HEAD] = bucket


def charge(words: memoryview[int], base: int, amount: int) -> None:
    """Count this in the newest bucket."""
    head = words[base + HEAD]
    words[base + LAST] = head
    words[base + FIRST + head % COUNTED] += amount
    words[base + TOTAL] += amount


def refund(words: memoryview[int], base: int, amount: int, bucket: int) -> None:
    """Take back what was charged in that bucket, if it is still counted."""
    if bucket > words[base + HEAD] - COUNTED:
        slot = base + FIRST + bucket % COUNTED
        amount = min(amount, words[slot])
        words[base + TOTAL] -= amount
        words[slot] -= amount


def repair(words: memoryview[int], base: int) -> None:
    """Make the total right after a process died between two writes."""
    words[base + TOTAL] = sum(words[base + FIRST : base + WORDS])


def clear(words: memoryview[int], base: int) -> None:
    """Forget all."""
    for word in range(base, base + WORDS):
        words[word] = 0


def used(words: memoryview[int], base: int, now: int, width: int) -> RuleState:
    """The state of an advanced ring, when what was asked fits; times in the unit of `now` and `width` are ns."""
    total = words[base + TOTAL]
    return total, _left(words[base + LAST], now, width) if total else 0.0, 0.0, 0.0


def refused(words: memoryview[int], base: int, now: int, width: int, excess: int) -> RuleState:
    """The state with the times at which anything, and `excess`, is freed; never where nothing used would be enough."""
    total, reset, _, _ = used(words, base, now, width)
    frees = fits = 0.0
    head, freed = words[base + HEAD], 0
    for number in range(head - COUNTED + 1, head + 1):
        value = words[base + FIRST + number % COUNTED]
        if value:
            freed += value
            frees = frees or _left(number, now, width)
            if freed >= excess:
                fits = _left(number, now, width)
                break
    return total, reset, -1.0 if excess > total else fits, frees


def _left(bucket: int, now: int, width: int) -> float:
    """Seconds until a bucket is no longer counted."""
    return ((bucket + COUNTED) * width - now) / 1e9
