"""Engine, front ends and supervisor killed together and in any order: afterwards all is well."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial

import psutil
import pytest

from ipc.errors import StartError
from perf.stack import Stack
from tests.chaos.load import Load
from tests.system.processes import family, frontend_ids, is_gone, is_tidy, lease_holders, log_records, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

ROUNDS = 3


def kill_in_order(stack: Stack, chance: random.Random) -> list[int]:
    """kill -9 every process of ours, in an order of chance and up to 50 ms apart."""
    victims = stack.pids("engine") + stack.pids("frontend")
    chance.shuffle(victims)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
        time.sleep(chance.choice([0, 0.05]))  # the moment of the next kill, not a wait for anything
    return victims


def all_new(stack: Stack, old: list[int]) -> bool:
    pids = stack.pids("engine") + stack.pids("frontend")
    return len(pids) == 3 and not set(pids) & set(old)


def test_all_killed_at_once_under_load(stack: Stack, bits: dict[str, bytes]) -> None:
    chance = random.Random(9)  # noqa: S311 - nothing secret here
    # The clients see resets, and while there is no front end their connections wait in the listening socket.
    with Load(stack.port, bits, connections=16, seed=11) as load:
        for _ in range(ROUNDS):
            wait_for(lambda: lease_holders(stack.run_dir) or load.counts()["right"], "vectors on their way")
            old = kill_in_order(stack, chance)
            wait_for(partial(all_new, stack, old), "new processes")
            wait_for(lambda: stack.status("/ready") == 200, "ready again")
        answered = load.counts()["right"]
        wait_for(lambda: load.counts()["right"] > answered + 50, "right answers")
    assert set(load.counts()) <= {"right", "lost", "503"}
    wait_for(lambda: is_tidy(stack), "only files of the living")
    wait_for(lambda: not lease_holders(stack.run_dir), "no row lent to anybody")


def test_a_stopped_idle_front_end_harms_nobody(stack: Stack, bits: dict[str, bytes]) -> None:
    """It is alive, so its lock, its files and its place are its own until it goes on."""
    ids = frontend_ids(stack.run_dir)
    stopped = psutil.Process(stack.pids("frontend")[0])
    # Before the first connection: one that it has accepted would wait for it.
    stopped.suspend()
    with Load(stack.port, bits, connections=8, seed=12) as load:
        wait_for(lambda: load.counts()["right"] > 100, "answers of the other front end")
        assert frontend_ids(stack.run_dir) == ids
        stopped.resume()
    assert set(load.counts()) == {"right"}
    assert not log_records(stack.log, "front end left")
    wait_for(lambda: is_tidy(stack), "the files of both front ends")


def test_supervisor_killed_under_load(stack: Stack, bits: dict[str, bytes]) -> None:
    """What it ran is ended, requests first, and all starts again without a hand; the end is as orderly as ever."""
    old = family(stack.process.pid)[1:] if stack.process else []
    supervisor = next(p for p in old if "supervisor.supervisord" in p.cmdline())
    with Load(stack.port, bits, connections=8, seed=13) as load:
        wait_for(lambda: load.counts()["right"] > 20, "right answers")
        supervisor.kill()
        wait_for(lambda: all(is_gone(process) for process in old), "the end of all that it ran")
        answered = load.counts()["right"]
        wait_for(lambda: load.counts()["right"] > answered + 50, "right answers")
    # A connection that nobody has accepted yet is lost with the listening socket, and no other.
    assert set(load.counts()) <= {"right", "lost"}
    wait_for(lambda: is_tidy(stack), "only files of the living")
    assert stack.stop() == 0
    assert not stack.run_dir.exists()


def test_serve_killed(stack: Stack, bits: dict[str, bytes]) -> None:
    """Its supervisord ends in order with it, and what may be left is in nobody's way."""
    assert stack.process is not None
    processes = family(stack.process.pid)
    stack.process.kill()
    stack.process.wait()
    wait_for(lambda: all(is_gone(process) for process in processes), "the end of all that it ran")
    stack.start()
    with Load(stack.port, bits, connections=4, seed=13) as load:
        wait_for(lambda: load.counts()["right"] > 20, "right answers")
    assert set(load.counts()) == {"right"}
    assert is_tidy(stack)


def test_serve_and_supervisor_killed_at_once(stack: Stack, bits: dict[str, bytes]) -> None:
    """Nobody is left to end the others: a new start says so, and once they have ended it finds no trace of them."""
    assert stack.process is not None
    processes = family(stack.process.pid)
    supervisor = next(p for p in processes if "supervisor.supervisord" in p.cmdline())
    orphans = supervisor.children()
    assert len(orphans) == 3
    try:
        # Stopped first, so that neither can act on the other's end.
        supervisor.suspend()
        stack.process.kill()
        stack.process.wait()
        supervisor.kill()
        # The orphans have the port, and say so by having it: a second server beside them would be worse than none.
        stack.start(wait=False)
        assert stack.process is not None
        assert stack.process.wait(30) == StartError.EXIT_CODE
        assert "cannot be listened on" in stack.log.read_text()
    finally:
        for orphan in orphans:
            orphan.kill()
    wait_for(lambda: all(is_gone(orphan) for orphan in orphans), "the end of the orphans")
    stack.stop()
    with Load(stack.start().port, bits, connections=4, seed=13) as load:
        wait_for(lambda: load.counts()["right"] > 20, "right answers")
    assert set(load.counts()) == {"right"}
    assert is_tidy(stack)
