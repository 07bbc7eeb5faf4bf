"""The engine's loop over real sockets, locks and slab, with a runner that a person can check by eye."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zmq
from prometheus_client import CollectorRegistry

from engine import loop
from engine.lanes import Lanes
from engine.loop import Engine, Model
from engine.metrics import EngineMetrics
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from engine.twins import Twins
from ipc import messages
from ipc.liveness import FrontendIdentity
from ipc.messages import Ids, Status, Submission, Type, Welcome
from ipc.slab import Epoch, Rows, Slab
from ipc.sockets import bind_engine, connect_frontend
from tests.engine.sum_runner import FAILS, NOT_A_NUMBER, PATIENCE_SECONDS, SumRunner, WideSumRunner

EPOCH = Epoch(77)
ROWS = 64
FAR = 2**62
WELCOME = Welcome(model="sum", digest="f", folder="/b", rows=ROWS, dim=2, device="cpu", precision="exact")


class Frontend:
    """The other end: a real DEALER under a real lock."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: Path) -> None:
        self.identity = FrontendIdentity(run_dir)
        self.dealer, self.monitor = connect_frontend(context, run_dir, self.identity.id)
        self.dealer.setsockopt(zmq.RCVTIMEO, PATIENCE_SECONDS * 1000)
        self.dealer.setsockopt(zmq.SNDTIMEO, PATIENCE_SECONDS * 1000)
        self.dealer.send(messages.hello())
        self.welcome = self.dealer.recv()
        self.slab = Slab.attach(run_dir, EPOCH, ROWS, 2)

    def submit(self, *texts: list[int], first: int = 1, deadline: int = FAR) -> None:
        items = [Submission(first + n, deadline, 0, np.array(ids, np.int32)) for n, ids in enumerate(texts)]
        self.dealer.send(messages.submit(items, EPOCH))

    def reply(self) -> dict[int, tuple[int, int]]:
        """Sequence → (row, status) of the next REPLY."""
        frame = self.dealer.recv()
        header = messages.parse_header(frame)
        assert header.type is Type.REPLY
        assert header.epoch == EPOCH
        return {sequence: (row, status) for sequence, row, status, _ in messages.parse_reply(frame, header)}

    def replies(self, count: int) -> dict[int, tuple[int, int]]:
        got: dict[int, tuple[int, int]] = {}
        while len(got) < count:
            got |= self.reply()
        return got

    def vectors(self, count: int) -> dict[int, list[float]]:
        """Read each row and release it, as a front end does."""
        read = {}
        for sequence, (row, status) in self.replies(count).items():
            assert status == Status.OK
            assert self.slab.leases[row] == self.identity.id
            read[sequence] = self.slab.rows[row].tolist()
            self.slab.leases[row] = 0
        return read

    def leave(self) -> None:
        """Be as dead as after kill -9: the lock is let go."""
        self.close()
        self.identity.release()

    def close(self) -> None:
        self.dealer.disable_monitor()
        self.monitor.close(0)
        self.dealer.close(0)


class Running:
    """An engine in a thread; its process-wide parts (lock, signals) are engine.__main__'s."""

    def __init__(self, run_dir: Path, runner: SumRunner, scheduler: Scheduler, max_rows: int, share: int) -> None:
        self.run_dir = run_dir
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.slab = Slab.create(run_dir, EPOCH, ROWS, 2)
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.lanes = Lanes(runner, self.slab.rows, lambda: os.eventfd_write(self.wake_fd, 1))
        self.router = bind_engine(self.context, run_dir)
        self.scheduler = scheduler
        self.engine = Engine(
            router=self.router,
            scheduler=self.scheduler,
            lanes=self.lanes,
            slots=Slots(self.slab.leases, self.slab.running, share),
            max_rows=max_rows,
            model=Model(vocab_size=100, max_tokens=8),
            welcome=WELCOME,
            epoch=EPOCH,
            run_dir=run_dir,
            wake_fd=self.wake_fd,
            metrics=EngineMetrics(CollectorRegistry(), WELCOME, EPOCH, queue_items=1000),
        )
        self.thread = threading.Thread(target=self.engine.run)
        self.thread.start()
        self.frontends: list[Frontend] = []

    def join(self) -> Frontend:
        self.frontends.append(Frontend(self.context, self.run_dir))
        return self.frontends[-1]

    def stop(self, grace_ns: int = 0) -> None:
        self.engine.stop(grace_ns)
        os.eventfd_write(self.wake_fd, 1)

    def close(self) -> None:
        self.stop()
        self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        self.lanes.close()
        for frontend in self.frontends:
            if not frontend.dealer.closed:
                frontend.leave()
        self.router.close(0)
        self.context.term()
        os.close(self.wake_fd)


