"""Random faults under load, with every answer compared with its reference vector.

python -m tests.chaos.faults --faults 500 --minutes 20

Ends with status 1 where a promise of docs/reliability.md was not kept; the result is saved all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random

import msgspec
import numpy as np

from perf.results import make_result, save_result
from perf.stats import nearest_rank
from tests.chaos.faults import clients, processes
from tests.chaos.faults.baseline import Baseline, differences, settled
from tests.chaos.faults.judge import unfair
from tests.chaos.faults.world import FRONTENDS, World, start_world
from tests.chaos.load import Load, Outcome
from tests.system.processes import boot_clock, wait_for

Fault = Callable[[World], float]

MOST_RECOVERY_P99 = 3.0
REDIS: tuple[Fault, ...] = (processes.redis_killed, processes.redis_hung, processes.redis_slow)
FAULTS: tuple[Fault, ...] = (
    processes.engine_killed,
    processes.engine_killed_twice,
    processes.engine_stopped,
    processes.engine_told_to_stop,
    processes.frontend_killed,
    processes.frontend_stopped,
    processes.frontend_told_to_stop,
    processes.all_stopped,
    processes.all_killed,
    processes.supervisord_killed,
    processes.tmpfs_full,
    processes.no_descriptors,
    processes.no_descriptors_for_the_engine,
    clients.disconnect_storm,
    clients.slow_writers,
    clients.slow_readers,
    clients.half_open,
    clients.slab_full,
    clients.rogue_with_a_lock,
    clients.rogue_without_a_lock,
    clients.oversize_frame,
    clients.no_zeromq,
    *REDIS,
)
# Right answers of each load before the first fault and after the last.
WARM = 200
# Clients with connections that stay, and others that open one for each request.
LOADS = ({"connections": 12, "pause": 0.3}, {"connections": 4, "pause": 0.3, "fresh": True})


class Injected(msgspec.Struct, frozen=True):
    """A fault: seconds from its end until a new text got its vector, and until all processes were there."""

    fault: str
    answered: float
    whole: float


class Findings(msgspec.Struct, frozen=True):
    """What a run showed. `not_tried` says which faults this machine cannot have, and why; `problems` what must not be.

    Recoveries are seconds until a new text on a new connection got its vector; by fault: count, median, longest.
    """

    seed: int
    minutes: float
    faults: int
    not_tried: dict[str, str]
    requests: int
    outcomes: dict[str, int]
    refused_connections: int
    recovery: dict[str, float]
    whole: dict[str, float]
    by_fault: dict[str, tuple[int, float, float]]
    before: Baseline
    after: Baseline
    problems: list[str]


def run(faults: int, minutes: float, seed: int, *, texts: int | None = None, tell: bool = False) -> Findings:
    """Start a server, do so many faults to it in at least so many minutes, and look at everything."""
    with ExitStack() as ends:
        world = ends.enter_context(start_world(seed, **({} if texts is None else {"texts": texts})))
        chosen, not_tried = available(world)
        quiet_load(world)
        before = settled(world)
        began = boot_clock()
        with ExitStack() as running:
            loads = [
                running.enter_context(Load(world.stack.port, world.bits, seed=seed + n, **kind))  # type: ignore[arg-type]
                for n, kind in enumerate(LOADS)
            ]
            wait_for(lambda: all(load.counts()["right"] >= WARM for load in loads), "answers before the first fault")
            done = list(inject(world, order(chosen, faults, world.chance), minutes, tell))
        seconds = boot_clock() - began
        for client in world.left_open:
            clients.close(client)
        quiet_load(world)
        after = settled(world, before)
        outcomes = [outcome for load in loads for outcome in load.outcomes]
        if problems := find_problems(world, outcomes, before, after):
            print(world.stack.log.read_text(errors="replace")[-40_000:], file=sys.stderr)
        return Findings(
            seed=seed,
            minutes=seconds / 60,
            faults=len(done),
            not_tried=not_tried,
            requests=len(outcomes),
            outcomes=dict(sum((load.counts() for load in loads), Counter[str]())),
            refused_connections=sum(load.refused for load in loads),
            recovery=quantiles([one.answered for one in done]),
            whole=quantiles([one.whole for one in done]),
            by_fault=by_fault(done),
            before=before,
            after=after,
            problems=problems,
        )


def available(world: World) -> tuple[list[Fault], dict[str, str]]:
    """The faults that this machine can have, and why not the others."""
    missing: dict[Fault, str] = {}
    if not world.is_tmpfs_own:
        missing[processes.tmpfs_full] = "only root can mount a tmpfs to fill"
    if world.redis is None:
        missing |= dict.fromkeys(REDIS, "there is no Redis server here")
    return [fault for fault in FAULTS if fault not in missing], {f.__name__: why for f, why in missing.items()}


def order(chosen: list[Fault], count: int, chance: Random) -> Iterator[Fault]:
    """All kinds equally often, each round in another order."""
    left = count
    while left > 0:
        yield from chance.sample(chosen, min(left, len(chosen)))
        left -= len(chosen)


def inject(world: World, faults: Iterator[Fault], minutes: float, tell: bool) -> Iterator[Injected]:
    """One after the other, with pauses of chance that make them last so many minutes at least."""
    sequence = list(faults)
    began = time.monotonic()
    for number, fault in enumerate(sequence):
        since = fault(world)
        answered, whole = world.recover(since)
        if tell:
            print(f"{number + 1:4} {fault.__name__:30} {answered:6.2f} s {whole:6.2f} s", flush=True)
        yield Injected(fault.__name__, answered, whole)
        left = minutes * 60 - (time.monotonic() - began)
        time.sleep(max(0.0, world.chance.uniform(0, 2 * left / (len(sequence) - number))))
    time.sleep(max(0.0, minutes * 60 - (time.monotonic() - began)))


def quiet_load(world: World) -> None:
    """The same load without faults, for what a server has once it was used; every answer must be right."""
    with Load(world.stack.port, world.bits, connections=16, pause=0.05, fresh=True, seed=-1) as load:
        wait_for(lambda: load.counts().total() >= WARM * FRONTENDS, "answers")
    world.wrong += [outcome.verdict for outcome in load.outcomes if outcome.verdict != "right"]


def find_problems(world: World, outcomes: list[Outcome], before: Baseline, after: Baseline) -> list[str]:
    """What must not be, each in a line."""
    found = [f"{outcome.verdict} after {outcome.ended - outcome.began:.1f} s" for outcome in unfair(world, outcomes)]
    found += [f"wrong: {what}" for what in world.wrong]
    return found + [f"not given back: {what}" for what in differences(before, after)]


def quantiles(seconds: list[float]) -> dict[str, float]:
    """By nearest rank."""
    ordered = np.sort(np.array(seconds))
    return {name: nearest_rank(ordered, part) for name, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def by_fault(done: list[Injected]) -> dict[str, tuple[int, float, float]]:
    """Count, median and longest recovery of each kind."""
    found = {}
    for name in sorted({one.fault for one in done}):
        seconds = [one.answered for one in done if one.fault == name]
        found[name] = (len(seconds), float(np.median(seconds)), max(seconds))
    return found


def main() -> int:
    """The long run; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=20.0, help="the least it takes")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    findings = run(given.faults, given.minutes, given.seed, tell=True)
    command = f"python -m tests.chaos.faults --faults {given.faults} --minutes {given.minutes:g} --seed {given.seed}"
    path = save_result(make_result("faults", command, {"frontends": FRONTENDS}, findings))
    print(json.dumps(msgspec.to_builtins(findings), indent=1, ensure_ascii=False))
    print(f"saved {path}")
    p99 = findings.recovery["p99"]
    if p99 > MOST_RECOVERY_P99:
        print(f"recovery p99 is {p99:.2f} s, over {MOST_RECOVERY_P99} s")
    return 1 if findings.problems or p99 > MOST_RECOVERY_P99 else 0


if __name__ == "__main__":
    sys.exit(main())
