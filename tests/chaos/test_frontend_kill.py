"""kill -9 of a front end under load: its own connections end, nobody else notices, what it held comes back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial

import psutil
import pytest

from perf.stack import Stack
from tests.chaos.load import Load
from tests.system.processes import boot_clock, clients_of, frontend_ids, is_tidy, lease_holders, log_records, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

KILLS = 6


def kill_frontend(stack: Stack, victim: int) -> set[int]:
    """Kill it in mid-request; gives the ports of the clients that were connected to it."""
    os.kill(victim, signal.SIGSTOP)  # so that it accepts no connection between the look and the kill
    ports = clients_of(victim)
    os.kill(victim, signal.SIGKILL)
    return ports


def has_successor(stack: Stack, ids: set[int]) -> bool:
    return len(frontend_ids(stack.run_dir) - ids) == 1


def test_killed_under_load(
    stack: Stack, bits: dict[str, bytes], record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(8)  # noqa: S311 - nothing secret here
    engine = stack.pids("engine")
    wait_for(lambda: len(log_records(stack.log, "front end joined")) == 2, "both front ends at the engine")
    descriptors = psutil.Process(engine[0]).num_fds()
    severed: set[int] = set()
    recoveries = []
    with Load(stack.port, bits, connections=24, seed=8, pause=0.05) as load:
        for _ in range(KILLS):
            victim = wait_for(lambda: [p for p in stack.pids("frontend") if clients_of(p)], "a busy front end")[-1]
            ids = frontend_ids(stack.run_dir)
            time.sleep(chance.uniform(0, 0.3))  # the moment of the kill, not a wait for anything
            severed |= kill_frontend(stack, victim)
            killed_at = boot_clock()
            wait_for(partial(has_successor, stack, ids), "a new front end with a lock of its own")
            recoveries.append(boot_clock() - killed_at)
            assert lease_holders(stack.run_dir) <= ids | frontend_ids(stack.run_dir)
    figures = {
        "counts": dict(load.counts()),
        "connections": len(load.ports),
        "severed": len(severed),
        "lock_of_the_next_max": round(max(recoveries), 2),
    }
    record_property("figures", figures)
    print(figures)
    assert set(load.counts()) <= {"right", "lost"}
    assert severed
    # A connection that was being made has no client port here yet; its client sees a reset all the same.
    assert {o.port for o in load.outcomes if o.verdict == "lost"} <= severed
    assert stack.pids("engine") == engine
    wait_for(lambda: is_tidy(stack), "no lock of a dead front end")
    wait_for(lambda: not lease_holders(stack.run_dir), "no row lent to anybody")
    assert len(log_records(stack.log, "front end left")) == KILLS
    wait_for(lambda: psutil.Process(engine[0]).num_fds() == descriptors, "the engine's descriptors as before")
    assert load.refused == 0


def test_rows_and_texts_of_a_dead_front_end_come_back(stack: Stack, bits: dict[str, bytes]) -> None:
    """Front ends that are stopped while they hold rows, and then killed."""
    with Load(stack.port, bits, connections=16, seed=9, pause=0):
        wait_for(lambda: lease_holders(stack.run_dir), "a row that is lent")
        victims = stack.pids("frontend")
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        held = wait_for(lambda: lease_holders(stack.run_dir), "rows lent to front ends that do not read")
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not lease_holders(stack.run_dir) & held, "the rows of the dead")
        wait_for(lambda: stack.status("/ready") == 200, "a new front end that serves")
    left = log_records(stack.log, "front end left")
    assert {int(record["frontend"], 16) for record in left} >= held
    assert sum(record["rows_reclaimed"] for record in left) > 0
    wait_for(lambda: is_tidy(stack), "no lock of a dead front end")


def test_the_new_front_end_serves(stack: Stack, bits: dict[str, bytes]) -> None:
    victim = stack.signal("frontend", signal.SIGKILL)
    new = wait_for(lambda: set(stack.pids("frontend")) - {victim}, "a new front end")
    survivor = next(iter(new))
    wait_for(lambda: len(set(stack.pids("frontend")) - {victim}) == 2, "both front ends")
    newest = next(iter(set(stack.pids("frontend")) - {victim, survivor}))
    with Load(stack.port, bits, connections=16, seed=10, pause=0.02, fresh=True) as load:
        wait_for(lambda: clients_of(newest), "a client of the new front end")
        wait_for(lambda: psutil.Process(newest).cpu_times().user > 0 and load.counts()["right"] > 50, "answers")
    assert set(load.counts()) == {"right"}