@pytest.fixture
def runner() -> SumRunner:
    return SumRunner()


@pytest.fixture
def limits() -> Limits:
    return Limits(rows=4, tokens=32, max_wait=0, queue_items=100)


@pytest.fixture
def share() -> int:
    return ROWS


@pytest.fixture
def scheduling() -> type[Scheduler]:
    return Scheduler


@pytest.fixture
def running(
    tmp_path: Path, runner: SumRunner, scheduling: type[Scheduler], limits: Limits, share: int
) -> Iterator[Running]:
    tmp_path.chmod(0o700)
    made = Running(tmp_path, runner, scheduling(limits), limits.rows, share)
    yield made
    runner.gate.set()
    made.close()


with_twins = pytest.mark.parametrize("scheduling", [Twins])


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_front_end_is_welcomed_with_model_and_epoch(running: Running) -> None:
    frame = running.join().welcome
    assert messages.parse_header(frame).epoch == EPOCH
    assert messages.parse_welcome(frame) == WELCOME


def test_texts_come_back_as_rows(running: Running) -> None:
    frontend = running.join()
    frontend.submit([1, 2, 3], [4], [5, 6])
    assert frontend.vectors(3) == {1: [3, 6], 2: [1, 4], 3: [2, 11]}
    until(lambda: not running.slab.leases.any())


def test_a_batch_serves_several_front_ends_with_one_reply_each(running: Running, runner: SumRunner) -> None:
    one, two = running.join(), running.join()
    runner.gate.clear()
    one.submit([9], [9])  # keeps the first lane busy, then the second
    runner.wait_started()
    one.submit([8, 8], first=10)
    runner.wait_started()
    one.submit([1, 1, 1], [2, 2, 2], first=20)
    two.submit([3, 3, 3], [4, 4, 4], first=30)
    until(lambda: len(running.scheduler) == 4)
    runner.gate.set()
    assert one.vectors(5)[21] == [3, 6]
    assert two.reply().keys() == {30, 31}
    assert 4 in runner.batches


