"""What a server at rest holds: compared before and after, it tells what was not given back."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import Any

import msgspec
import psutil

from perf.procfs import memory
from tests.chaos.faults.world import World
from tests.system.processes import lease_holders, slab_files, slab_mappings, wait_for

SETTLED_SECONDS = 30.0
# Of one process: its allocators keep what the load once took.
MORE_MIB = 48.0


class Baseline(msgspec.Struct, frozen=True):
    """The most of any process of a kind; files by name, with their numbers left out; resident memory in MiB."""

    descriptors: dict[str, int]
    mappings: dict[str, int]
    files: dict[str, int]
    metrics_files: int
    lent_rows: int
    memory: dict[str, float]


def look(world: World) -> Baseline:
    """As it is now."""
    kinds = processes(world)
    names = [path.name for path in world.stack.run_dir.iterdir()]
    return Baseline(
        descriptors={kind: max(descriptors(world, pid) for pid in pids) for kind, pids in kinds.items()},
        mappings={kind: max(len(slab_mappings(pid)) for pid in pids) for kind, pids in kinds.items()},
        files=dict(Counter(re.sub(r"[0-9a-f]{8,}", "*", name) for name in names)),
        metrics_files=len(list((world.stack.run_dir / "metrics").iterdir())),
        lent_rows=len(lease_holders(world.stack.run_dir)),
        memory={kind: max(memory(pid).rss for pid in pids) for kind, pids in kinds.items()},
    )


def descriptors(world: World, pid: int) -> int:
    """What a process has open, but for its connections to Redis: as many as there ever were commands at once."""
    process = psutil.Process(pid)
    redis = world.redis.port if world.redis else None
    # A listening socket has an empty tuple there.
    return process.num_fds() - sum(c.raddr[1:] == (redis,) for c in process.net_connections("tcp4"))


def processes(world: World) -> dict[str, list[int]]:
    """Pids by kind."""
    assert world.stack.process is not None
    serve = world.stack.process.pid
    supervisord = [child.pid for child in psutil.Process(serve).children()]
    return {
        "engine": world.stack.pids("engine"),
        "frontend": world.stack.pids("frontend"),
        "supervisord": supervisord,
        "serve": [serve],
    }


def settled(world: World, before: Baseline | None = None) -> Baseline:
    """Once nothing is under way, and all is as `before`; gives what there is then, whatever it is."""
    kinds = processes(world)
    files = slab_files(world.stack.run_dir)

    def is_settled() -> bool:
        return (
            not lease_holders(world.stack.run_dir)
            and all(slab_mappings(pid) == files for pid in kinds["engine"] + kinds["frontend"])
            and (before is None or not differences(before, look(world)))
        )

    # Where it does not come to that, the caller tells what differs.
    with contextlib.suppress(AssertionError):
        wait_for(is_settled, "as before", SETTLED_SECONDS)
    return look(world)


def differences(before: Baseline, after: Baseline) -> list[str]:
    """What there is more of than there was, or less of the files; empty where all came back."""
    found = []
    for kind, count in after.descriptors.items():
        if count > before.descriptors[kind]:
            found.append(f"descriptors of {kind}: {before.descriptors[kind]} → {count}")
    for kind, count in after.mappings.items():
        if count != before.mappings[kind]:
            found.append(f"slab mappings of {kind}: {before.mappings[kind]} → {count}")
    for kind, mib in after.memory.items():
        if mib > before.memory[kind] + MORE_MIB:
            found.append(f"MiB of {kind}: {before.memory[kind]:.0f} → {mib:.0f}")
    plain: list[tuple[str, Any, Any]] = [
        ("files", before.files, after.files),
        ("metrics files", before.metrics_files, after.metrics_files),
        ("front ends that hold rows", before.lent_rows, after.lent_rows),
    ]
    return found + [f"{name}: {old} → {new}" for name, old, new in plain if old != new]
