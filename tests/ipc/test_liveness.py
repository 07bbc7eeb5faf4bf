from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipc.errors import StartError
from ipc.liveness import (
    FrontendIdentity,
    ProcessLock,
    ensure_run_dir,
    frontend_lives,
    frontend_lock,
    is_ours_alone,
    living_frontends,
    open_lock,
    serving_pids,
)

HOLD = """
import sys
from pathlib import Path
from ipc.liveness import ProcessLock
assert ProcessLock.try_acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""

Holder = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Holder]:
    """Starts processes that hold a lock until they are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_lock_has_one_holder(tmp_path: Path, hold: Holder) -> None:
    hold(tmp_path / "lock")
    assert ProcessLock.try_acquire(tmp_path / "lock") is None


def test_kill_9_lets_go_of_a_lock(tmp_path: Path, hold: Holder) -> None:
    process = hold(tmp_path / "lock")
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = ProcessLock.try_acquire(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_a_stopped_process_keeps_its_lock(tmp_path: Path, hold: Holder) -> None:
    process = hold(tmp_path / "lock")
    process.send_signal(signal.SIGSTOP)
    assert ProcessLock.try_acquire(tmp_path / "lock") is None


def test_release_leaves_no_file(tmp_path: Path) -> None:
    lock = ProcessLock.try_acquire(tmp_path / "lock")
    assert lock is not None
    with lock:
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.iterdir())


def test_a_file_unlinked_between_open_and_lock_is_not_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    real, unlinked = os.open, threading.Event()

    def open_then_lose(*arguments: object, **named: object) -> int:
        descriptor = real(*arguments, **named)  # type: ignore[arg-type]
        if not unlinked.is_set():
            unlinked.set()
            path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_then_lose)
    lock = ProcessLock.try_acquire(path)
    assert lock is not None
    assert path.exists(), "the lock must be on the file that the next process opens"
    lock.release()


def test_front_ends_have_ids_and_locks_of_their_own(tmp_path: Path) -> None:
    one, two = FrontendIdentity(tmp_path), FrontendIdentity(tmp_path)
    assert one.id != two.id
    assert one.id
    assert living_frontends(tmp_path) == {one.id, two.id}
    one.release()
    assert living_frontends(tmp_path) == {two.id}
    two.release()


def test_a_dead_front_end_is_found_and_its_file_removed(tmp_path: Path, hold: Holder) -> None:
    process = hold(frontend_lock(tmp_path, 5))
    assert frontend_lives(tmp_path, 5)
    process.kill()
    process.wait()
    assert not frontend_lives(tmp_path, 5)
    assert living_frontends(tmp_path) == set()
    assert not list(tmp_path.iterdir())


def test_a_front_end_that_never_was_does_not_live(tmp_path: Path) -> None:
    assert not frontend_lives(tmp_path, 5)


def test_run_dir_is_made_private(tmp_path: Path) -> None:
    made = ensure_run_dir(tmp_path / "run")
    assert made.stat().st_mode & 0o777 == 0o700
    assert ensure_run_dir(made) == made


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777, 0o1777])
def test_a_run_dir_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(StartError, match="0700"):
        ensure_run_dir(tmp_path / "run")


def test_a_link_for_a_run_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match="not a link"):
        ensure_run_dir(tmp_path / "run")


def test_a_link_to_nowhere_for_a_run_dir_is_refused(tmp_path: Path) -> None:
    """Nor is what it points to made."""
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match="cannot be used"):
        ensure_run_dir(tmp_path / "run")
    assert not (tmp_path / "real").exists()


def test_another_users_run_dir_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_run_dir(tmp_path / "run")
    ours = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: ours + 1)
    with pytest.raises(StartError, match="a folder of yours"):
        ensure_run_dir(tmp_path / "run")


def test_a_run_dir_that_is_looked_for_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        is_ours_alone(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert is_ours_alone(ensure_run_dir(tmp_path / "run"))


@pytest.mark.parametrize("before", [None, 0o600, 0o644, 0o666])
def test_a_lock_that_stays_is_for_one_user_alone(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "lock"
    if before is not None:
        path.touch()
        path.chmod(before)
    os.close(open_lock(path))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_for_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        open_lock(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_run_dir_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="EMBEDLANE_RUN_DIR"):
        ensure_run_dir(tmp_path / "file" / "run")


def test_a_front_end_is_seen_to_serve_from_its_welcome_to_its_end(tmp_path: Path) -> None:
    identity, other = FrontendIdentity(tmp_path), FrontendIdentity(tmp_path)
    assert serving_pids(tmp_path) == set()
    identity.announce()
    assert serving_pids(tmp_path) == {os.getpid()}
    other.release()
    identity.release()
    # One that was killed leaves its file.
    frontend_lock(tmp_path, 7).write_text("12345")
    assert serving_pids(tmp_path) == set()
