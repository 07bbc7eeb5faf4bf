"""What survives a kill: the rows so far in OUT.partial, and in OUT.journal how far they are whole.

    OUT.partial   the writer's head, then one window after another; whatever lies behind the last mark is garbage
    OUT.journal   a line for what the output depends on, then one for each window (a mark), each with its CRC

A window's rows are on the disk before its mark is written, and the mark before the next window's rows: a mark is
never of rows that are not there. A line that was cut short has a wrong CRC, and is as if it were not there. OUT itself
appears in one rename, when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from ipc.errors import StartError

CRC_BYTES = 9
AGAIN = "run it with --restart to begin anew"


class Mark(msgspec.Struct, frozen=True):
    """How far everything is: rows done, the reader's position, bytes of OUT.partial, and what was counted on the way.

    `is_done` once all rows are there and only the finishing is left.
    """

    rows: int = 0
    position: int = 0
    size: int = 0
    texts: int = 0
    truncated: int = 0
    bad: int = 0
    is_done: bool = False


class Journal:
    """The two files of one output, locked for this process. `mark` is where to go on."""

    def __init__(self, out: Path, partial: BinaryIO, log: BinaryIO, mark: Mark) -> None:
        self.out = out
        self.partial = partial
        self._log = log
        self.mark = mark

    @classmethod
    def open(cls, out: Path, depends_on: Mapping[str, str], head: bytes, *, restart: bool) -> Self:
        """Go on where an earlier run ended, or begin. `depends_on` is what must be as it was then, by names for people.

        Raises StartError where it is not, another process writes the same output, or the output is there.
        """
        if is_finished(out) and not restart:
            raise StartError(f"{out} is there already: name another output, or {AGAIN}.")
        with contextlib.ExitStack() as files:
            partial = files.enter_context(_open_locked(beside(out, "partial")))
            log_path = beside(out, "journal")
            lines = [] if restart else _whole_lines(log_path)
            mark = _resume(partial, lines, depends_on) if lines else _begin(partial, log_path, depends_on, head)
            log = files.enter_context(log_path.open("r+b"))
            if lines:
                log.truncate(sum(map(len, lines)))
            log.seek(0, os.SEEK_END)
            files.pop_all()
        return cls(out, partial, log, mark)

    def commit(self, data: Sequence[bytes | memoryview], mark: Mark) -> None:
        """Put a window behind the others; when this returns, no kill and no loss of power takes it away."""
        for part in data:
            self.partial.write(part)
        self.partial.flush()
        os.fdatasync(self.partial.fileno())
        self.mark = msgspec.structs.replace(mark, size=self.partial.tell())
        self._write_mark()

    def finish_reading(self) -> None:
        """Note that all rows are there."""
        self.mark = msgspec.structs.replace(self.mark, is_done=True)
        self._write_mark()

    def publish(self, whole: Path) -> None:
        """Give the output its name and leave nothing beside it; `whole` is OUT.partial, or what was made of it."""
        _sync(whole)
        whole.replace(self.out)
        _sync(self.out.parent)
        beside(self.out, "partial").unlink(missing_ok=True)
        # Last: without it, what a kill leaves before this would be taken for the beginning of another run.
        beside(self.out, "journal").unlink(missing_ok=True)
        _sync(self.out.parent)

    def close(self) -> None:
        """Let go of both files."""
        self._log.close()
        self.partial.close()

    def _write_mark(self) -> None:
        self._log.write(_line(msgspec.json.encode(self.mark)))
        self._log.flush()
        os.fdatasync(self._log.fileno())


def beside(out: Path, what: str) -> Path:
    """The file of that kind that belongs to an output."""
    return out.with_name(f"{out.name}.{what}")


def is_finished(out: Path) -> bool:
    """Whether the output is there; clears away what a run leaves that is killed between naming it and its own end."""
    log_path = beside(out, "journal")
    if not out.exists():
        return False
    if log_path.exists() and not beside(out, "partial").exists():
        log_path.unlink()
    return not log_path.exists()


def _open_locked(path: Path) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise StartError(f"Another process writes {path}: wait for it, or name another output.") from None
    return file


def _begin(partial: BinaryIO, log_path: Path, depends_on: Mapping[str, str], head: bytes) -> Mark:
    """An empty output. The journal appears last, and whole: until then there is none, and a run begins anew."""
    log_path.unlink(missing_ok=True)
    partial.truncate(0)
    partial.seek(0)
    partial.write(head)
    partial.flush()
    os.fsync(partial.fileno())
    mark = Mark(size=len(head))
    fresh = log_path.with_name(f"{log_path.name}.new")
    fresh.write_bytes(_line(msgspec.json.encode(dict(depends_on))) + _line(msgspec.json.encode(mark)))
    _sync(fresh)
    fresh.replace(log_path)
    _sync(log_path.parent)
    return mark


def _resume(partial: BinaryIO, lines: Sequence[bytes], depends_on: Mapping[str, str]) -> Mark:
    """Cut the output behind the last window that has a mark."""
    said = [line[CRC_BYTES:] for line in lines]
    _compare(msgspec.json.decode(said[0], type=dict[str, str]), depends_on)
    mark = msgspec.json.decode(said[-1], type=Mark)
    if os.fstat(partial.fileno()).st_size < mark.size:
        raise StartError(f"{partial.name} is shorter than its journal says: {AGAIN}.")
    partial.truncate(mark.size)
    partial.seek(mark.size)
    return mark


def _whole_lines(log_path: Path) -> list[bytes]:
    """The journal's lines up to the first that is not whole; none where there is no journal."""
    found: list[bytes] = []
    if log_path.exists():
        for line in log_path.read_bytes().splitlines(keepends=True):
            if line != _line(line[CRC_BYTES:-1]):
                break
            found.append(line)
    return found


def _line(said: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(said), said)


def _compare(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name in {**now, **then}:
        if then.get(name) != now.get(name):
            raise StartError(
                f"What is there was begun with another {name} ({then.get(name)}; now {now.get(name)}): "
                f"give the one of then, or {AGAIN}."
            )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
