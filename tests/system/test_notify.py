"""What systemd is told by the server that it starts, and by its exit status."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from perf.stack import Stack
from tests.system.processes import family, is_gone, wait_for

pytestmark = pytest.mark.system


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        yield receiver


def test_ready_once_it_is_and_stopping_once_it_does(systemd: socket.socket) -> None:
    stack = Stack(frontends=2)
    stack.env["NOTIFY_SOCKET"] = systemd.getsockname()
    try:
        stack.start(wait=False)
        assert systemd.recv(100) == b"READY=1"
        assert stack.status("/ready") == 200
        assert stack.stop() == 0
        assert systemd.recv(100) == b"STOPPING=1"
    finally:
        stack.__exit__()


def test_a_server_that_loses_its_supervisor_has_failed() -> None:
    with Stack(frontends=2) as stack:
        assert stack.process is not None
        _, supervisord, *below = family(stack.process.pid)
        supervisord.send_signal(signal.SIGKILL)
        try:
            assert stack.process.wait(30) == 1, "systemd starts anew what has failed"
        finally:
            # systemd ends all that is left of a unit; here nobody does.
            for process in below:
                process.kill()
            wait_for(lambda: all(map(is_gone, below)) or not any(psutil.pid_exists(p.pid) for p in below), "their end")
