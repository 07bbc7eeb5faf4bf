"""CPU time, memory and descriptors of processes, from /proc: what a wall clock cannot tell on a shared machine."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

PROC = Path("/proc")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
ESTABLISHED = "01"
ENGINE_PARTS = ("main", "zmq", "lanes")


class Memory(msgspec.Struct, frozen=True):
    """MiB. `pss` shares each page among those that map it, so the sum over processes is what the machine gives."""

    rss: float
    pss: float


class Usage(msgspec.Struct, frozen=True):
    """CPU seconds in a span of `seconds`, by process, and what others used meanwhile.

    `parts` splits the engine's: "main" (its loop), "zmq" (ZeroMQ's own threads) and "lanes" (model and what is around
    it there). `foreign` is the share of all cores that went to processes outside the measurement, or was stolen.
    """

    seconds: float
    cpu: dict[str, float]
    parts: dict[str, float]
    foreign: float

    def total(self) -> float:
        """CPU seconds of all processes of the measurement, generator included."""
        return sum(self.cpu.values())


class Meter:
    """Reads the CPU clocks of named processes (`name: pid`) and of this one ("generator"), between two calls."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = dict(processes)
        self._before = self._read()
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage:
        """Of the last window that ended."""
        assert self._usage is not None, "this is a bug: no window has ended"
        return self._usage

    def window(self, is_begin: bool) -> None:
        """To be called at both ends of a window."""
        now = self._read()
        if is_begin:
            self._before = now
            return
        span = {name: (now[name] - self._before.get(name, 0)) / 1e9 for name in now}
        cpu = {name: span[name] for name in ("generator", *self._processes)}
        # The machine's clock is coarser than those of processes, so it may even show less.
        foreign = max(0.0, span["machine"] - sum(cpu.values())) / span["wall"] / (os.cpu_count() or 1)
        parts = {part: span[part] for part in ENGINE_PARTS if part in span}
        self._usage = Usage(span["wall"], cpu, parts, foreign)

    def _read(self) -> dict[str, int]:
        clocks = {"wall": time.monotonic_ns(), "machine": machine_cpu_ns(), "generator": time.process_time_ns()}
        for name, pid in self._processes.items():
            threads = thread_cpu_ns(pid)
            clocks[name] = sum(threads.values())
            if name == "engine":
                for thread, used in threads.items():
                    part = _part(pid, thread)
                    clocks[part] = clocks.get(part, 0) + used
        return clocks


def thread_cpu_ns(pid: int) -> dict[int, int]:
    """CPU time of each thread that lives; the main thread has the process's number."""
    clocks = {}
    for task in (PROC / f"{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            clocks[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return clocks


def _part(pid: int, thread: int) -> str:
    if thread == pid:
        return "main"
    return "zmq" if (PROC / f"{pid}/task/{thread}/comm").read_text().startswith("ZMQ") else "lanes"


def machine_cpu_ns() -> int:
    """Time in which any core was not idle, time stolen by the hypervisor included."""
    user, nice, system, _, _, interrupts, soft, steal = map(int, PROC.joinpath("stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + steal) * TICK_NS


def memory(pid: int) -> Memory:
    """Resident memory of a process."""
    text = (PROC / f"{pid}/smaps_rollup").read_text()
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss|Pss): +(\d+) kB$", text, re.MULTILINE)}
    return Memory(found["Rss"], found["Pss"])


def descriptors(pid: int) -> int:
    """How many files, sockets and the like a process has open."""
    return sum(1 for _ in (PROC / f"{pid}/fd").iterdir())


def mappings(pid: int) -> int:
    """How many mappings its address space has."""
    return (PROC / f"{pid}/maps").read_bytes().count(b"\n")


def owners_of_ports(server_port: int, pids: Iterable[int]) -> dict[int, int]:
    """Which process holds the server's end of each loopback connection: client port → pid."""
    inodes = {}
    for line in (PROC / "net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        if fields[3] == ESTABLISHED and local == server_port:
            inodes[f"socket:[{fields[9]}]"] = remote
    owners = {}
    for pid in pids:
        for link in (PROC / f"{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                port = inodes.get(str(link.readlink()))
                if port is not None:
                    owners[port] = pid
    return owners


def descendants(pids: Iterable[int]) -> list[int]:
    """These processes and all below them that run now."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name before it may hold spaces and brackets.
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found, left = [], list(pids)
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found
