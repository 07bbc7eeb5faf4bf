"""What another user of the machine can do to a running server: nothing but ask over HTTP, and that takes a key.

Only root can start a process of another user. Where the tests run as somebody else, owners and modes are what can be
looked at, and they are, by tests that say so in their names.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest

from frontend.auth import KEY_FILE
from frontend.keys import KEYS_FILE
from ipc.choice import Choice, write_choice
from ipc.messages import Submission, hello, submit
from ipc.priority import Priority
from ipc.slab import PARTS, Epoch
from ipc.sockets import ENGINE_SOCKET
from perf.stack import ROOT, Stack
from tests.system.intruder import REFUSED, Process, Target
from tests.system.keyed import keys
from tests.system.processes import family, slab_mappings
from tests.system.test_serve import start_and_fail

pytestmark = pytest.mark.system

NOBODY = 65534
DENIED = {"EACCES", "EPERM", REFUSED}
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A server whose data directory others can reach: what protects it must be its own."""
    with Stack(frontends=2, api_key="") as server:
        server.folder.chmod(0o755)
        keys(server, "create", "somebody")
        write_choice(server.run_dir, Choice(server.env["EMBEDLANE_MODEL"]))
        yield server


def data_dir(stack: Stack) -> Path:
    return stack.folder / "data"


def secrets_of(stack: Stack) -> list[Path]:
    """The keys, and the lock for whoever changes them."""
    folder = data_dir(stack)
    found = [folder / KEY_FILE, folder / KEYS_FILE, folder / f".{KEYS_FILE}.lock"]
    assert all(path.is_file() for path in found)
    return found


def inside(stack: Stack) -> list[Path]:
    """All that is in the run directory."""
    found = sorted(stack.run_dir.rglob("*"))
    names = {path.name for path in found}
    assert {"engine.lock", ENGINE_SOCKET, "supervisor.sock", "supervisord.pid", "model.json", "metrics"} <= names
    for kind in (r"slab-\w+\.(rows|running|leases|lock)", r"frontend-\w+\.lock", r"limits-.*", r".*_engine-0\.db"):
        assert any(re.fullmatch(kind, name) for name in names), f"no {kind} among {names}"
    return found


def processes_of(stack: Stack) -> list[psutil.Process]:
    """tools.serve, supervisord, the engine and the front ends."""
    assert stack.process is not None
    found = family(stack.process.pid)
    assert len(found) == 5
    return found


