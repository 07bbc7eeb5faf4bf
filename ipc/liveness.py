"""Who lives: a process holds a lock on a file of its own, and the kernel lets go of it however the process ends.

A lock tells what a pid cannot: pids are reused, a held lock is not. A file that nobody holds is garbage.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from ipc.errors import StartError

ENGINE_LOCK = "engine.lock"
# Of an engine that is ready, and waits for the one that serves to end.
STANDBY_LOCK = "standby.lock"
_FRONTEND = "frontend-{:08x}.lock"


class ProcessLock:
    """An exclusive `flock` on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path) -> Self | None:
        """Take the lock, or None if another process has it.

        The file may be unlinked between our open and our lock (a dead owner's file is cleaned up under its
        lock), which would leave us holding a name that no one else can see; so the path is checked afterwards.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _is_same_file(path, descriptor):
                return cls(path, descriptor)
            os.close(descriptor)

    def sign(self) -> None:
        """Write this process's id into the file. Raises OSError where there is no memory for that."""
        os.pwrite(self._descriptor, b"%d" % os.getpid(), 0)

    def release(self) -> None:
        """Remove the file, then let go of the lock: in this order nobody sees a file that is free but wanted."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class FrontendIdentity:
    """The random, non-zero uint32 that names one life of one front end, and the lock that proves it."""

    def __init__(self, run_dir: Path) -> None:
        while True:
            self.id = secrets.randbelow(2**32 - 1) + 1
            lock = ProcessLock.try_acquire(frontend_lock(run_dir, self.id))
            if lock is not None:
                break
        self._lock = lock

    def announce(self) -> None:
        """Say which process this is, now that an engine has welcomed it. Raises OSError in a full run directory."""
        self._lock.sign()

    def release(self) -> None:
        """Declare this front end dead: the engine takes its rows back."""
        self._lock.release()


def frontend_lock(run_dir: Path, frontend: int) -> Path:
    """Where the front end with this id holds its lock."""
    return run_dir / _FRONTEND.format(frontend)


def frontend_lives(run_dir: Path, frontend: int) -> bool:
    """Whether a process holds this front end's lock."""
    return is_held(frontend_lock(run_dir, frontend))


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on this file; nobody does where there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def living_frontends(run_dir: Path) -> set[int]:
    """The front ends that hold their lock; the files of the others are removed. Only the engine calls this."""
    living = set()
    for path in run_dir.glob("frontend-*.lock"):
        lock = ProcessLock.try_acquire(path)
        if lock is None:
            living.add(int(path.stem.removeprefix("frontend-"), 16))
        else:
            lock.release()
    return living


def serving_pids(run_dir: Path) -> set[int]:
    """The front ends that an engine has welcomed, by the ids of their processes where they were started."""
    return {pid for path in run_dir.glob("frontend-*.lock") if (pid := _signature(path)) and is_held(path)}


def _signature(path: Path) -> int:
    try:
        return int(path.read_bytes() or b"0")
    except FileNotFoundError:
        return 0


def open_lock(path: Path) -> int:
    """Open a lock file that stays, for this user alone; gives its descriptor.

    Whoever may read a file may lock it, and keep everybody else waiting.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    info = os.fstat(descriptor)
    if info.st_mode & 0o077 and info.st_uid == os.getuid():
        # It was there already, open to others.
        os.fchmod(descriptor, 0o600)
    return descriptor


def ensure_run_dir(path: Path) -> Path:
    """Make the run directory with mode 0700, or check that it is ours alone.

    Raises StartError where another user could have prepared it or could look in.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_ours = is_ours_alone(path)
    except OSError as error:
        raise StartError(
            f"The run directory {path} cannot be used ({error.strerror}): set EMBEDLANE_RUN_DIR to a folder "
            "you can write to."
        ) from None
    if not is_ours:
        raise StartError(
            f"The run directory {path} must be a folder of yours with mode 0700, not a link: "
            "remove it or set EMBEDLANE_RUN_DIR to another."
        )
    return path


def is_ours_alone(run_dir: Path) -> bool:
    """Whether nobody else can have put there what is in it: sockets, locks, links. Raises OSError where it is not."""
    info = run_dir.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077
