"""Faults of processes and of what they need: each function does one, lifts it, and says from when on all is to be well.

The moment is on CLOCK_BOOTTIME: that of a kill, or of the end of what lasted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Iterator

from tests.chaos.faults.world import RECOVERY_SECONDS, World, supervisord_of
from tests.system.processes import boot_clock, wait_for

LONGEST_PAUSE = 1.5


def pause(world: World, most: float = LONGEST_PAUSE) -> None:
    """How long a fault lasts."""
    time.sleep(world.chance.uniform(0.05, most))


def engine_killed(world: World) -> float:
    """kill -9 of the engine."""
    world.kill_engine()
    return boot_clock()


def engine_killed_twice(world: World) -> float:
    """And again while the next one loads its model."""
    old = world.engine()
    world.kill_engine()
    wait_for(lambda: [pid for pid in world.stack.pids("engine") if pid != old], "the next engine")
    pause(world, 1.0)
    world.kill_engine()
    return boot_clock()


def engine_stopped(world: World) -> float:
    """SIGSTOP, and SIGCONT later."""
    with stopped(world.engine()):
        pause(world)
    return boot_clock()


def engine_told_to_stop(world: World) -> float:
    """SIGTERM."""
    os.kill(world.engine(), signal.SIGTERM)
    return boot_clock()


def frontend_killed(world: World) -> float:
    """kill -9 of one front end."""
    world.kill_frontend(world.chance.choice(world.frontends()))
    return boot_clock()


def frontend_stopped(world: World) -> float:
    """SIGSTOP of one front end, and SIGCONT later."""
    with stopped(world.chance.choice(world.frontends())):
        pause(world)
    return boot_clock()


def frontend_told_to_stop(world: World) -> float:
    """SIGTERM of one front end: none of its requests may be lost."""
    os.kill(world.chance.choice(world.frontends()), signal.SIGTERM)
    return boot_clock()


def all_stopped(world: World) -> float:
    """Every process, and each goes on at its own time."""
    pids = [*world.frontends(), world.engine()]
    world.chance.shuffle(pids)
    with contextlib.ExitStack() as ends:
        for pid in pids:
            ends.enter_context(stopped(pid))
        pause(world)
        world.chance.shuffle(pids)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            pause(world, 0.1)
    return boot_clock()


def all_killed(world: World) -> float:
    """kill -9 of engine and front ends, in an order of chance and up to 50 ms apart."""
    began, engine = boot_clock(), world.engine()
    pids = [*world.frontends(), engine]
    world.chance.shuffle(pids)
    for pid in pids:
        if pid == engine:
            world.deaths.append(boot_clock())
            os.kill(pid, signal.SIGKILL)
        else:
            world.kill_frontend(pid)
        time.sleep(world.chance.choice([0, 0.05]))
    killed = boot_clock()
    wait_for(lambda: world.is_anew(pids), "new processes", RECOVERY_SECONDS)
    # With the last front end supervisord closes the listening socket, and whoever was queued there is reset.
    world.outages.append((began, boot_clock()))
    return killed


def supervisord_killed(world: World) -> float:
    """kill -9 of supervisord: `tools.serve` ends what it left and starts another."""
    began, victim = boot_clock(), supervisord_of(world)
    old = [world.engine(), *world.frontends()]
    world.deaths.append(began)
    victim.kill()
    killed = boot_clock()
    wait_for(lambda: world.is_anew(old), "the processes of a new supervisor", RECOVERY_SECONDS)
    world.outages.append((began, boot_clock()))
    return killed


def tmpfs_full(world: World) -> float:
    """No room in the run directory, and maybe a process that has to start meanwhile."""
    ballast = world.stack.run_dir.parent / "ballast"
    with ballast.open("wb") as file:
        _fill(file.fileno())
        victim = world.chance.choice(["nobody", "engine", "frontend"])
        if victim == "engine":
            world.kill_engine()
        elif victim == "frontend":
            world.kill_frontend(world.chance.choice(world.frontends()))
        pause(world)
        # What was let go of meanwhile is taken as well.
        _fill(file.fileno())
        pause(world)
    ballast.unlink()
    return boot_clock()


def no_descriptors(world: World) -> float:
    """A front end that can open nothing, and maybe an engine that it has to connect to meanwhile."""
    pid = world.chance.choice(world.frontends())
    began = boot_clock()
    with without_descriptors(pid):
        if world.chance.random() < 0.5:
            world.kill_engine()
        pause(world)
    world.starved.append((began, boot_clock()))
    return boot_clock()


def no_descriptors_for_the_engine(world: World) -> float:
    """An engine that can open nothing, and maybe a front end that has to connect to it meanwhile."""
    with without_descriptors(world.engine()):
        if world.chance.random() < 0.5:
            world.kill_frontend(world.chance.choice(world.frontends()))
        pause(world)
    return boot_clock()


def redis_killed(world: World) -> float:
    """kill -9 of Redis, which comes back empty."""
    assert world.redis is not None
    world.redis.kill()
    pause(world)
    world.redis.start()
    return boot_clock()


def redis_hung(world: World) -> float:
    """SIGSTOP of Redis, and SIGCONT later."""
    assert world.redis is not None
    assert world.redis.process is not None
    with stopped(world.redis.process.pid):
        pause(world)
    return boot_clock()


def redis_slow(world: World) -> float:
    """Redis on its core for a tenth of each 50 ms, so that some calls are in time and some are not."""
    assert world.redis is not None
    assert world.redis.process is not None
    until = time.monotonic() + world.chance.uniform(0.2, LONGEST_PAUSE)
    while time.monotonic() < until:
        with stopped(world.redis.process.pid):
            time.sleep(0.045)
        time.sleep(0.005)
    return boot_clock()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """No new descriptor for a process for as long as the block lasts."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # A number that is in use may be given anew once it is closed, so the bound is the least number that is free.
    used = {int(path.name) for path in _descriptors(pid)}
    least = next(number for number in range(len(used) + 1) if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _descriptors(pid: int) -> list[os.DirEntry[str]]:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        return list(entries)


def _fill(descriptor: int) -> None:
    """Take all the room there is, in ever smaller pieces."""
    piece = 1 << 24
    while piece >= 1 << 12:
        try:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, piece)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece >>= 1
