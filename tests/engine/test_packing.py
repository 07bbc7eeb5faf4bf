from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runners.buckets import Bucket, Buckets
from engine.runners.packing import PADDING_ID, Packed, empty, pack
from ipc.messages import Ids

ROWS, TOKENS, MAX_TOKENS = 32, 512, 200
BUCKETS = Buckets(ROWS, TOKENS, MAX_TOKENS)


def make(lengths: list[int]) -> list[Ids]:
    chance = np.random.default_rng(sum(lengths))
    return [chance.integers(1, 1000, length, dtype=np.int32) for length in lengths]


def fitting(lengths: list[int]) -> list[int]:
    """As many as one batch may hold."""
    ends = np.cumsum(lengths)
    return [length for length, end in zip(lengths, ends, strict=True) if end <= TOKENS] or lengths[:1]


batches = st.lists(st.one_of(st.integers(1, 8), st.integers(1, MAX_TOKENS)), min_size=1, max_size=ROWS).map(fitting)


def packed(texts: list[Ids], bucket: Bucket) -> Packed:
    into = empty(bucket)
    # What an earlier batch left behind must not show.
    for array in (into.input_ids, into.position_ids, into.cu_seqlens, into.token_offset):
        array[...] = -7
    pack(texts, bucket, into)
    return into


def choose(lengths: list[int]) -> Bucket:
    return BUCKETS.choose(len(lengths), sum(lengths), max(lengths))


def test_the_operators_own_example() -> None:
    """Three texts of 1, 2 and 4 tokens, as the operator's description has them."""
    made = packed(make([1, 2, 4]), Bucket(7, 3, 4, False))
    assert made.cu_seqlens.tolist() == [0, 1, 3, 7]
    assert made.token_offset.reshape(-1).tolist() == [0, 4, 5, 8, 9, 10, 11, 1, 2, 3, 6, 7]
    assert made.position_ids.tolist() == [0, 0, 1, 0, 1, 2, 3]


def test_what_is_left_becomes_texts_behind_the_real_ones() -> None:
    made = packed(make([3, 2]), Bucket(15, 5, 6, False))
    assert made.cu_seqlens.tolist() == [0, 3, 5, 5, 9, 15]
    assert made.input_ids[5:].tolist() == [PADDING_ID] * 10
    assert made.position_ids[5:].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


@settings(deadline=None, max_examples=300)
@given(batches)
def test_every_token_is_there_once_and_unpacking_is_the_identity(lengths: list[int]) -> None:
    texts, bucket = make(lengths), choose(lengths)
    made = packed(texts, bucket)
    offsets = made.token_offset.reshape(-1)
    assert np.array_equal(np.sort(offsets), np.arange(bucket.texts * bucket.longest)), "each place of a batch once"
    unpacked = np.full(bucket.texts * bucket.longest, -1, np.int32)
    unpacked[offsets[: bucket.tokens]] = made.input_ids
    for text, row in zip(texts, unpacked.reshape(bucket.texts, bucket.longest), strict=False):
        assert np.array_equal(row[: len(text)], text)
        assert (row[len(text) :] == -1).all()
    for index, text in enumerate(texts):
        begin, end = made.cu_seqlens[index : index + 2]
        assert np.array_equal(made.input_ids[begin:end], text)
        assert made.position_ids[begin:end].tolist() == list(range(len(text)))


@settings(deadline=None, max_examples=300)
@given(batches)
def test_every_token_belongs_to_a_text_that_the_model_can_take(lengths: list[int]) -> None:
    bucket = choose(lengths)
    made = packed(make(lengths), bucket)
    steps = np.diff(made.cu_seqlens)
    assert made.cu_seqlens[0] == 0
    assert made.cu_seqlens[-1] == bucket.tokens
    assert steps.min() >= 0
    assert steps.max() <= bucket.longest <= MAX_TOKENS
    assert made.position_ids.min() >= 0
    assert made.position_ids.max() < bucket.longest
    assert (made.cu_seqlens[:-1] < bucket.tokens).all(), "CLS pooling looks up each text's first token"
    assert (made.cu_seqlens[1:] > 0).all(), "and another pooling its last"


@pytest.mark.parametrize("lengths", [[4, 4, 4], [9], [1, 1, 1, 1]])
def test_a_bucket_that_is_too_small_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        packed(make(lengths), Bucket(8, 3, 4, False))
