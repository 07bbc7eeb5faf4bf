"""kill -9 of the engine under load, again and again: right vectors or a clean 503, back soon, nothing left behind."""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections.abc import Callable

import psutil
import pytest

from perf.stack import Stack
from tests.chaos.load import Load, Outcome
from tests.system.processes import boot_clock, is_tidy, lease_holders, slab_files, slab_mappings, started_at, wait_for
from tests.system.processes import waited_for_cpu as cpu_wait

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

KILLS = 20
BACK_WITHIN_SECONDS = 3.0


def epoch(stack: Stack) -> str:
    """The name of the slab there is now, or nothing."""
    return "".join(path.stem for path in stack.run_dir.glob("slab-*.rows"))


def kill_and_recover(stack: Stack, load: Load) -> tuple[float, float]:
    """Kill the engine, wait for a vector from the next one; gives when it was killed, and the next one's seconds
    from its start to that vector, less those in which it was ready to run and other processes had the cores."""
    old_epoch = epoch(stack)
    old = stack.signal("engine", signal.SIGKILL)
    killed_at = boot_clock()
    new = wait_for(lambda: [pid for pid in stack.pids("engine") if pid != old], "a new engine process")[0]
    wait_for(lambda: epoch(stack) not in {old_epoch, ""}, "a new slab")
    ready_at = boot_clock()
    first = wait_for(lambda: load.first_right(ready_at), "a vector from the new engine")
    return killed_at, first.ended - started_at(new) - cpu_wait(new)


def descriptors(stack: Stack) -> list[int]:
    """How many each front end has open."""
    return [psutil.Process(pid).num_fds() for pid in stack.pids("frontend")]


def is_as_before(stack: Stack, before: list[int]) -> Callable[[], bool]:
    """Whether no descriptor, mapping or row is left of what the load and the dead engines had."""

    def check() -> bool:
        processes = stack.pids("frontend") + stack.pids("engine")
        return (
            descriptors(stack) == before
            and all(slab_mappings(pid) == slab_files(stack.run_dir) for pid in processes)
            and not lease_holders(stack.run_dir)
        )

    return check


def unfair(outcomes: list[Outcome], kills: list[float]) -> list[Outcome]:
    """Answers that nobody should get: "poison" is only for requests that were open at three deaths."""
    fair = {"right", "503"}
    return [o for o in outcomes if o.verdict not in fair and not (o.verdict == "poison" and o.spans(kills) >= 3)]


def test_killed_twenty_times_under_load(
    stack: Stack, bits: dict[str, bytes], record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(20)  # noqa: S311 - nothing secret here
    with Load(stack.port, bits, connections=4) as warm_up:
        wait_for(lambda: warm_up.counts()["right"] >= 8, "right answers before the first death")
    before = descriptors(stack)
    frontends = stack.pids("frontend")
    kills, recoveries = [], []
    with Load(stack.port, bits, connections=32, seed=7) as load:
        wait_for(lambda: load.counts()["right"] >= 64, "right answers before the first death")
        for _ in range(KILLS):
            time.sleep(chance.uniform(0, 0.5))  # the moment of the kill, not a wait for anything
            killed_at, seconds = kill_and_recover(stack, load)
            kills.append(killed_at)
            recoveries.append(seconds)
    figures = {
        "counts": dict(load.counts()),
        "over_a_death": sum(o.spans(kills) > 0 for o in load.outcomes),
        "recovery_p50": round(statistics.median(recoveries), 2),
        "recovery_max": round(max(recoveries), 2),
        "longest_request": round(max(o.ended - o.began for o in load.outcomes), 2),
    }
    record_property("figures", figures)
    print(figures)
    assert unfair(load.outcomes, kills) == []
    assert max(recoveries) <= BACK_WITHIN_SECONDS
    assert stack.pids("frontend") == frontends
    assert load.refused == 0
    wait_for(lambda: is_tidy(stack), f"only files of the living in {sorted(p.name for p in stack.run_dir.iterdir())}")
    wait_for(is_as_before(stack, before), "descriptors, mappings and rows as before")
