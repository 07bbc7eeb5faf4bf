"""`python -m engine`: load the model, make the slab, take the lock, serve until SIGTERM.

The lock comes last: an engine that finds another one serving is ready by the time that one ends, and takes over.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from prometheus_client import CollectorRegistry

from engine.lanes import Lanes
from engine.loop import Engine, Model
from engine.metrics import EngineMetrics
from engine.rates import Rate
from engine.runners import Runner, open_runner
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from engine.turn import await_turn
from engine.twins import Twins
from engine.watchdog import Watchdog
from ipc.bundle import Bundle, load_bundle, locate_bundle
from ipc.choice import as_chosen
from ipc.errors import NoRoom, StartError
from ipc.liveness import ensure_run_dir
from ipc.log import configure_logging
from ipc.messages import Welcome
from ipc.metrics import counting
from ipc.process import raise_descriptor_limit
from ipc.settings import Settings, load_settings
from ipc.slab import Epoch, Rows, Slab, new_epoch, remove_slabs
from ipc.sockets import ENGINE_SOCKET, bind_engine

log = logging.getLogger("engine")

# As a question has.
FIRST_LENGTH = 16
STOP_GRACE_NS = 10_000_000_000
ROOM_SECONDS = 10.0
ROOM_POLL_SECONDS = 0.05


def main() -> int:
    """Run the engine; gives the exit status."""
    try:
        settings = load_settings()
        configure_logging("engine", settings.log_level)
        raise_descriptor_limit()
        run_dir = ensure_run_dir(settings.run_path)
        with new_epoch(run_dir) as epoch:
            run(as_chosen(settings), run_dir, epoch)
    except StartError as error:
        print(f"embedlane engine: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    return 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine needs to serve at once."""

    bundle: Bundle
    runner: Runner
    slab: Slab
    epoch: Epoch

    def welcome(self) -> Welcome:
        """What front ends are told."""
        return Welcome(
            model=self.bundle.id,
            digest=self.bundle.digest,
            folder=str(self.bundle.folder.absolute()),
            rows=len(self.slab.leases),
            dim=self.bundle.dim,
            device=self.runner.device,
            precision=self.runner.precision,
        )


def run(settings: Settings, run_dir: Path, epoch: Epoch) -> None:
    """Load, wait for the engine before this one to end, serve."""
    loaded = load(settings, run_dir, epoch)
    with await_turn(run_dir), counting(run_dir, "engine"):
        remove_slabs(run_dir)
        serve(settings, run_dir, loaded)


def load(settings: Settings, run_dir: Path, epoch: Epoch) -> Loaded:
    """Bundle, runner and slab, warmed up. Raises StartError."""
    began = time.monotonic()
    bundle = load_bundle(locate_bundle(settings.model, settings.data_path))
    runner = open_runner(settings, bundle)
    slab = make_slab(run_dir, epoch, settings.slab_rows, bundle.dim)
    runner.warm_up(slab.rows[: settings.max_batch_rows])
    texts = max(1, min(settings.max_batch_rows, settings.max_batch_tokens // FIRST_LENGTH))
    slab.backlog.rate = first_rate(runner, slab.rows[:texts])
    kind = {"device": runner.device, "precision": runner.precision, "lanes": runner.lanes}
    log.info("loaded", extra={"model": bundle.id, **kind, "seconds": round(time.monotonic() - began, 2)})
    return Loaded(bundle, runner, slab, epoch)


def serve(settings: Settings, run_dir: Path, loaded: Loaded) -> None:
    """Bind, loop; the caller holds the engine lock."""
    bundle, runner, slab = loaded.bundle, loaded.runner, loaded.slab
    welcome = loaded.welcome()
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    lanes = Lanes(runner, slab.rows, lambda: os.eventfd_write(wake_fd, 1))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = bind_engine(context, run_dir)
    limits = Limits(
        rows=settings.max_batch_rows,
        tokens=settings.max_batch_tokens,
        max_wait=int(settings.max_wait_ms * 1e6),
        queue_items=settings.queue_items,
        mixes_lengths=runner.mixes_lengths,
    )
    watchdog = Watchdog(settings.engine_hang_ms * 1_000_000)
    engine = Engine(
        router=router,
        # Without a cache nothing is shared, neither in the front ends nor between them.
        scheduler=(Twins if settings.cache_mb else Scheduler)(limits, slab.backlog),
        lanes=lanes,
        slots=Slots(slab.leases, slab.running, share=settings.slab_share),
        max_rows=settings.max_batch_rows,
        model=Model(bundle.vocab_size, bundle.max_tokens),
        welcome=welcome,
        epoch=loaded.epoch,
        run_dir=run_dir,
        wake_fd=wake_fd,
        metrics=EngineMetrics(CollectorRegistry(), welcome, loaded.epoch, settings.queue_items),
        watchdog=watchdog,
    )
    _stop_on_signals(engine, wake_fd)
    log.info("ready", extra={"model": bundle.id})
    engine.run()
    lanes.close()
    watchdog.stop()
    context.destroy(linger=None)
    (run_dir / ENGINE_SOCKET).unlink(missing_ok=True)


def first_rate(runner: Runner, rows: Rows) -> int:
    """Tokens per second of all lanes, by one batch: until others have run, admission goes by this."""
    texts = [np.zeros(FIRST_LENGTH, np.int32)] * len(rows)
    began = time.monotonic_ns()
    runner.run(texts, rows)
    rows[:] = 0
    return Rate(runner.lanes).after(FIRST_LENGTH * len(texts), time.monotonic_ns() - began)


def make_slab(run_dir: Path, epoch: Epoch, rows: int, dim: int) -> Slab:
    """Wait for room, within reason: the last engine's slab is there until its readers let go, and what else fills the
    run directory may go as well. Raises StartError.
    """
    give_up = time.monotonic() + ROOM_SECONDS
    while True:
        try:
            return Slab.create(run_dir, epoch, rows, dim)
        except NoRoom:
            remove_slabs(run_dir)
            if time.monotonic() > give_up:
                raise
        time.sleep(ROOM_POLL_SECONDS)


def _stop_on_signals(engine: Engine, wake_fd: int) -> None:
    def stop(*_: object) -> None:
        engine.stop(STOP_GRACE_NS)
        os.eventfd_write(wake_fd, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
