"""What can be seen of a running server from outside: its processes, its run directory, its log."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from perf.stack import Stack

T = TypeVar("T")
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 30


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = PATIENCE_SECONDS) -> T:
    """The first truthy value of `condition`. Fails, saying what was waited for, where there is none in time."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"after {seconds} s, still not: {what}"
        time.sleep(POLL_SECONDS)
    return value


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended. Ours are never orphans of this one, so a zombie is as good as gone."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def started_at(pid: int) -> float:
    """When a process started, on CLOCK_BOOTTIME, to 10 ms. (psutil's time is only good to a second.)"""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def boot_clock() -> float:
    """Now, on the clock of `started_at`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def waited_for_cpu(pid: int) -> float:
    """Seconds that a process's main thread was ready to run and had no core to run on."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def server_end(pids: list[int], client_port: int) -> tuple[int, int]:
    """Which of these processes holds the other end of a connection, and its descriptor there."""
    for pid in pids:
        for connection in psutil.Process(pid).net_connections("tcp4"):
            # A listening socket has an empty tuple here.
            if connection.raddr[1:] == (client_port,):
                return pid, connection.fd
    raise LookupError(f"no process has accepted the connection from port {client_port}")


def clients_of(pid: int) -> set[int]:
    """The client ports of the connections that a process has accepted."""
    connections = psutil.Process(pid).net_connections("tcp4")
    return {c.raddr[1] for c in connections if c.status == psutil.CONN_ESTABLISHED}


def unread_bytes(port: int) -> int:
    """What has reached sockets of this local port but was not read; for a listening one, not yet accepted."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(fields[4].partition(":")[2], 16) for fields in lines if fields[1].endswith(f":{port:04X}"))


def slab_mappings(pid: int) -> list[str]:
    """The slab files a process has mapped, one entry a mapping, files that were removed included."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sorted(line[line.index("/") :] for line in lines if "/slab-" in line)


def slab_files(run_dir: Path) -> list[str]:
    """The slab files there are, of those that are mapped."""
    return sorted(str(path) for path in run_dir.glob("slab-*") if path.suffix != ".lock")


def lease_holders(run_dir: Path) -> set[int]:
    """The front ends that hold rows now."""
    words = [np.fromfile(path, np.uint32) for path in run_dir.glob("slab-*.leases")]
    return {int(owner) for table in words for owner in np.unique(table) if owner}


def frontend_ids(run_dir: Path) -> set[int]:
    """The front ends whose lock is held, by their ids."""
    return {int(path.stem.removeprefix("frontend-"), 16) for path in run_dir.glob("frontend-*.lock") if is_held(path)}


def is_held(lock: Path) -> bool:
    """Whether some process holds this lock file."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def is_tidy(stack: Stack, frontends: int = 2) -> bool:
    """Whether the run directory holds the files of the living, each lock held, and nothing else."""
    names = {path.name for path in stack.run_dir.iterdir()}
    singles = {"engine.lock", "engine.sock", "supervisor.sock", "supervisord.pid", "metrics"}
    slabs = {name for name in names if name.startswith("slab-")}
    tables = {name for name in names if name.startswith("limits-")}
    # There once the model was swapped.
    locks = names - singles - slabs - tables - {"model.json"}
    return (
        singles <= names
        and len({name.partition(".")[0] for name in slabs}) == 1
        and len(locks) == frontends == len(frontend_ids(stack.run_dir))
        and is_held(stack.run_dir / "engine.lock")
    )


def log_records(log: Path, message: str) -> list[dict[str, Any]]:
    """The log records that have this message, oldest first."""
    lines = log.read_text(errors="replace").splitlines()
    records = (json.loads(line) for line in lines if line.startswith("{") and line.endswith("}"))
    return [record for record in records if record.get("message") == message]