def seen(stack: Stack, pid: int) -> Process:
    """A process with what it has of the run directory."""
    links = {int(link.name): str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mappings = [line.split()[0] for line in lines if str(stack.run_dir) in line]
    return Process(pid, [fd for fd, path in links.items() if path.startswith(str(stack.run_dir))], mappings)


def target(stack: Stack) -> Target:
    paths = inside(stack)
    (lock,) = stack.run_dir.glob("slab-*.lock")
    epoch = Epoch(int(lock.stem.removeprefix("slab-"), 16))
    text = Submission(1, 2**62, Priority.INTERACTIVE, np.arange(1, 9, dtype=np.int32))
    return Target(
        run_dir=str(stack.run_dir),
        folders=[str(path) for path in paths if path.is_dir()],
        files=[str(path) for path in paths if path.is_file()],
        sockets=[str(path) for path in paths if path.is_socket()],
        engine=str(stack.run_dir / ENGINE_SOCKET),
        secrets=list(map(str, secrets_of(stack))),
        data_dir=str(data_dir(stack)),
        processes=[seen(stack, process.pid) for process in processes_of(stack)],
        hello=hello().hex(),
        submission=submit([text], epoch).hex(),
    )


def intrude(on: Target, *user: int) -> dict[str, str]:
    """Each attempt and what came of it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.intruder", *map(str, user)],
        cwd=ROOT,
        input=msgspec.json.encode(on),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=dict[str, str])


def embeds(stack: Stack) -> bool:
    """Whether the server answers as ever."""
    key = (data_dir(stack) / KEY_FILE).read_text().strip()
    answer = httpx.post(f"{stack.url}/embed", json={"inputs": "text"}, headers={"X-API-Key": key}, timeout=30)
    return answer.status_code == 200


@as_root
def test_every_attempt_of_another_user_fails(stack: Stack) -> None:
    """Vectors are not read and work is not sent, by whatever way. Nor is the server harmed."""
    before, on = [process.pid for process in processes_of(stack)], target(stack)
    assert len(slab_mappings(stack.pids("engine")[0])) == len(PARTS)
    assert any(process.mappings for process in on.processes)
    assert any(process.files for process in on.processes)
    outcomes = intrude(on, NOBODY)
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in DENIED} == {}
    assert len(outcomes) > 200
    assert [process.pid for process in processes_of(stack)] == before
    assert embeds(stack)
    # The attempts are real ones: whoever may do all that succeeds in each.
    own = intrude(target(stack))
    assert {name: outcome for name, outcome in own.items() if outcome != "done"} == {}
    assert own.keys() <= outcomes.keys()
    assert embeds(stack)


def test_owners_and_modes_keep_others_out(stack: Stack) -> None:
    """What the attempts of another user fail on, seen by any user."""
    ours = os.getuid()
    assert stat.S_IMODE(stack.run_dir.lstat().st_mode) == 0o700
    for path in (stack.run_dir, *inside(stack), *secrets_of(stack)):
        assert path.lstat().st_uid == ours, path
        assert not path.is_symlink(), path
    # supervisord makes its own two, which the folder's mode protects, and so it does the engine's socket.
    closed = [path for path in inside(stack) if not path.is_socket() and path.name != "supervisord.pid"]
    for path in (*closed, *secrets_of(stack)):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
    for process in processes_of(stack):
        for name in ("environ", "mem", "fd"):
            info = Path(f"/proc/{process.pid}/{name}").stat()
            # A process that another user could look into would belong to that user, or be open to all.
            assert info.st_uid == ours
            assert stat.S_IMODE(info.st_mode) & 0o077 == 0


def test_no_key_is_where_every_user_can_read(stack: Stack) -> None:
    """The server's own, which it made itself and hands on to all its processes."""
    own = (data_dir(stack) / KEY_FILE).read_text().strip()
    assert own in Path(f"/proc/{stack.pids('frontend')[0]}/environ").read_text()
    for process in processes_of(stack):
        for name in ("cmdline", "comm", "status", "stat"):
            assert own not in Path(f"/proc/{process.pid}/{name}").read_text()


def test_no_socket_is_where_every_user_can_connect(stack: Stack) -> None:
    """An abstract Unix socket has no owner and no mode."""
    sockets = [each for process in processes_of(stack) for each in process.net_connections("unix")]
    names = {str(each.laddr) for each in sockets} - {""}
    # supervisord binds its own under another name, and then renames it.
    for known in (ENGINE_SOCKET, "supervisor.sock"):
        assert any(name.startswith(str(stack.run_dir / known)) for name in names)
    assert all(name.startswith(f"{stack.run_dir}/") for name in names)


# What another user made beforehand


@pytest.fixture
def never_started() -> Iterator[Stack]:
    stack = Stack(frontends=2)
    yield stack
    stack.__exit__()
    if stack.run_dir.is_symlink():
        stack.run_dir.unlink()
    elif stack.run_dir.exists():
        for path in stack.run_dir.iterdir():
            path.unlink()
        stack.run_dir.rmdir()


def squat(stack: Stack, how: str) -> None:
    """Be there before the server."""
    if how == "a link":
        (stack.folder / "elsewhere").mkdir(mode=0o700)
        stack.run_dir.symlink_to(stack.folder / "elsewhere")
        return
    stack.run_dir.mkdir(mode=0o700)
    if how == "open to all":
        stack.run_dir.chmod(0o777)
    elif how == "another's":
        os.chown(stack.run_dir, NOBODY, NOBODY)


SQUATS = ["a link", "open to all", pytest.param("another's", marks=as_root)]
REFUSES = "embedlane: The run directory {} must be a folder of yours with mode 0700, not a link"
DISTRUSTS = "embedlane: The run directory {} is no folder of yours with mode 0700"


@pytest.mark.parametrize("how", SQUATS)
def test_a_run_directory_that_was_there_before_is_refused(never_started: Stack, how: str) -> None:
    squat(never_started, how)
    before = never_started.run_dir.lstat()
    (line,) = start_and_fail(never_started)
    assert line.startswith(REFUSES.format(never_started.run_dir))
    after = never_started.run_dir.lstat()
    assert (before.st_ino, before.st_mode, before.st_uid) == (after.st_ino, after.st_mode, after.st_uid)
    assert list(never_started.run_dir.iterdir()) == []


@pytest.mark.parametrize("how", SQUATS)
@pytest.mark.parametrize("command", ["tools.restart", "tools.swap"])
def test_commands_trust_no_run_directory_of_another(never_started: Stack, how: str, command: str) -> None:
    """Who listens there as supervisord would tell them what to believe, and see what they ask for."""
    squat(never_started, how)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(never_started.run_dir / "supervisor.sock"))
        stranger.listen()
        stranger.setblocking(False)
        done = subprocess.run(
            [sys.executable, "-m", command],
            cwd=ROOT,
            env=never_started.env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        with pytest.raises(BlockingIOError):
            stranger.accept()
    assert done.returncode == 3
    assert done.stderr.startswith(DISTRUSTS.format(never_started.run_dir))
    assert [path.name for path in never_started.run_dir.iterdir()] == ["supervisor.sock"]
