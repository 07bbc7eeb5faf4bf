from __future__ import annotations

import threading
from pathlib import Path

from engine.turn import await_turn
from ipc.liveness import ENGINE_LOCK, STANDBY_LOCK, ProcessLock, is_held
from tests.system.processes import wait_for


def held(path: Path) -> ProcessLock:
    lock = ProcessLock.try_acquire(path)
    assert lock is not None
    return lock


def test_the_only_engine_serves_at_once(tmp_path: Path) -> None:
    with await_turn(tmp_path):
        assert is_held(tmp_path / ENGINE_LOCK)
        assert not is_held(tmp_path / STANDBY_LOCK)


def test_one_after_the_other_takes_over_when_the_one_that_serves_ends(tmp_path: Path) -> None:
    turns: list[ProcessLock] = []
    serving = held(tmp_path / ENGINE_LOCK)
    waiting = [threading.Thread(target=lambda: turns.append(await_turn(tmp_path))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    try:
        for number in range(2):
            wait_for(lambda: is_held(tmp_path / STANDBY_LOCK), "an engine that says it is ready")
            assert len(turns) == number
            serving.release()
            wait_for(lambda: len(turns) > number, "the next engine")  # noqa: B023 - called at once
            serving = turns[-1]
            assert is_held(tmp_path / ENGINE_LOCK)
    finally:
        serving.release()
        for thread in waiting:
            thread.join()
    assert not is_held(tmp_path / STANDBY_LOCK)
