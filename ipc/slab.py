"""The slab: vectors in shared memory, written by the engine, read in place by the front ends.

Files in the run directory, made anew by each engine (an epoch is one life of the engine)::

    slab-<epoch>.rows      float32 [rows, dim]  engine writes, front ends map read-only
    slab-<epoch>.running   uint64  [rows]       the same; 0, or the sequence of the text that a lane computes there
    slab-<epoch>.leases    uint32  [rows]       0: free, else the id of the front end that may read the row
    slab-<epoch>.backlog   what waits in that engine (ipc.backlog), read-only for front ends as well
    slab-<epoch>.lock                           locked while that engine lives; the files of others are garbage

A row is computing (running != 0), lent (lease != 0) or free. `running` is what an engine that was killed leaves behind
to tell which texts it died with. The leases' transitions::

    from          to            who            when
    0             front end id  engine         before the REPLY that names the row
    front end id  0             that front end after its last read
    front end id  0             engine         if the REPLY could not be handed to ZeroMQ: no one knows of the row
    front end id  0             engine         only once that front end's file lock is free: it is dead

Each transition has one allowed writer at a time, so there are no locks. The ZeroMQ message orders the engine's
writes before the reader's reads. A lease is one aligned 32-bit word, so a store of it is never seen in part.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from ipc.backlog import BACKLOG_BYTES, Backlog
from ipc.errors import NoRoom, StartError
from ipc.liveness import ProcessLock, is_held

Epoch = NewType("Epoch", int)

# Rows is [n, dim], a Row is [dim]; NDArray cannot say so.
Rows = NDArray[np.float32]
Row = NDArray[np.float32]
Leases = NDArray[np.uint32]
Running = NDArray[np.uint64]

FREE = 0
PARTS = ("rows", "running", "leases", "backlog")
LOOK_SECONDS = 0.001


class Slab:
    """The arrays over the mapped files; `create` for the engine, `attach` for a front end."""

    def __init__(
        self,
        rows: NDArray[np.uint8],
        running: NDArray[np.uint8],
        leases: NDArray[np.uint8],
        backlog: NDArray[np.uint8],
    ) -> None:
        self.leases: Leases = leases.view(np.uint32)
        self.running: Running = running.view(np.uint64)
        self.rows: Rows = rows.view(np.float32).reshape(len(self.leases), -1)
        self.backlog = Backlog(backlog.data.cast("Q"))

    @classmethod
    def create(cls, run_dir: Path, epoch: Epoch, rows: int, dim: int) -> Slab:
        """Make the files, zeroed, with their memory set aside. Raises StartError: NoRoom where it is full."""
        return cls(*(_create(path, size) for path, size in _files(run_dir, epoch, rows, dim)))

    @classmethod
    def attach(cls, run_dir: Path, epoch: Epoch, rows: int, dim: int) -> Slab:
        """Map an engine's files, only the leases writable.

        Raises FileNotFoundError if that engine is gone and cleaned up, PermissionError if a file is not ours alone,
        ValueError if its size is not what the engine announced.
        """
        files = _files(run_dir, epoch, rows, dim)
        return cls(*(_attach(path, size, writable=path.suffix == ".leases") for path, size in files))


def slab_file(run_dir: Path, epoch: Epoch, part: str) -> Path:
    """Where one of PARTS, or "lock", of an epoch is."""
    return run_dir / f"slab-{epoch:016x}.{part}"


def _files(run_dir: Path, epoch: Epoch, rows: int, dim: int) -> list[tuple[Path, int]]:
    """Path and size in bytes of each file."""
    sizes = {"rows": rows * dim * 4, "running": rows * 8, "leases": rows * 4, "backlog": BACKLOG_BYTES}
    return [(slab_file(run_dir, epoch, part), sizes[part]) for part in PARTS]


@contextlib.contextmanager
def new_epoch(run_dir: Path) -> Iterator[Epoch]:
    """A life of an engine: while it lasts its slab's files are nobody's garbage, at its end they are removed."""
    epoch = Epoch(secrets.randbits(63) | 1)
    # Someone who looks whether it is held can hold it for a moment.
    while (lock := ProcessLock.try_acquire(slab_file(run_dir, epoch, "lock"))) is None:
        time.sleep(LOOK_SECONDS)
    with lock:
        try:
            yield epoch
        finally:
            for part in PARTS:
                slab_file(run_dir, epoch, part).unlink(missing_ok=True)


def remove_slabs(run_dir: Path) -> int:
    """Unlink the files of engines that are dead; readers keep what they have mapped. Gives how many there were."""
    garbage = [path for path in run_dir.glob("slab-*") if not is_held(path.with_suffix(".lock"))]
    for path in garbage:
        path.unlink(missing_ok=True)
    return len(garbage)


def _create(path: Path, size: int) -> NDArray[np.uint8]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Without this a full tmpfs shows itself much later, as SIGBUS on the first touch of a page.
        os.posix_fallocate(descriptor, 0, size)
        return np.frombuffer(mmap.mmap(descriptor, size), dtype=np.uint8)
    except OSError as error:
        path.unlink(missing_ok=True)
        kind = NoRoom if error.errno == errno.ENOSPC else StartError
        raise kind(
            f"The slab needs {-(-size >> 20)} MiB in {path.parent}, which cannot be had ({error.strerror}): "
            "free memory there, lower EMBEDLANE_SLAB_ROWS, or set EMBEDLANE_RUN_DIR to a larger tmpfs."
        ) from None
    finally:
        os.close(descriptor)


def _attach(path: Path, size: int, *, writable: bool) -> NDArray[np.uint8]:
    access = os.O_RDWR if writable else os.O_RDONLY
    descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise PermissionError(f"{path} is not a private file of this user")
        if info.st_size != size:
            raise ValueError(f"{path} has {info.st_size} bytes where {size} were announced")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return np.frombuffer(mmap.mmap(descriptor, size, prot=protection), dtype=np.uint8)
    finally:
        os.close(descriptor)
