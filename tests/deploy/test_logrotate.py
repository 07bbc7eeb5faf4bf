"""The rotation as deploy/logrotate.conf has it, by Debian's logrotate, on the output of a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perf.stack import Stack
from tests.system.processes import wait_for
from tests.system.wire import AUTHORIZED, Connection

ROOT = Path(__file__).parent.parent.parent
CONFIGURATION = ROOT / "deploy" / "logrotate.conf"
REQUESTS = 200


class Rotation:
    """logrotate for one server's log, with the state of its own that it needs."""

    def __init__(self, stack: Stack) -> None:
        self._program = shutil.which("logrotate", path="/usr/sbin:/usr/bin:/sbin:/bin")
        if self._program is None:
            pytest.fail("There is no logrotate on this machine: on Debian, apt-get install logrotate.", pytrace=False)
        self._log = stack.log
        self._configuration = stack.folder / "logrotate.conf"
        self._state = stack.folder / "logrotate.state"
        self._configuration.write_text(CONFIGURATION.read_text().replace("/var/log/embedlane/*.log", str(stack.log)))

    def rotate(self) -> None:
        assert self._program is not None
        command = [self._program, "--force", "--state", str(self._state), str(self._configuration)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def parts(self) -> list[bytes]:
        """The log's content, oldest part first."""
        paths = sorted(self._log.parent.glob(f"{self._log.name}.*"), key=lambda path: -int(path.name.split(".")[2]))
        unpacked = [
            subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout
            if path.suffix == ".gz"
            else path.read_bytes()
            for path in paths
        ]
        return [*unpacked, self._log.read_bytes()]

    def told(self) -> list[str]:
        """The correlation ids of the requests, in the order of their lines; each part's last line may be cut."""
        return logged([part.rpartition(b"\n")[0] for part in self.parts()])


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(frontends=2) as stack:
        yield stack


@pytest.fixture(scope="module")
def rotation(stack: Stack) -> Rotation:
    # Once it has told that it is ready, the server says nothing unasked.
    wait_for(lambda: "Ctrl-C stops it." in stack.log.read_text(), "the block")
    return Rotation(stack)


async def ask(port: int, ids: list[str]) -> None:
    """Requests of four clients, each on a connection of its own, with these correlation ids."""

    async def client(mine: list[str]) -> None:
        async with await Connection.open(port) as connection:
            for name in mine:
                answer = await connection.request("GET", "/health", headers={**AUTHORIZED, "X-Correlation-ID": name})
                assert answer.status == 200

    await asyncio.gather(*(client(ids[n::4]) for n in range(4)))


def logged(parts: list[bytes]) -> list[str]:
    """The correlation ids of the requests, in the order of their lines; every line is whole."""
    records = [json.loads(line) for part in parts for line in part.splitlines() if line.startswith(b"{")]
    return [record["correlation_id"] for record in records if record["message"] == "request"]


def test_between_requests_nothing_is_lost(stack: Stack, rotation: Rotation) -> None:
    rounds = [[f"quiet-{turn}-{n}" for n in range(REQUESTS)] for turn in range(4)]
    for ids in rounds:
        asyncio.run(ask(stack.port, ids))
        wait_for(lambda ids=ids: set(ids) <= set(logged(rotation.parts())), "the lines of all requests")  # type: ignore[misc]
        rotation.rotate()
    ours = [name for name in logged(rotation.parts()) if name.startswith("quiet-")]
    assert sorted(ours) == sorted(name for ids in rounds for name in ids), "each once"


@contextmanager
def load(port: int) -> Iterator[list[str]]:
    """Requests without a pause while the block lasts; gives the ids of those that were answered."""
    asked: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            ids = [f"busy-{len(asked) + n}" for n in range(20)]
            asyncio.run(ask(port, ids))
            asked.extend(ids)

    thread = threading.Thread(target=run, name="load")
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join()


def test_under_load_only_what_is_written_meanwhile_is_lost(stack: Stack, rotation: Rotation) -> None:
    with load(stack.port) as asked:
        for _ in range(6):
            before = len(asked)
            wait_for(lambda before=before: len(asked) > before + 100, "requests")  # type: ignore[misc]
            written = set(rotation.told())
            rotation.rotate()
            assert written <= set(rotation.told())
    wait_for(lambda: asked[-1] in rotation.told(), "the last request's line")
    parts = rotation.parts()
    # A process that did not append would leave a hole where it was before.
    assert not any(b"\0" in part for part in parts)
    # The copy may end within a line, whose rest is then cut off; no part begins with a rest.
    assert all(part[:1] in {b"{", b""} for part in parts[-6:])
    ours = [name for name in rotation.told() if name.startswith("busy-")]
    assert len(ours) == len(set(ours)), "none twice"
    assert set(ours) <= set(asked)