@pytest.mark.parametrize("limits", [Limits(rows=4, tokens=32, max_wait=0, queue_items=100, mixes_lengths=True)])
def test_a_runner_that_packs_gets_texts_of_several_lengths_at_once(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    for lane in range(runner.lanes):
        frontend.submit([9], first=1 + lane)
        runner.wait_started()
    frontend.submit([1, 1, 1], [2], [3, 3], first=10)
    until(lambda: len(running.scheduler) == 3)
    runner.gate.set()
    assert frontend.vectors(5) == {1: [1, 9], 2: [1, 9], 10: [3, 3], 11: [1, 2], 12: [2, 6]}
    assert sorted(runner.batches) == [1, 1, 3]


def busy(running: Running, runner: SumRunner) -> Frontend:
    """A front end whose texts 1 and 2 keep both lanes until the gate is opened: what comes next shares a batch."""
    frontend = running.join()
    runner.gate.clear()
    for sequence in (1, 2):
        frontend.submit([7], first=sequence)
        runner.wait_started()
    return frontend


def test_a_text_that_fails_fails_alone_in_its_batch(running: Running, runner: SumRunner) -> None:
    frontend = busy(running, runner)
    frontend.submit([1, 1], [1, FAILS], [1, 2], [1, 3], first=10)
    until(lambda: len(running.scheduler) == 4)
    runner.gate.set()
    replies = frontend.replies(6)
    assert {s for s, (_, status) in replies.items() if status == Status.FAILED} == {11}
    assert [frontend.slab.rows[replies[s][0]].tolist() for s in (10, 12, 13)] == [[2, 2], [2, 3], [2, 4]]
    assert (running.engine.counters.failed, running.engine.counters.failed_runs) == (1, 3)


def test_a_batch_without_memory_is_cut_and_the_next_are_smaller(
    running: Running, runner: SumRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runner.run

    def run(texts: Sequence[Ids], rows: Rows) -> int:
        if len(texts) > 2:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return whole(texts, rows)

    monkeypatch.setattr(running.lanes, "_run_batch", run)
    frontend = busy(running, runner)
    frontend.submit(*([n, n] for n in range(8)), first=10)
    until(lambda: len(running.scheduler) == 8)
    runner.gate.set()
    assert {s: v for s, v in frontend.vectors(10).items() if s > 2} == {10 + n: [2, 2 * n] for n in range(8)}
    # Two batches of four were formed before the first had failed, or one and then smaller ones.
    assert running.engine.counters.starved in {1, 2}
    starved = running.engine.counters.starved
    frontend.submit(*([n, n] for n in range(8)), first=20)
    frontend.vectors(8)
    assert running.engine.counters.starved == starved
    assert running.engine.counters.failed == 0


def test_what_is_no_number_never_leaves(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    frontend.submit([1, 1], [1, 2])  # both lanes, so that the next two share a batch
    runner.wait_started()
    frontend.submit([NOT_A_NUMBER], [5], first=10)
    runner.wait_started()
    runner.gate.set()
    statuses = {s: status for s, (_, status) in frontend.replies(4).items()}
    assert statuses == {1: Status.OK, 2: Status.OK, 10: Status.FAILED, 11: Status.OK}


@pytest.mark.parametrize("ids", [[100], [-1], [1] * 9], ids=["above", "below", "too long"])
def test_ids_the_model_does_not_know_are_refused(running: Running, ids: list[int]) -> None:
    frontend = running.join()
    frontend.submit(ids)
    assert frontend.reply() == {1: (0, Status.INVALID)}


def test_a_text_past_its_deadline_is_answered_and_not_run(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    frontend.submit([1], deadline=time.monotonic_ns() - 1)
    assert frontend.reply() == {1: (0, Status.EXPIRED)}
    assert not runner.batches


@pytest.mark.parametrize("limits", [Limits(rows=1, tokens=32, max_wait=0, queue_items=6)])
def test_a_full_queue_refuses(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    for lane in range(runner.lanes):
        frontend.submit([1], first=1 + lane)
        runner.wait_started()
    frontend.submit([2], [3], [4], [5], first=10)
    assert frontend.reply() == {13: (0, Status.REFUSED)}
    runner.gate.set()
    assert len(frontend.vectors(5)) == 5


def test_cancelled_texts_are_not_run(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    for lane in range(runner.lanes):
        frontend.submit([1], first=1 + lane)
        runner.wait_started()
    frontend.submit([2], [3], first=10)
    frontend.dealer.send(messages.cancel([10], EPOCH))
    until(lambda: len(running.scheduler) == 1)
    runner.gate.set()
    assert frontend.vectors(3).keys() == {1, 2, 11}


def test_the_slab_tells_what_runs_so_that_a_killed_engine_leaves_it_behind(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    frontend.submit([1], first=5)
    runner.wait_started()
    frontend.submit([2], first=6)
    runner.wait_started()
    frontend.submit([3], first=7)  # waits: no lane is free
    until(lambda: len(running.scheduler) == 1)
    running_now = frontend.slab.running
    assert set(running_now[running_now != 0].tolist()) == {5, 6}
    runner.gate.set()
    frontend.vectors(3)
    until(lambda: not frontend.slab.running.any())


def test_rows_and_texts_of_a_dead_front_end_come_back(running: Running, runner: SumRunner) -> None:
    dies, lives = running.join(), running.join()
    dies.submit([1], [2, 2])
    dies.replies(2)  # lent, and never released
    runner.gate.clear()
    dies.submit([1], first=5)  # running when it dies
    runner.wait_started()
    dies.leave()
    until(lambda: not running.slab.leases.any())
    runner.gate.set()
    lives.submit([3])
    assert lives.vectors(1) == {1: [1, 3]}
    until(lambda: not running.slab.leases.any())
    until(lambda: not running.lanes.busy)


@pytest.mark.parametrize("share", [4])
def test_a_front_end_that_releases_nothing_starves_nobody(running: Running) -> None:
    hoards, other = running.join(), running.join()
    hoards.submit(*([n] for n in range(1, 9)))
    held: dict[int, tuple[int, int]] = {}
    while len(held) < 4:
        held |= hoards.reply()
    other.submit([7, 7])
    assert other.vectors(1) == {1: [2, 14]}
    for row, _ in held.values():
        hoards.slab.leases[row] = 0
    while len(held) < 8:
        held |= hoards.reply()
    assert held.keys() == set(range(1, 9))


def test_a_full_slab_is_waited_for(running: Running) -> None:
    frontend = running.join()
    running.slab.leases[:] = 99  # nobody's, so only this test frees them
    frontend.submit([1])
    until(lambda: len(running.scheduler) == 1)
    running.slab.leases[:] = 0
    assert frontend.vectors(1) == {1: [1, 1]}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"nonsense",
        messages.hello()[:10],
        messages.reply([], 0, EPOCH),
        messages.submit([], Epoch(1)),
        messages.submit([Submission(1, FAR, 0, np.zeros(2, np.int32))], EPOCH)[:-1],
    ],
    ids=["empty", "nonsense", "short", "not for an engine", "another epoch", "cut off"],
)
def test_malformed_frames_are_counted_and_harm_nobody(running: Running, frame: bytes) -> None:
    frontend = running.join()
    frontend.dealer.send(frame)
    frontend.submit([1])
    assert frontend.vectors(1) == {1: [1, 1]}
    assert running.engine.counters.malformed == 1


def test_a_front_end_without_a_lock_is_not_welcomed(running: Running) -> None:
    frontend = running.join()
    dealer, monitor = connect_frontend(running.context, running.run_dir, 12345)
    dealer.setsockopt(zmq.SNDTIMEO, PATIENCE_SECONDS * 1000)
    dealer.send(messages.hello())
    frontend.submit([1])
    frontend.vectors(1)
    assert not dealer.poll(0), "the dead must not be lent rows"
    dealer.disable_monitor()
    monitor.close(0)
    dealer.close(0)


def test_an_engine_that_stops_answers_what_it_has(running: Running, runner: SumRunner) -> None:
    frontend = running.join()
    runner.gate.clear()
    frontend.submit([1], [2], [3, 3], [4, 4, 4])
    runner.wait_started()
    running.stop(grace_ns=PATIENCE_SECONDS * 10**9)
    assert messages.parse_header(frontend.dealer.recv()).type is Type.BYE
    frontend.submit([5], first=10)  # on its way when the BYE came
    frontend.dealer.send(messages.bye(EPOCH))
    runner.gate.set()
    assert frontend.vectors(5).keys() == {1, 2, 3, 4, 10}
    running.thread.join(PATIENCE_SECONDS)
    assert not running.thread.is_alive()


# twins


def counted(running: Running, texts: int) -> None:
    """Wait until the engine has run so many texts."""
    until(lambda: running.engine.counters.items == texts)


def twins_of_a_text_that_runs(running: Running, runner: SumRunner, count: int) -> list[Frontend]:
    """Front ends that all asked for the text [1, 2]; the first one's runs until the gate is opened."""
    frontends = [running.join() for _ in range(count)]
    runner.gate.clear()
    frontends[0].submit([1, 2], first=100)
    runner.wait_started()
    for n, frontend in enumerate(frontends[1:], 101):
        frontend.submit([1, 2], first=n)
        frontend.submit([n - 99], first=n + 100)  # comes later, so once it is there the twin is
        until(lambda n=n: len(running.scheduler) + running.lanes.busy >= n - 99)  # type: ignore[misc]
    return frontends


@with_twins
def test_the_same_text_of_several_front_ends_is_run_once(running: Running, runner: SumRunner) -> None:
    frontends = twins_of_a_text_that_runs(running, runner, 4)
    runner.gate.set()
    assert frontends[0].vectors(1) == {100: [2, 3]}
    for n, frontend in enumerate(frontends[1:], 101):
        assert frontend.vectors(2)[n] == [2, 3]
    counted(running, 4)
    assert running.engine.counters.shared == 3
    until(lambda: not running.slab.leases.any() and not running.slab.running.any())


@with_twins
def test_twins_of_a_front_end_that_died_are_answered(running: Running, runner: SumRunner) -> None:
    dies, lives = twins_of_a_text_that_runs(running, runner, 2)
    dies.leave()
    until(lambda: len(running.engine._frontends) == 1)
    runner.gate.set()
    assert lives.vectors(2)[101] == [2, 3]
    assert running.engine.counters.items == 2
    until(lambda: not running.slab.leases.any() and not running.slab.running.any())


@with_twins
def test_twins_that_find_the_slab_full_are_answered_later(running: Running, runner: SumRunner) -> None:
    frontends = twins_of_a_text_that_runs(running, runner, 3)
    free = (running.slab.leases == 0) & (running.slab.running == 0)
    running.slab.leases[free] = 99  # nobody's, so only this test frees them
    runner.gate.set()
    assert frontends[0].reply().keys() == {100}
    running.slab.leases[free] = 0
    for n, frontend in enumerate(frontends[1:], 101):
        assert frontend.vectors(2)[n] == [2, 3]


@with_twins
def test_a_twin_outlives_the_cancelling_of_the_text_it_waits_for(running: Running, runner: SumRunner) -> None:
    one, two = running.join(), running.join()
    runner.gate.clear()
    for lane in range(runner.lanes):
        one.submit([7 + lane], first=1 + lane)
        runner.wait_started()
    one.submit([1, 2], first=10)
    until(lambda: len(running.scheduler) == 1)
    two.submit([1, 2], [3, 3, 3], first=20)
    until(lambda: len(running.scheduler) == 2)
    one.dealer.send(messages.cancel([10], EPOCH))
    one.submit([4, 4, 4, 4], first=11)
    until(lambda: len(running.scheduler) == 3)
    runner.gate.set()
    assert two.vectors(2) == {20: [2, 3], 21: [3, 9]}
    assert one.vectors(3).keys() == {1, 2, 11}
    counted(running, 5)


@pytest.mark.parametrize("runner", [WideSumRunner()])
def test_only_a_text_that_is_alone_runs_wide(running: Running, runner: WideSumRunner) -> None:
    frontend = running.join()
    frontend.submit([1, 2])
    assert frontend.vectors(1) == {1: [2, 3]}
    assert len(runner.alone) == 1
    frontend.submit([1, 1], [3], first=10)  # of two lengths, so that the second waits while the first is started
    assert frontend.vectors(2) == {10: [2, 2], 11: [1, 3]}
    assert len(runner.alone) == 1
    frontend.submit([4, 4], [5, 5], first=20)  # one batch, and nothing beside it
    assert frontend.vectors(2) == {20: [2, 8], 21: [2, 10]}
    assert len(runner.alone) == 2


@pytest.mark.parametrize("runner", [WideSumRunner()])
@pytest.mark.parametrize(("company_ns", "wide_runs"), [(10**15, 0), (0, 1)], ids=["for long", "for no time"])
def test_where_texts_have_met_none_is_alone_for_a_while(
    running: Running, runner: WideSumRunner, monkeypatch: pytest.MonkeyPatch, company_ns: int, wide_runs: int
) -> None:
    monkeypatch.setattr(loop, "COMPANY_NS", company_ns)
    frontend = running.join()
    runner.gate.clear()
    frontend.submit([1, 2], [3])
    for _ in range(runner.lanes):
        runner.wait_started()
    frontend.submit([4, 4, 4], first=3)
    until(lambda: len(running.scheduler) == 1)
    runner.gate.set()
    frontend.vectors(3)
    runner.alone.clear()
    frontend.submit([5], first=4)
    assert frontend.vectors(1) == {4: [1, 5]}
    assert len(runner.alone) == wide_runs


@with_twins
def test_an_engine_that_stops_answers_twins(running: Running, runner: SumRunner) -> None:
    frontends = twins_of_a_text_that_runs(running, runner, 3)
    running.stop(grace_ns=PATIENCE_SECONDS * 10**9)
    for frontend in frontends:
        assert messages.parse_header(frontend.dealer.recv()).type is Type.BYE
        frontend.dealer.send(messages.bye(EPOCH))
    runner.gate.set()
    assert frontends[0].vectors(1) == {100: [2, 3]}
    for n, frontend in enumerate(frontends[1:], 101):
        assert frontend.vectors(2)[n] == [2, 3]
    running.thread.join(PATIENCE_SECONDS)
    assert not running.thread.is_alive()
