"""What supervisord says of the processes below it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from xmlrpc.client import ServerProxy

import msgspec

from ipc.errors import StartError


class Process(msgspec.Struct, frozen=True):
    """One process; `pid` is 0 where it does not run."""

    group: str
    name: str
    pid: int
    statename: str
    exitstatus: int

    @property
    def full_name(self) -> str:
        """As supervisord takes it."""
        return f"{self.group}:{self.name}"

    @property
    def can_never_start(self) -> bool:
        """Whether it has ended with exit status 3, after one clear line of its own."""
        return self.statename == "EXITED" and self.exitstatus == StartError.EXIT_CODE


def all_processes(server: ServerProxy) -> list[Process]:
    """Every process, by groups: "engine" and "frontend"."""
    return msgspec.convert(server.supervisor.getAllProcessInfo(), list[Process])


def one_process(server: ServerProxy, name: str) -> Process:
    """The process with this full name."""
    return msgspec.convert(server.supervisor.getProcessInfo(name), Process)


def cannot_go_on(processes: Iterable[Process]) -> bool:
    """Whether a group has nothing that runs, and something that can never start.

    One that cannot start while others of its group run is none of theirs: a restart or a swap went wrong, and whoever
    asked for it is told.
    """
    by_group = groupby(sorted(processes, key=attrgetter("group")), key=attrgetter("group"))
    return any(_has_failed(list(members)) for _, members in by_group)


def _has_failed(group: list[Process]) -> bool:
    return any(p.can_never_start for p in group) and not any(p.pid for p in group)
