"""Last stage of prepare: one writer at a time, and a folder that appears whole, in one rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.fetch import Say


@contextmanager
def locked(target: Path, say: Say) -> Iterator[None]:
    """Hold the right to write `target`. The lock goes with the process; its file stays, as removing it would race."""
    with hidden(target, "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting    for another process that prepares {target}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(partial: Path, target: Path) -> None:
    """Put the finished folder into its place. Processes that have the old one's files open keep them."""
    for path in (*partial.iterdir(), partial):
        _flush(path)
    old = hidden(target, "old")
    remove(old)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _flush(target.parent)
    remove(old)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hidden(target: Path, purpose: str) -> Path:
    """A name beside `target` for what is not to be seen."""
    return target.parent / f".{target.name}.{purpose}"


def remove(*folders: Path) -> None:
    """Remove folders with all that is in them; those that are not there are no error."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
