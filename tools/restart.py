"""Restart all front ends, one after the other, without a failed request: new code, new packages, a new environment.

    python -m tools.restart

Each is asked to end by SIGUSR1 (frontend/drain.py), supervisord starts the next one, and once an engine has welcomed
that very process it is the next one's turn. Those that do not run are started first. The engine is left alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from xmlrpc.client import Fault, ServerProxy

from frontend.drain import PATIENT_SECONDS
from ipc.errors import StartError
from ipc.liveness import ProcessLock, is_ours_alone, serving_pids
from ipc.settings import load_settings
from tools.processes import Process, all_processes, one_process
from tools.serve import supervisor

FRONTENDS = "frontend"
START_SECONDS = 60.0
# Beyond what a front end allows itself to answer what it has.
SPARE_SECONDS = 10.0
POLL_SECONDS = 0.2
# So many processes in a row that end before they serve: the next would, too.
MOST_TRIES = 3


class Restart:
    """One rolling restart by way of supervisord. A front end may take `request_seconds` for what it has under way."""

    def __init__(self, server: ServerProxy, run_dir: Path, request_seconds: float) -> None:
        self._server = server
        self._run_dir = run_dir
        self._stop_seconds = PATIENT_SECONDS + request_seconds + SPARE_SECONDS

    def run(self) -> Iterator[tuple[Process, Process, float]]:
        """Restart each; gives the old process, the new one and the seconds as it goes. Raises StartError."""
        frontends = [process for process in all_processes(self._server) if process.group == FRONTENDS]
        # Those that do not run first: the more serve, the less is missed.
        for old in sorted(frontends, key=lambda process: (process.pid != 0, int(process.name))):
            began = time.monotonic()
            if old.pid:
                self._check_others(old)
                self._tell("signalProcess", old, "USR1")
                self._wait_end(old)
            else:
                self._tell("startProcess", old)
            yield old, self._wait_serving(old), time.monotonic() - began

    def _check_others(self, old: Process) -> None:
        serving = serving_pids(self._run_dir)
        if not serving:
            raise StartError("No front end has an engine now, so none is restarted: the server's output says why.")
        if serving == {old.pid}:
            raise StartError(
                f"{old.full_name} is the only front end that serves, so its restart would refuse connections: "
                "set EMBEDLANE_FRONTENDS to 2 or more and start the server anew."
            )

    def _wait_end(self, old: Process) -> None:
        give_up = time.monotonic() + self._stop_seconds
        while self._now(old).pid == old.pid:
            if time.monotonic() > give_up:
                raise StartError(
                    f"{old.full_name} (pid {old.pid}) has not ended in {self._stop_seconds:.0f} s and accepts nothing "
                    f"any more: `kill -9 {old.pid}`, and it is started anew."
                )
            time.sleep(POLL_SECONDS)

    def _wait_serving(self, old: Process) -> Process:
        give_up, tried = time.monotonic() + START_SECONDS, {0}
        while (new := self._now(old)).pid not in serving_pids(self._run_dir) - {old.pid}:
            tried.add(new.pid)
            if new.can_never_start:
                raise self._cannot_start(new, "the last line of the server's output says why")
            if len(tried - {0, old.pid}) > MOST_TRIES:
                raise self._cannot_start(new, "it ends again and again; the server's output says why")
            if time.monotonic() > give_up:
                raise self._cannot_start(new, f"it has not joined the engine in {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        return new

    def _cannot_start(self, process: Process, reason: str) -> StartError:
        # What does not serve must not take connections from those that do.
        self._tell("stopProcess", process)
        return StartError(
            f"{process.full_name} cannot start ({reason}), so it is left stopped and the other front ends are left as "
            "they are: correct that, and restart again."
        )

    def _now(self, process: Process) -> Process:
        return one_process(self._server, process.full_name)

    def _tell(self, method: str, process: Process, *arguments: str) -> None:
        # Meanwhile it may have ended, or have been started, by itself.
        with suppress(Fault):
            getattr(self._server.supervisor, method)(process.full_name, *arguments)


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Hold off other restarts and swaps.

    Raises StartError where one is under way, or there is no run directory that is ours alone.
    """
    try:
        if not is_ours_alone(run_dir):
            raise StartError(
                f"The run directory {run_dir} is no folder of yours with mode 0700, so whoever answers there may be a "
                "stranger: run this as the server's user, or set EMBEDLANE_RUN_DIR."
            )
        lock = ProcessLock.try_acquire(run_dir / "restart.lock")
    except OSError:
        raise no_server(run_dir) from None
    if lock is None:
        raise StartError("Another restart or swap is under way: wait for its end.")
    with lock:
        yield


@contextmanager
def reached(run_dir: Path) -> Iterator[None]:
    """Raises StartError where supervisord does not answer."""
    try:
        yield
    except (OSError, HTTPException, Fault):
        raise no_server(run_dir) from None


def no_server(run_dir: Path) -> StartError:
    """Nothing answers where supervisord should."""
    return StartError(
        f"No server runs in {run_dir}: start it, or give EMBEDLANE_RUN_DIR or EMBEDLANE_PORT as it was started with."
    )


def main() -> int:
    """Restart, a line for each process; gives the exit status."""
    try:
        settings = load_settings()
        run_dir = settings.run_path
        with alone(run_dir), reached(run_dir), supervisor(run_dir) as server:
            for old, new, seconds in Restart(server, run_dir, settings.request_timeout_ms / 1e3).run():
                was = f"pid {old.pid}" if old.pid else "not running"
                print(f"{new.full_name:<12} {was} → pid {new.pid}, {seconds:.1f} s", flush=True)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
