from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from frontend.cache import ENTRY_BYTES, KEY_BYTES, VectorCache

VECTOR = 384 * 4


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "little")


def room(entries: int, vector: int = VECTOR) -> int:
    return entries * (vector + ENTRY_BYTES)


def test_the_least_recently_used_goes_first() -> None:
    cache = VectorCache(room(3))
    for n in range(3):
        cache.put(key(n), bytes(VECTOR))
    assert cache.get(key(0)) is not None
    cache.put(key(3), bytes(VECTOR))
    assert [n for n in range(4) if cache.get(key(n))] == [0, 2, 3]
    assert (cache.evicted, cache.bytes, len(cache)) == (1, room(3), 3)


def test_to_put_a_key_again_counts_as_use_and_not_twice() -> None:
    cache = VectorCache(room(2))
    for n in (0, 1, 0, 2):
        cache.put(key(n), bytes(VECTOR))
    assert [n for n in range(3) if cache.get(key(n))] == [0, 2]
    assert cache.bytes == room(2)


def test_what_is_larger_than_the_bound_is_not_kept_and_costs_nobody_his_place() -> None:
    cache = VectorCache(room(1))
    cache.put(key(0), bytes(VECTOR))
    cache.put(key(1), bytes(VECTOR + 1))
    assert cache.get(key(0)) == bytes(VECTOR)
    assert cache.get(key(1)) is None
    assert cache.evicted == 0


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("entries", [1000, 1366, 10_922, 10_923, 15_000])
def test_an_entry_costs_no_more_than_is_counted(traced: None, entries: int) -> None:
    """At sizes right before and right after the dictionary grows, and with all of them replaced three times."""
    vector = 64
    cache = VectorCache(room(entries, vector))
    before = tracemalloc.get_traced_memory()[0]
    used = []
    for n in range(4 * entries):
        cache.put(key(n), b"%064d" % n)
        if n >= entries and n % (entries // 8) == 0:
            used.append(tracemalloc.get_traced_memory()[0] - before)
    assert len(cache) == entries
    assert 0.5 * cache.bytes < min(used)
    assert max(used) <= cache.bytes


class CacheMachine(RuleBasedStateMachine):
    """Any puts and gets, against a list of (key, vector) in order of use."""

    MOST = 3 * (100 + ENTRY_BYTES)

    def __init__(self) -> None:
        super().__init__()
        self.cache = VectorCache(self.MOST)
        self.model: list[tuple[bytes, bytes]] = []
        self.evicted = 0

    keys = st.integers(0, 7).map(key)
    vectors = st.integers(0, MOST - ENTRY_BYTES + 2).flatmap(lambda size: st.binary(min_size=size, max_size=size))

    @rule(key=keys, vector=st.one_of(st.binary(max_size=100), vectors))
    def put(self, key: bytes, vector: bytes) -> None:
        self.cache.put(key, vector)
        if self.size(vector) > self.MOST:
            return
        self.model = [entry for entry in self.model if entry[0] != key] + [(key, vector)]
        while sum(self.size(vector) for _, vector in self.model) > self.MOST:
            self.model.pop(0)
            self.evicted += 1

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        expected = dict(self.model).get(key)
        assert self.cache.get(key) == expected
        if expected is not None:
            self.model.remove((key, expected))
            self.model.append((key, expected))

    @invariant()
    def bytes_are_bounded_and_right(self) -> None:
        assert self.cache.bytes == sum(self.size(vector) for _, vector in self.model) <= self.MOST
        assert len(self.cache) == len(self.model)
        assert self.cache.evicted == self.evicted

    @staticmethod
    def size(vector: bytes) -> int:
        return len(vector) + ENTRY_BYTES


CacheMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestCacheAgainstItsModel = CacheMachine.TestCase
