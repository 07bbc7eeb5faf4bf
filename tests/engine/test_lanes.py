from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from engine.lanes import BRIEF_TOKENS, NICENESS, Batch, Lanes
from engine.queue import Item
from ipc.messages import Ids
from ipc.priority import Priority
from ipc.slab import Rows
from tests.engine.sum_runner import FAILS, NOT_A_NUMBER, PATIENCE_SECONDS, SumRunner, WideSumRunner


class Fixture:
    def __init__(self, runner: SumRunner) -> None:
        self.runner = runner
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
    made = Fixture(SumRunner())
    yield made
    made.runner.gate.set()
    made.lanes.close()


def test_a_batch_is_written_to_its_rows(fixture: Fixture) -> None:
    batch = fixture.run(3, [1, 2], [3, 4])
    assert fixture.rows.tolist() == [[0, 0]] * 3 + [[2, 3], [2, 7]] + [[0, 0]] * 3
    assert batch.ran.finite.tolist() == [True, True]
    assert batch.compute_ns > 0


def test_rows_that_are_no_numbers_are_marked(fixture: Fixture) -> None:
    batch = fixture.run(0, [1, 2], [NOT_A_NUMBER, 4])
    assert batch.ran.finite.tolist() == [True, False]


def test_a_failing_run_ends_its_text_and_not_its_lane(fixture: Fixture) -> None:
    for _ in range(fixture.runner.lanes + 1):
        assert fixture.run(0, [1], [FAILS]).ran.finite.tolist() == [True, False]
    assert fixture.run(0, [1]).ran.finite.tolist() == [True]


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


def lone(length: int, *, alone: bool = True) -> Batch:
    return Batch([Item(1, 1, np.ones(length, np.int32), Priority.INTERACTIVE, 0, 0)], 0, 0, alone)


@pytest.fixture
def wide() -> Iterator[tuple[WideSumRunner, Fixture]]:
    runner = WideSumRunner()
    made = Fixture(runner)
    yield runner, made
    made.lanes.close()


def test_a_brief_batch_that_is_alone_has_run_when_start_returns(wide: tuple[WideSumRunner, Fixture]) -> None:
    runner, fixture = wide
    fixture.lanes.start(lone(BRIEF_TOKENS))
    assert fixture.lanes.busy == 1
    [batch] = fixture.lanes.collect()
    assert batch.ran.finite.tolist() == [True]
    assert fixture.rows[0].tolist() == [BRIEF_TOKENS, BRIEF_TOKENS]
    assert runner.alone == [threading.current_thread().name]
    assert not fixture.lanes.busy


def test_a_long_batch_that_is_alone_runs_wide_and_not_in_the_loop(wide: tuple[WideSumRunner, Fixture]) -> None:
    runner, fixture = wide
    fixture.lanes.start(lone(BRIEF_TOKENS + 1))
    assert fixture.done.acquire(timeout=PATIENCE_SECONDS)
    assert [name.partition("-")[0] for name in runner.alone] == ["lane"]
    assert len(fixture.lanes.collect()) == 1


def test_a_batch_with_company_does_not_run_wide(wide: tuple[WideSumRunner, Fixture]) -> None:
    runner, fixture = wide
    fixture.lanes.start(lone(1, alone=False))
    assert fixture.done.acquire(timeout=PATIENCE_SECONDS)
    assert runner.alone == []


def test_a_runner_without_a_wide_run_runs_in_a_lane(fixture: Fixture) -> None:
    fixture.runner.gate.clear()
    fixture.lanes.start(lone(1))  # would not return if it ran here
    fixture.runner.wait_started()
    assert fixture.lanes.collect() == []


@pytest.mark.parametrize(("device", "nicer"), [("cpu", NICENESS), ("cuda:0", 0)])
def test_lanes_leave_a_cpu_to_front_ends(device: str, nicer: int) -> None:
    seen: list[int] = []

    class Looking(SumRunner):
        def run(self, texts: Sequence[Ids], rows: Rows) -> int:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().run(texts, rows)

    def work(nice: int) -> None:
        # A priority is a thread's own, and inherited by those it starts.
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        made = Fixture(Looking(device=device))
        made.run(0, [1])
        made.lanes.close()
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    for nice in (before, before + 4, 19):
        seen.clear()
        thread = threading.Thread(target=work, args=(nice,))
        thread.start()
        thread.join()
        assert seen == [min(19, nice + nicer), nice]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_a_lane_is_spare_while_another_may_have_bulk(fixture: Fixture) -> None:
    fixture.runner.gate.clear()
    assert fixture.lanes.count == 2
    for row, priority in enumerate((Priority.INTERACTIVE, Priority.BULK)):
        assert fixture.lanes.has_spare
        fixture.lanes.start(Batch([Item(1, 1, np.array([1], np.int32), priority, 0, 0)], row, 0))
    assert not fixture.lanes.has_spare
    fixture.runner.gate.set()
    for _ in range(2):
        assert fixture.done.acquire(timeout=PATIENCE_SECONDS)
    fixture.lanes.collect()
    assert fixture.lanes.has_spare


def test_a_lane_that_is_alone_is_kept_for_nobody() -> None:
    made = Fixture(SumRunner(lanes=1))
    assert made.lanes.has_spare
    made.lanes.close()
