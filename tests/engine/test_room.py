"""An engine that starts while the run directory is full waits for room, within reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from engine import __main__ as engine
from ipc.errors import NoRoom, StartError
from ipc.slab import PARTS, Epoch

EPOCH = Epoch(3)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


class Full:
    """A file system that has room for one more file at each try, and for all three at the last."""

    def __init__(self, tries: int, number: int = errno.ENOSPC) -> None:
        self.left = tries
        self.number = number
        self._allocate = os.posix_fallocate

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        self._allocate(descriptor, offset, size)
        if self.left and size == 4 * 4:  # the leases, the last of the three
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))


def test_a_full_run_directory_is_waited_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(3)
    monkeypatch.setattr(os, "posix_fallocate", full.allocate)
    slab = engine.make_slab(run_dir, EPOCH, rows=4, dim=3)
    assert full.left == 0
    assert slab.rows.shape == (4, 3)
    assert len(list(run_dir.iterdir())) == len(PARTS)


def test_but_not_for_ever(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", Full(10**9).allocate)
    monkeypatch.setattr(engine, "ROOM_SECONDS", 0.01)
    with pytest.raises(NoRoom, match="EMBEDLANE_SLAB_ROWS"):
        engine.make_slab(run_dir, EPOCH, rows=4, dim=3)
    assert not list(run_dir.iterdir())


def test_what_no_time_can_mend_is_told_at_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full(2, errno.EIO)
    monkeypatch.setattr(os, "posix_fallocate", full.allocate)
    with pytest.raises(StartError):
        engine.make_slab(run_dir, EPOCH, rows=4, dim=3)
    assert full.left == 1
