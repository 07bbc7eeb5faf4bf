from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from ipc.backlog import BACKLOG_BYTES
from ipc.errors import StartError
from ipc.slab import PARTS, Epoch, Slab, remove_slabs, slab_file

EPOCH = Epoch(7)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_what_the_engine_writes_is_what_a_front_end_reads(run_dir: Path) -> None:
    ours, theirs = Slab.create(run_dir, EPOCH, 4, 3), Slab.attach(run_dir, EPOCH, 4, 3)
    ours.rows[2] = (1.0, 2.0, 3.0)
    ours.backlog.rate = 17
    theirs.leases[3] = 9
    assert theirs.rows[2].tolist() == [1.0, 2.0, 3.0]
    assert ours.leases.tolist() == [0, 0, 0, 9]
    assert theirs.backlog.rate == 17
    with pytest.raises(TypeError, match="read-only"):
        theirs.backlog.rate = 18


@pytest.mark.parametrize("part", ["rows", "running"])
def test_all_but_leases_is_read_only_to_a_front_end(run_dir: Path, part: str) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    array = getattr(Slab.attach(run_dir, EPOCH, 4, 3), part)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_files_are_private_and_whole(run_dir: Path) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    for part, size in (("rows", 48), ("running", 32), ("leases", 16), ("backlog", BACKLOG_BYTES)):
        path = slab_file(run_dir, EPOCH, part)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size == size
        assert path.stat().st_blocks > 0, "its memory must be set aside at creation"


def test_a_full_tmpfs_is_told_at_the_start(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StartError, match=r"EMBEDLANE_SLAB_ROWS"):
        Slab.create(run_dir, EPOCH, 4, 3)
    assert not list(run_dir.iterdir())


def test_an_engine_that_is_gone_is_told(run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Slab.attach(run_dir, EPOCH, 4, 3)


def test_another_size_than_announced_is_refused(run_dir: Path) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    with pytest.raises(ValueError, match="announced"):
        Slab.attach(run_dir, EPOCH, 5, 3)


@pytest.mark.parametrize("mode", [0o666, 0o640, 0o604, 0o602])
@pytest.mark.parametrize("part", PARTS)
def test_a_file_open_to_others_is_refused(run_dir: Path, part: str, mode: int) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    slab_file(run_dir, EPOCH, part).chmod(mode)
    with pytest.raises(PermissionError, match=part):
        Slab.attach(run_dir, EPOCH, 4, 3)


@pytest.mark.parametrize("part", PARTS)
def test_a_link_is_refused(run_dir: Path, part: str) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    file = slab_file(run_dir, EPOCH, part)
    file.rename(run_dir / "elsewhere")
    file.symlink_to(run_dir / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Slab.attach(run_dir, EPOCH, 4, 3)


def test_another_users_file_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    ours = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: ours + 1)
    with pytest.raises(PermissionError, match="not a private file of this user"):
        Slab.attach(run_dir, EPOCH, 4, 3)


def test_what_is_not_a_file_is_refused(run_dir: Path) -> None:
    Slab.create(run_dir, EPOCH, 4, 3)
    file = slab_file(run_dir, EPOCH, "rows")
    file.unlink()
    file.mkdir(mode=0o700)
    with pytest.raises(PermissionError, match="rows"):
        Slab.attach(run_dir, EPOCH, 4, 3)


@pytest.mark.parametrize("is_link", [True, False])
def test_a_name_that_is_taken_is_not_written_to(run_dir: Path, is_link: bool) -> None:
    """An engine's files are new ones, whatever lies where they are to be."""
    kept, file = run_dir / "kept", slab_file(run_dir, EPOCH, "rows")
    kept.write_text("kept")
    if is_link:
        file.symlink_to(kept)
    else:
        os.link(kept, file)
    with pytest.raises(FileExistsError):
        Slab.create(run_dir, EPOCH, 4, 3)
    assert kept.read_text() == "kept"


def test_readers_keep_what_a_new_engine_removes(run_dir: Path) -> None:
    Slab.create(run_dir, EPOCH, 4, 3).rows[1] = 5.0
    reader = Slab.attach(run_dir, EPOCH, 4, 3)
    assert remove_slabs(run_dir) == len(PARTS)
    Slab.create(run_dir, Epoch(8), 4, 3).rows[1] = 6.0
    assert not slab_file(run_dir, EPOCH, "rows").exists()
    assert np.array_equal(reader.rows[1], [5.0, 5.0, 5.0])


def test_a_mapping_lives_as_long_as_a_row_of_it(run_dir: Path) -> None:
    Slab.create(run_dir, EPOCH, 4, 3).rows[1] = 5.0
    row = Slab.attach(run_dir, EPOCH, 4, 3).rows[1]
    assert row.tolist() == [5.0, 5.0, 5.0]
