from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.queue import Item
from engine.runners.buckets import CAPTURED_TOKENS, Bucket, Buckets
from engine.scheduler import Limits, Scheduler
from ipc.priority import Priority
from perf.texts import Kind, make_texts

ROWS, TOKENS = 1024, 16384
MOST_WASTE = 1.05


@pytest.mark.parametrize("max_tokens", [24, 128, 256, 512, 8192])
def test_they_are_few_and_the_largest_comes_first(max_tokens: int) -> None:
    every = list(Buckets(ROWS, TOKENS, max_tokens))
    assert len(every) <= 600
    assert every == sorted(every, key=lambda b: (b.tokens, b.texts, b.longest), reverse=True)
    assert len([b for b in every if b.is_captured]) <= 100
    assert {b.longest for b in every} <= {128, 256, 512, 1024, 2048, 4096, max_tokens}


def test_small_ones_are_powers_of_two_and_captured() -> None:
    sizes = sorted({b.tokens for b in Buckets(ROWS, TOKENS, 256) if b.is_captured})
    assert sizes == [64, 128, 256, 512, 1024, CAPTURED_TOKENS]


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 700), st.integers(1, 300), st.data())
def test_every_batch_within_the_bounds_has_a_bucket(
    rows: int, tokens: int, max_tokens: int, data: st.DataObject
) -> None:
    buckets = Buckets(rows, tokens, max_tokens)
    texts = data.draw(st.integers(1, rows))
    longest = data.draw(st.integers(1, max_tokens))
    least = longest + texts - 1
    real = data.draw(st.integers(least, max(least, min(tokens, longest * texts))))
    if texts > 1 and real > tokens:
        return
    bucket = buckets.choose(texts, real, longest)
    assert bucket in set(buckets)
    assert bucket.tokens > real
    assert bucket.texts > texts
    assert longest <= bucket.longest <= max_tokens
    assert bucket.tokens - real <= (bucket.texts - texts) * bucket.longest, "the padding fits into the texts left"


def test_what_no_bucket_holds_is_refused() -> None:
    buckets = Buckets(8, 64, 32)
    with pytest.raises(ValueError, match="longer"):
        buckets.choose(1, 33, 33)
    with pytest.raises(ValueError, match="no bucket"):
        buckets.choose(2, 200, 30)


def full_batches(lengths: list[int]) -> list[list[int]]:
    """What the scheduler makes of texts that all wait."""
    scheduler = Scheduler(Limits(ROWS, TOKENS, 0, 2 * len(lengths), mixes_lengths=True))
    for number, length in enumerate(lengths):
        assert scheduler.add(Item(1, number, np.zeros(length, np.int32), Priority.INTERACTIVE, 2**62, 0))
    batches = []
    while scheduler:
        batches.append([len(item.ids) for item in scheduler.next_batch(0, idle=True).batch])
    return batches[:-1]


@pytest.mark.parametrize("length", [16, 32, 50, 128, 256])
def test_full_batches_of_one_length_waste_little_whatever_bounds_them(length: int) -> None:
    buckets = Buckets(512, TOKENS, 256)
    texts = min(512, TOKENS // length)
    assert buckets.choose(texts, texts * length, length).tokens <= MOST_WASTE * texts * length


@pytest.mark.parametrize("kind", ["short", "passage", "mixed"])
def test_full_batches_waste_little(kind: Kind) -> None:
    lengths = [len(text.split()) + 3 for text in make_texts(kind, 20_000)]
    buckets = Buckets(ROWS, TOKENS, 256)
    chosen: list[tuple[Bucket, list[int]]] = [
        (buckets.choose(len(batch), sum(batch), max(batch)), batch) for batch in full_batches(lengths)
    ]
    assert len(chosen) >= 10
    padded, real = sum(bucket.tokens for bucket, _ in chosen), sum(sum(batch) for _, batch in chosen)
    assert padded / real <= MOST_WASTE
