"""What the engine counts for Prometheus: each batch as it ends, and four times a second what waits and what is lent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine.gpu import watch_gpu
from engine.lanes import Batch
from engine.outcomes import Counters
from engine.scheduler import Scheduler
from engine.slots import Slots
from ipc.messages import Welcome
from ipc.metrics import SECONDS, Advance
from ipc.priority import Priority
from ipc.process import cpu_seconds, resident_bytes
from ipc.slab import Epoch

TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class EngineMetrics:
    """Metrics of one life of the engine; counters go on where the last engine's stopped."""

    def __init__(self, registry: CollectorRegistry, welcome: Welcome, epoch: Epoch, queue_items: int) -> None:
        def counter(name: str, text: str) -> Advance:
            return Advance(Counter(name, text, registry=registry))

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="livesum")

        self._wait = Histogram(
            "embedlane_engine_wait_seconds",
            "How long a text waited for its batch to start.",
            registry=registry,
            buckets=SECONDS,
        )
        self._compute = Histogram(
            "embedlane_engine_compute_seconds", "How long a batch ran.", registry=registry, buckets=SECONDS
        )
        self._texts = Histogram("embedlane_engine_batch_texts", "Texts in a batch.", registry=registry, buckets=TEXTS)
        self._tokens = Histogram(
            "embedlane_engine_batch_tokens",
            "Tokens in a batch, without those that pad it.",
            registry=registry,
            buckets=TOKENS,
        )
        self._padding = Counter(
            "embedlane_engine_padding_tokens",
            "Tokens that were computed for nothing but a batch's shape.",
            registry=registry,
        )
        outcomes = Counter("embedlane_engine_texts", "Texts by what became of them.", ["outcome"], registry=registry)
        self._outcomes = {
            outcome: Advance(outcomes.labels(outcome))
            for outcome in ("computed", "shared", "expired", "refused", "failed")
        }
        self._failed_runs = counter("embedlane_engine_failed_runs", "Runs that raised; their halves are run again.")
        self._starved = counter("embedlane_engine_starved_batches", "Batches that found no memory, and were cut.")
        self._malformed = counter("embedlane_engine_malformed_frames", "Frames from front ends that were dropped.")
        self._unsent = counter("embedlane_engine_unsent_messages", "Messages for front ends that were gone or full.")
        self._queued_texts = gauge("embedlane_engine_queued_texts", "Texts that wait for a batch.", "priority")
        self._queued_tokens = gauge("embedlane_engine_queued_tokens", "Tokens of these texts.", "priority")
        gauge("embedlane_engine_queue_limit_texts", "Most texts that may wait, for each priority.").set(queue_items)
        self._queue_s = gauge("embedlane_engine_queue_seconds", "How long it takes to run what waits.", "priority")
        self._busy = gauge("embedlane_engine_busy_lanes", "Batches that run now.")
        self._rows = gauge("embedlane_slab_rows", "Rows of the slab by their state.", "state")
        self._free_rows = welcome.rows
        process = {"process": "engine"}
        self._memory = gauge("embedlane_process_resident_bytes", "Resident memory of a process.", "process").labels(
            **process
        )
        cpu = Counter("embedlane_process_cpu_seconds", "CPU time of a process.", ["process"], registry=registry)
        self._cpu = Advance(cpu.labels(**process))
        Counter("embedlane_engine_starts", "How often an engine started.", registry=registry).inc()
        gauge("embedlane_engine_start_time_seconds", "When this engine started, Unix time.").set_to_current_time()
        gauge("embedlane_engine_info", "1, with what runs as labels.", "epoch", "model", "device", "precision").labels(
            f"{epoch:016x}", welcome.model, welcome.device, welcome.precision
        ).set(1)
        if welcome.device.startswith("cuda"):
            watch_gpu(registry)

    def note(self, batch: Batch) -> None:
        """Count a batch that has ended."""
        self._compute.observe(batch.compute_ns / 1e9)
        self._texts.observe(len(batch.items))
        self._tokens.observe(batch.tokens)
        self._padding.inc(batch.ran.padding)
        for item in batch.items:
            self._wait.observe((batch.started - item.arrived) / 1e9)

    def refresh(self, counters: Counters, scheduler: Scheduler, slots: Slots, busy: int) -> None:
        """Bring all else up to date."""
        self._outcomes["computed"].to(counters.items - counters.failed)
        for outcome in ("shared", "expired", "refused", "failed"):
            self._outcomes[outcome].to(getattr(counters, outcome))
        self._failed_runs.to(counters.failed_runs)
        self._starved.to(counters.starved)
        self._malformed.to(counters.malformed)
        self._unsent.to(counters.unsent)
        for priority in Priority:
            texts, tokens = scheduler.queued(priority)
            self._queued_texts.labels(priority.name.lower()).set(texts)
            self._queued_tokens.labels(priority.name.lower()).set(tokens)
            rate = scheduler.backlog.rate_of(priority)
            self._queue_s.labels(priority.name.lower()).set(tokens / rate if rate else 0)
        self._busy.set(busy)
        computing, lent = slots.states()
        self._rows.labels("computing").set(computing)
        self._rows.labels("lent").set(lent)
        self._rows.labels("free").set(self._free_rows - computing - lent)
        self._memory.set(resident_bytes())
        self._cpu.to(cpu_seconds())
