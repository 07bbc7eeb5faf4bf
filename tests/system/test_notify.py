"""What systemd is told by the server that it starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.stack import Stack

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
