from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from engine.lanes import Batch, Lanes
from engine.scheduler import Item
from ipc.messages import Priority
from tests.engine.sum_runner import FAILS, NOT_A_NUMBER, PATIENCE_SECONDS, SumRunner


class Fixture:
    def __init__(self) -> None:
        self.runner = SumRunner()
        self.rows = np.zeros((8, 2), np.float32)
        self.done = threading.Semaphore(0)
        self.lanes = Lanes(self.runner, self.rows, self.done.release)

    def run(self, first: int, *texts: list[int]) -> Batch:
        items = [Item(1, n, np.array(t, np.int32), Priority.INTERACTIVE, 0, 0) for n, t in enumerate(texts)]
        self.lanes.start(Batch(items, first, 0))
        assert self.done.acquire(timeout=PATIENCE_SECONDS)
        [batch] = self.lanes.collect()
        return batch


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    made.runner.gate.set()
    made.lanes.close()


def test_a_batch_is_written_to_its_rows(fixture: Fixture) -> None:
    batch = fixture.run(3, [1, 2], [3, 4])
    assert fixture.rows.tolist() == [[0, 0]] * 3 + [[2, 3], [2, 7]] + [[0, 0]] * 3
    assert batch.finite is not None
    assert batch.finite.tolist() == [True, True]
    assert batch.compute_ns > 0


def test_rows_that_are_no_numbers_are_marked(fixture: Fixture) -> None:
    batch = fixture.run(0, [1, 2], [NOT_A_NUMBER, 4])
    assert batch.finite is not None
    assert batch.finite.tolist() == [True, False]


def test_a_failing_run_ends_its_batch_and_not_its_lane(fixture: Fixture) -> None:
    for _ in range(fixture.runner.lanes + 1):
        assert fixture.run(0, [FAILS]).finite is None
    assert fixture.run(0, [1]).finite is not None


def test_lanes_run_at_once_and_say_when_none_is_free(fixture: Fixture) -> None:
    fixture.runner.gate.clear()
    item = Item(1, 1, np.array([1], np.int32), Priority.INTERACTIVE, 0, 0)
    for row in range(fixture.runner.lanes):
        assert fixture.lanes.free
        fixture.lanes.start(Batch([item], row, 0))
    for _ in range(fixture.runner.lanes):
        fixture.runner.wait_started()
    assert not fixture.lanes.free
    with pytest.raises(AssertionError, match="bug"):
        fixture.lanes.start(Batch([item], 5, 0))
    assert fixture.lanes.collect() == []
