"""A whole server of its own, started as a user starts it, for measurements and for the system tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from ipc.bundle import GRAPHS, Precision
from ipc.liveness import serving_pids
from ipc.settings import DEFAULT_MODEL, PREFIX
from tools.prepare import ensure_bundle
from tools.serve import FIRST_ENGINE, supervisor

ROOT = Path(__file__).parent.parent
KEY = "el-key-of-the-tests"
START_SECONDS = 60
STOP_SECONDS = 60
POLL_SECONDS = 0.02


class Stack:
    """`python -m tools.serve` on a free port with a run directory of its own; a context manager.

    Settings are given by their names in lower case: `Stack(frontends=2, max_batch_rows=8)`. `bundle` is a model as
    EMBEDLANE_MODEL takes it. `log` is the file with the output of all processes.
    """

    def __init__(self, bundle: Path | None = None, **settings: object) -> None:
        # The checkout that is started; perf.compare starts others as well.
        self.root = ROOT
        self._folder = tempfile.TemporaryDirectory(prefix="embedlane-")
        self.folder = Path(self._folder.name)
        self.log = self.folder / "output.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # A name that no other run has had: what is left in it was left by this one.
        self.run_dir = Path("/dev/shm") / self.folder.name  # noqa: S108 - made by the server with mode 0700
        given = {
            "port": self.port,
            "run_dir": self.run_dir,
            "data_dir": self.folder / "data",
            "model": bundle or ensure_bundle(DEFAULT_MODEL, ROOT / "data", precision=_graph(settings)),
            "api_key": KEY,
            "frontends": 2,
            # What is measured and tested is the engine, and texts come again and again.
            "cache_mb": 0,
            **settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self.env = {**inherited, **{PREFIX + name.upper(): str(value) for name, value in given.items()}}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Self:
        """Start; with `wait`, return once an embedding went through."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.serve"],
                cwd=self.root,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Return once `/ready` says so and every front end serves. Raises RuntimeError with the log if not in time."""
        give_up = time.monotonic() + seconds
        while self.status("/ready") != 200 or not self._is_complete():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"The server is not ready:\n{self.log.read_text()}")
            time.sleep(POLL_SECONDS)

    def _is_complete(self) -> bool:
        # Other checkouts may have front ends that do not say which process they are.
        return self.root != ROOT or set(self.pids("frontend")) <= serving_pids(self.run_dir)

    def status(self, path: str) -> int | None:
        """HTTP status of a GET without a key; None where there is no answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310 - our own http URL
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def pids(self, program: str) -> list[int]:
        """Process ids of "engine" or "frontend", those that run."""
        with supervisor(self.run_dir) as server:
            processes = server.supervisor.getAllProcessInfo()
        assert isinstance(processes, list)
        return [int(p["pid"]) for p in processes if p["group"] == program and p["pid"]]

    def signal(self, program: str, number: signal.Signals, index: int = 0) -> int:
        """Send a signal to one process of a program; gives its pid."""
        pid = self.pids(program)[index]
        os.kill(pid, number)
        return pid

    @contextlib.contextmanager
    def without_engine(self) -> Iterator[None]:
        """The engine is stopped in order, and started again afterwards."""
        with supervisor(self.run_dir) as server:
            server.supervisor.stopProcess(FIRST_ENGINE)
        try:
            yield
        finally:
            with supervisor(self.run_dir) as server:
                server.supervisor.startProcess(FIRST_ENGINE)

    def stop(self) -> int:
        """Stop as Ctrl-C does; gives the exit status. A second call does nothing."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(STOP_SECONDS)
        finally:
            process.kill()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()


def _graph(settings: Mapping[str, object]) -> Precision:
    """The graph that a server with these settings needs in its bundle."""
    wanted = settings.get("precision")
    return next((precision for precision in GRAPHS if precision == wanted), "fp32")


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
