"""supervisord as a child: where it is killed, what it ran is taken over and ended in order, and it is started again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# For requests that are under way. The service is away meanwhile, so it is far less than an orderly stop has.
GRACE_SECONDS = 0.75
POLL_SECONDS = 0.02


class Supervisord:
    """Runs from the start on; ends when it is told to, when it ends by itself, or (SIGTERM) with this process.

    This process becomes the parent of all that it leaves, and must have no other children.
    """

    def __init__(self, configuration: Path, env: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)]
        self._env = env
        self._is_told = False
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Of the one there is now."""
        return self._process.pid

    def stop(self, *_: object) -> None:
        """Tell it to end; safe in a signal handler."""
        self._is_told = True
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> None:
        """Return once it has ended, or raise subprocess.TimeoutExpired."""
        self._process.wait(timeout)

    def poll(self) -> int | None:
        """None while it runs, else its exit status. One that was killed is started again."""
        status = self._process.poll()
        if status is None or status >= 0 or self._is_told:
            return status
        print(
            "embedlane: supervisord was killed: what it ran is ended, and all starts again.",
            file=sys.stderr,
            flush=True,
        )
        end_orphans()
        return self._go_on(status)

    def _go_on(self, status: int) -> int | None:
        # Asked anew: it may have been told meanwhile.
        if self._is_told:
            return status
        self._process = self._start()
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own, so that Ctrl-C reaches this process alone and the stop is an orderly one.
        # There are no threads here that could hold a lock while it forks.
        return subprocess.Popen(  # noqa: S603 - our own interpreter and configuration
            self._command,
            env=self._env,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509
        )


def end_orphans() -> None:
    """End all children: first front ends, while an engine answers what they have, then engines.

    What has not ended in time, a stopped process above all, is killed.
    """
    _end([pid for pid in _children() if not _is_engine(pid)])
    _end(list(_children()))


def _end(pids: list[int]) -> None:
    give_up = time.monotonic() + GRACE_SECONDS
    _signal(pids, signal.SIGTERM)
    while pids := [pid for pid in pids if not _has_ended(pid)]:
        if time.monotonic() > give_up:
            _signal(pids, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        # Nobody else can have the number: it is our child's until `_has_ended` takes note of its end.
        os.kill(pid, number)


def _has_ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] != 0


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"engine" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _end_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
