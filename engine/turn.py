"""Whose turn it is: one engine serves, and another that has loaded its model may wait for it to end."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from ipc.liveness import ENGINE_LOCK, STANDBY_LOCK, ProcessLock

log = logging.getLogger(__name__)

# What a hand-over takes longer at most for looking and not being told.
LOOK_SECONDS = 0.005


def await_turn(run_dir: Path) -> ProcessLock:
    """The engine lock, once no other engine has it; those who wait hold the standby lock, one after the other."""
    lock = ProcessLock.try_acquire(run_dir / ENGINE_LOCK)
    if lock is not None:
        return lock
    log.info("ready to take over", extra={"run_dir": str(run_dir)})
    with _acquire(run_dir / STANDBY_LOCK):
        return _acquire(run_dir / ENGINE_LOCK)


def _acquire(path: Path) -> ProcessLock:
    while (lock := ProcessLock.try_acquire(path)) is None:
        time.sleep(LOOK_SECONDS)
    return lock
