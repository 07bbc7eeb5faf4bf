"""`python -m engine`: take the lock, load the model, make the slab, serve until SIGTERM."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import zmq
from prometheus_client import CollectorRegistry

from engine.lanes import Lanes
from engine.loop import Engine, Model
from engine.metrics import EngineMetrics
from engine.runners import open_runner
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from engine.twins import Twins
from ipc.bundle import load_bundle, locate_bundle
from ipc.errors import NoRoom, StartError
from ipc.liveness import ENGINE_LOCK, ProcessLock, ensure_run_dir
from ipc.log import configure_logging
from ipc.messages import Welcome
from ipc.metrics import counting
from ipc.settings import Settings, load_settings
from ipc.slab import Epoch, Slab, remove_slabs
from ipc.sockets import ENGINE_SOCKET, bind_engine

log = logging.getLogger("engine")

STOP_GRACE_NS = 10_000_000_000
ROOM_SECONDS = 10.0
ROOM_POLL_SECONDS = 0.05


def main() -> int:
    """Run the engine; gives the exit status."""
    try:
        settings = load_settings()
        configure_logging("engine", settings.log_level)
        run_dir = ensure_run_dir(settings.run_path)
        lock = ProcessLock.try_acquire(run_dir / ENGINE_LOCK)
        if lock is None:
            raise StartError(
                f"Another engine holds {run_dir / ENGINE_LOCK}: stop it, or set EMBEDLANE_RUN_DIR to another folder."
            )
        with lock, counting(run_dir, "engine"):
            serve(settings, run_dir)
    except StartError as error:
        print(f"embedlane engine: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    return 0


def serve(settings: Settings, run_dir: Path) -> None:
    """Load, warm up, bind, loop; the caller holds the engine lock. Leaves no file behind."""
    began = time.monotonic()
    remove_slabs(run_dir)
    bundle = load_bundle(locate_bundle(settings.model, settings.data_path))
    runner = open_runner(settings, bundle)
    epoch = Epoch(secrets.randbits(63) | 1)
    slab = make_slab(run_dir, epoch, settings.slab_rows, bundle.dim)
    runner.warm_up(slab.rows[: settings.max_batch_rows])
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
    welcome = Welcome(
        model=bundle.id,
        fingerprint=bundle.fingerprint,
        rows=settings.slab_rows,
        dim=bundle.dim,
        device=runner.device,
        precision=runner.precision,
    )
    engine = Engine(
        router=router,
        # Without a cache nothing is shared, neither in the front ends nor between them.
        scheduler=Twins(limits) if settings.cache_mb else Scheduler(limits),
        lanes=lanes,
        slots=Slots(slab.leases, slab.running, share=settings.slab_share),
        max_rows=settings.max_batch_rows,
        model=Model(bundle.vocab_size, bundle.max_tokens),
        welcome=welcome,
        epoch=epoch,
        run_dir=run_dir,
        wake_fd=wake_fd,
        metrics=EngineMetrics(CollectorRegistry(), welcome, epoch, settings.queue_items),
    )
    _stop_on_signals(engine, wake_fd)
    log.info(
        "ready",
        extra={
            "model": bundle.id,
            "device": runner.device,
            "precision": runner.precision,
            "lanes": runner.lanes,
            "seconds": round(time.monotonic() - began, 2),
        },
    )
    engine.run()
    lanes.close()
    context.destroy(linger=None)
    remove_slabs(run_dir)
    (run_dir / ENGINE_SOCKET).unlink(missing_ok=True)


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
