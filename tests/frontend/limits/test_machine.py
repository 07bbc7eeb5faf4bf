"""Several front ends on one table, in any order: admissions, refunds, restarts, and deaths in mid-decision."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.quota import COUNTED, Quota
from frontend.limits.table import WRITING
from tests.frontend.limits.clocked import OwnClock
from tests.frontend.limits.test_embedded import assert_sound, die_in

T = TypeVar("T")

QUOTA = Quota(rpm=6, rph=15, tpm=60)
WIDTHS_US = (1_000_000, 60_000_000, 1_000_000)
KEYS = st.sampled_from(["a", "b", "c"])
STORES = st.integers(0, 1)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a decision gives that need not wait for the lock."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("nobody holds the lock")


class Charge:
    """What a key was charged at a time (us)."""

    def __init__(self, at: int, tokens: int) -> None:
        self.at = at
        self.amounts = (1, 1, tokens)


class FrontEnds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.clock = OwnClock()
        self.stores = [self._start() for _ in range(2)]
        self.charged: dict[str, list[Charge]] = {"a": [], "b": [], "c": []}
        # Keys of which a death left it open what was charged.
        self.unsure: set[str] = set()

    def _start(self) -> EmbeddedWindows:
        return EmbeddedWindows(Path(self._folder.name), capacity=3, clock=self.clock)

    def used(self, key: str, n: int) -> int:
        now = self.clock.now_us
        return sum(c.amounts[n] for c in self.charged[key] if c.at // WIDTHS_US[n] > now // WIDTHS_US[n] - COUNTED)

    @rule(milliseconds=st.sampled_from([1, 700, 1000, 20_000, 60_000, 61_000, 900_000, 3_660_000]))
    def time_passes(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds / 1000)

    @rule(key=KEYS, store=STORES, tokens=st.integers(1, 40))
    def admit(self, key: str, store: int, tokens: int) -> None:
        verdict = at_once(self.stores[store].admit(key, QUOTA, tokens))
        fits = all(
            self.used(key, n) + amount <= limit
            for n, (amount, limit) in enumerate(zip((1, 1, tokens), QUOTA.limits, strict=True))
        )
        if key in self.unsure:
            # The dead may have been charged, so less may be admitted, and never more.
            assert fits or not verdict.admitted
        else:
            assert verdict.admitted is fits
        if verdict.admitted:
            self.charged[key].append(Charge(self.clock.now_us, tokens))

    @precondition(lambda self: any(self.charged.values()))
    @rule(data=st.data(), store=STORES)
    def refund(self, data: st.DataObject, store: int) -> None:
        key = data.draw(st.sampled_from([key for key, charges in self.charged.items() if charges]))
        charge = data.draw(st.sampled_from(self.charged[key]))
        self.charged[key].remove(charge)
        at_once(self.stores[store].refund(key, QUOTA, charge.amounts[2], 1, charge.at * 1000))

    @rule(store=STORES)
    def restart(self, store: int) -> None:
        self.stores[store].close()
        self.stores[store] = self._start()

    @rule(key=KEYS, store=STORES, writes=st.integers(0, 30))
    def die(self, key: str, store: int, writes: int) -> None:
        at_once(die_in(self.stores[store], writes, key))
        self.restart(store)
        self.unsure.add(key)

    @invariant()
    def totals_are_the_sums(self) -> None:
        store = self.stores[0]
        if not store._table.words[WRITING]:
            assert_sound(store)

    @invariant()
    def what_is_left_is_never_more_than_it_should_be(self) -> None:
        for key in self.charged:
            found = at_once(self.stores[1].usage(key, QUOTA))
            for n, found_rule in enumerate((found.rpm, found.rph, found.tpm)):
                assert found_rule is not None
                left = QUOTA.limits[n] - self.used(key, n)
                assert found_rule.remaining <= left if key in self.unsure else found_rule.remaining == left

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self._folder.cleanup()


TestFrontEnds = FrontEnds.TestCase
TestFrontEnds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
