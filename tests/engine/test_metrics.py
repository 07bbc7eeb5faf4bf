from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from engine.bisection import Ran
from engine.lanes import Batch
from engine.metrics import EngineMetrics
from engine.outcomes import Counters
from engine.queue import Item
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from ipc.messages import Welcome
from ipc.priority import Priority
from ipc.slab import Epoch

ROWS = 16
WELCOME = Welcome(model="a/model", digest="f", folder="/b", rows=ROWS, dim=2, device="cpu", precision="fp32")
MS = 1_000_000


class Bench:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = EngineMetrics(self.registry, WELCOME, Epoch(0xABC), queue_items=10)
        self.counters = Counters()
        self.scheduler = Scheduler(Limits(rows=8, tokens=64, max_wait=0, queue_items=10))
        self.leases, self.running = np.zeros(ROWS, np.uint32), np.zeros(ROWS, np.uint64)

    def refresh(self, busy: int = 0) -> None:
        slots = Slots(self.leases, self.running, share=8)
        self.metrics.refresh(self.counters, self.scheduler, slots, busy)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"embedlane_{name}", labels)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def item(sequence: int, length: int, priority: Priority = Priority.INTERACTIVE, arrived: int = 0) -> Item:
    return Item(1, sequence, np.ones(length, np.int32), priority, 2**62, arrived)


def test_a_batch_tells_waits_time_texts_tokens_and_padding(bench: Bench) -> None:
    items = [item(1, 5, arrived=1 * MS), item(2, 5, arrived=3 * MS)]
    bench.metrics.note(Batch(items, 0, started=4 * MS, compute_ns=8 * MS, ran=Ran(padding=6)))
    assert bench.value("engine_wait_seconds_sum") == pytest.approx(0.004)
    assert bench.value("engine_wait_seconds_count") == 2
    assert bench.value("engine_wait_seconds_bucket", le="0.001") == 1
    assert bench.value("engine_compute_seconds_sum") == pytest.approx(0.008)
    assert bench.value("engine_batch_texts_bucket", le="2.0") == bench.value("engine_batch_texts_count") == 1
    assert bench.value("engine_batch_tokens_sum") == 10
    assert bench.value("engine_padding_tokens_total") == 6


def test_counters_follow_the_loops(bench: Bench) -> None:
    for items, failed, shared in ((5, 1, 2), (7, 1, 3)):
        bench.counters.items, bench.counters.failed, bench.counters.shared = items, failed, shared
        bench.counters.malformed, bench.counters.failed_runs, bench.counters.starved = 4, 6, 1
        bench.refresh()
    outcomes = {name: bench.value("engine_texts_total", outcome=name) for name in ("computed", "failed", "shared")}
    assert outcomes == {"computed": 6, "failed": 1, "shared": 3}
    assert bench.value("engine_malformed_frames_total") == 4
    assert (bench.value("engine_failed_runs_total"), bench.value("engine_starved_batches_total")) == (6, 1)


def test_what_waits_and_what_is_lent(bench: Bench) -> None:
    for waiting in (item(1, 5), item(2, 7), item(3, 9, Priority.BULK)):
        assert bench.scheduler.add(waiting)
    bench.leases[:3], bench.running[4] = 9, 1
    bench.refresh(busy=2)
    assert bench.value("engine_queue_seconds", priority="bulk") == 0, "while the rate is not known"
    bench.scheduler.backlog.rate = 3
    bench.refresh(busy=2)
    assert bench.value("engine_queue_seconds", priority="interactive") == 4
    assert bench.value("engine_queued_texts", priority="interactive") == 2
    assert bench.value("engine_queued_tokens", priority="interactive") == 12
    assert bench.value("engine_queued_tokens", priority="bulk") == 9
    assert [bench.value("slab_rows", state=state) for state in ("lent", "computing", "free")] == [3, 1, 12]
    assert bench.value("engine_queue_limit_texts") == 10
    assert bench.value("engine_busy_lanes") == 2
    bench.scheduler.cancel(1, [1])
    bench.refresh()
    assert bench.value("engine_queued_tokens", priority="interactive") == 7


def test_which_engine_it_is(bench: Bench) -> None:
    labels = {"epoch": "0000000000000abc", "model": "a/model", "device": "cpu", "precision": "fp32"}
    assert bench.value("engine_info", **labels) == bench.value("engine_starts_total") == 1
    bench.refresh()
    memory, cpu = (bench.value(f"process_{name}", process="engine") for name in ("resident_bytes", "cpu_seconds_total"))
    assert memory is not None
    assert cpu is not None
    assert memory > 1 << 20
    assert cpu > 0
