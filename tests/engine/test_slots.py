"""The lease table: engine and front ends against a model that is a plain set of rows for each holder."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.slots import Slots
from ipc.settings import Settings
from ipc.slab import FREE, Epoch, Leases, Slab, remove_slabs

ROWS = 24
SHARE = 8
SEQUENCE = 1000


def slots() -> tuple[Slots, Leases]:
    leases = np.zeros(ROWS, np.uint32)
    return Slots(leases, np.zeros(ROWS, np.uint64), SHARE), leases


def take(table: Slots, count: int) -> int | None:
    first = table.find(count)
    if first is not None:
        table.compute(first, range(1, count + 1))
    return first


def test_an_extent_is_adjacent_and_free() -> None:
    table, leases = slots()
    leases[3] = 9
    first = take(table, 4)
    assert first is not None
    assert not leases[first : first + 4].any()


def test_a_full_slab_gives_none() -> None:
    table, _ = slots()
    assert take(table, ROWS) == 0
    assert table.find(1) is None


def test_a_gap_of_the_very_size_is_found() -> None:
    table, leases = slots()
    leases[:] = 9
    leases[20:24] = FREE
    assert table.find(5) is None
    assert table.find(4) == 20


def test_the_first_and_the_last_row_are_found() -> None:
    table, leases = slots()
    leases[1:23] = 9
    assert {take(table, 1), take(table, 1)} == {0, 23}


def test_what_is_found_and_not_used_stays_free() -> None:
    table, _ = slots()
    assert table.find(16) == 0
    table.compute(0, [7, 8, 9])
    assert sum(table.states()) == 3
    assert table.find(ROWS - 3) == 3


@given(st.data())
def test_rows_that_front_ends_may_keep_leave_an_extent_for_a_batch(data: st.DataObject) -> None:
    frontends, batch = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    least = 2 * batch * (frontends + 1)
    table = Settings(
        frontends=frontends, max_batch_rows=batch, slab_rows=data.draw(st.integers(max(16, least), 4 * least + 16))
    )
    assert 0 < table.most_held <= table.slab_share / 2
    most = frontends * table.most_held
    # At every batch's end: where scattered rows do the most harm.
    step = data.draw(st.sampled_from([batch, max(1, table.slab_rows // (most + 1)), 1]))
    leases = np.zeros(table.slab_rows, np.uint32)
    leases[step - 1 :: step][:most] = 9
    leases[data.draw(st.lists(st.integers(0, table.slab_rows - 1), max_size=most - int(np.count_nonzero(leases))))] = 9
    assert Slots(leases, np.zeros(table.slab_rows, np.uint64), SHARE).find(batch) is not None


def test_a_front_end_over_its_share_is_named() -> None:
    table, leases = slots()
    leases[:SHARE] = 5
    leases[SHARE] = 6
    assert table.over_share() == {5}


@pytest.mark.parametrize("held", [0, SHARE - 1])
def test_below_its_share_nobody_is_named(held: int) -> None:
    table, leases = slots()
    leases[:held] = 5
    assert table.over_share() == frozenset()


class Life(RuleBasedStateMachine):
    """Engines and front ends come, go and die at any moment; files and mappings are the real ones."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.run_dir = Path(self.folder.name)
        self.run_dir.chmod(0o700)
        self.epoch = 0
        self.next_id = 1
        # For each living front end: its mapping (of any epoch) and the rows it believes to hold there.
        self.views: dict[int, tuple[int, Slab]] = {}
        self.held: defaultdict[int, set[int]] = defaultdict(set)
        self.start_engine()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def start_engine(self) -> None:
        self.epoch += 1
        remove_slabs(self.run_dir)
        self.slab = Slab.create(self.run_dir, Epoch(self.epoch), ROWS, 2)
        self.table = Slots(self.slab.leases, self.slab.running, SHARE)
        self.computing: dict[int, int] = {}
        self.lent: dict[int, int] = {}

    @rule()
    def engine_dies(self) -> None:
        # Its successor knows nothing of what was lent; front ends still read the old mapping.
        self.start_engine()

    @rule()
    def frontend_joins(self) -> None:
        self.views[self.next_id] = (self.epoch, Slab.attach(self.run_dir, Epoch(self.epoch), ROWS, 2))
        self.next_id += 1

    @rule(wanted=st.integers(1, 10), used=st.integers(0, 10), data=st.data())
    def batch(self, wanted: int, used: int, data: st.DataObject) -> None:
        current = [owner for owner, (epoch, _) in self.views.items() if epoch == self.epoch]
        first = self.table.find(wanted)
        free = [row not in self.computing and row not in self.lent for row in range(ROWS)]
        if first is None:
            assert not any(all(free[r : r + wanted]) for r in range(ROWS - wanted + 1)), "there was room"
            return
        assert all(free[first : first + wanted]), "two holders of one row"
        used = min(used, wanted) if current else 0
        self.table.compute(first, [SEQUENCE + row for row in range(first, first + used)])
        for row in range(first, first + used):
            self.computing[row] = data.draw(st.sampled_from(current))
            self.slab.rows[row] = (row, self.computing[row])

    @rule(data=st.data(), fate=st.sampled_from(["lend", "lend", "give up", "unsent"]))
    def batch_ends(self, data: st.DataObject, fate: str) -> None:
        if not self.computing:
            return
        row = data.draw(st.sampled_from(sorted(self.computing)))
        owner = self.computing.pop(row)
        if fate == "give up" or owner not in self.views:
            self.table.give_up(row)
            return
        self.table.lend(row, owner)
        if fate == "unsent":
            self.table.retract(row)
            return
        self.lent[row] = owner
        self.held[owner].add(row)

    @rule(data=st.data())
    def frontend_reads_and_releases(self, data: st.DataObject) -> None:
        holders = [owner for owner in self.views if self.held[owner]]
        if not holders:
            return
        owner = data.draw(st.sampled_from(holders))
        row = data.draw(st.sampled_from(sorted(self.held[owner])))
        epoch, view = self.views[owner]
        assert view.leases[row] == owner, "a lease must not change under its holder"
        assert view.rows[row].tolist() == [row, owner], "a row must not change under its reader"
        view.leases[row] = FREE
        self.held[owner].discard(row)
        if epoch == self.epoch:
            del self.lent[row]

    @rule(data=st.data())
    def frontend_dies(self, data: st.DataObject) -> None:
        if not self.views:
            return
        owner = data.draw(st.sampled_from(sorted(self.views)))
        epoch, _ = self.views.pop(owner)
        rows = self.held.pop(owner, set())
        assert self.table.reclaim(owner) == (len(rows) if epoch == self.epoch else 0)
        if epoch == self.epoch:
            for row in rows:
                del self.lent[row]

    @invariant()
    def leases_say_who_holds_what(self) -> None:
        expected = [self.lent.get(row, FREE) for row in range(ROWS)]
        assert self.slab.leases.tolist() == expected
        running = [SEQUENCE + row if row in self.computing else FREE for row in range(ROWS)]
        assert self.slab.running.tolist() == running
        assert sum(self.table.states()) == len(self.lent) + len(self.computing)

    @invariant()
    def shares_are_told(self) -> None:
        counts = {owner: list(self.lent.values()).count(owner) for owner in self.lent.values()}
        assert self.table.over_share() == {owner for owner, held in counts.items() if held >= SHARE}


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
