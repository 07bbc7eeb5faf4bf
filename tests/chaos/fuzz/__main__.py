"""Almost valid requests and frames, by the hundred thousand: no crash, no 5xx, no leak, and right vectors afterwards.

python -m tests.chaos.fuzz --requests 100000 --frames 1000000

Ends with status 1 where that does not hold; the result is saved all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import struct
import sys
import time
import urllib.request
from collections import Counter

import msgspec

from perf.results import make_result, save_result
from tests.chaos.faults.__main__ import quiet_load
from tests.chaos.faults.baseline import Baseline, differences, settled
from tests.chaos.faults.world import World, start_world
from tests.chaos.fuzz import frames, requests
from tests.system.processes import log_records

CLIENTS = 32
# Of a damaged request the server may expect more: nobody waits for its answer longer than this.
PATIENCE_SECONDS = 0.5
CONNECT_SECONDS = 30.0
RESET = struct.pack("ii", 1, 0)
# Parts of all frames: read by the parsers alone, handed to a front end's client, sent to a real engine.
PARSED, TO_FRONTEND = 0.6, 0.1
SERVED = re.compile(r'^embedlane_requests_total\{[^}]*status="(\d+)"[^}]*\} ([\d.e+]+)$', re.MULTILINE)
DOCUMENTED = {"503"}


class Findings(msgspec.Struct, frozen=True):
    """What a run showed: `statuses` as clients saw them ("silent": no answer soon), `served` as the server counted."""

    seed: int
    requests: int
    frames: int
    seconds: float
    statuses: dict[str, int]
    served: dict[str, int]
    frames_refused: int
    before: Baseline
    after: Baseline
    problems: list[str]


def run(count: int, frame_count: int, seed: int, texts: int = 300, *, tell: bool = False) -> Findings:
    """Both kinds, against one server, of which everything is compared before and after."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret here
    with start_world(seed, texts=texts) as world:
        quiet_load(world)
        before, pids, began = settled(world), (world.engine(), world.frontends()), time.monotonic()
        statuses = asyncio.run(fuzz_http(world.stack.port, count, chance))
        if tell:
            print(f"{count} requests after {time.monotonic() - began:.0f} s: {dict(statuses)}", flush=True)
        refused = fuzz_ipc(world, frame_count, chance, tell)
        seconds = time.monotonic() - began
        served = statuses_served(world)
        quiet_load(world)
        after = settled(world, before)
        problems = [*find_problems(world, served, pids), *differences(before, after)]
        if problems:
            print(world.stack.log.read_text(errors="replace")[-40_000:], file=sys.stderr)
        return Findings(seed, count, frame_count, seconds, dict(statuses), served, refused, before, after, problems)


async def fuzz_http(port: int, count: int, chance: random.Random) -> Counter[str]:
    """Each request on a connection of its own; gives how many ended how."""
    statuses: Counter[str] = Counter()
    left = iter(range(count))

    async def client(own: random.Random) -> None:
        for _ in left:
            statuses[await ask(port, requests.make(own))] += 1

    async with asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(client(random.Random(chance.random())))  # noqa: S311
    return statuses


async def ask(port: int, request: bytes) -> str:
    """The status of the first answer, "closed" or "silent"."""
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    # No connection is left behind to wait for its port's end.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            line = await reader.readline()
        return line.split(b" ")[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
    except ConnectionError:
        return "closed"
    except TimeoutError:
        return "silent"
    finally:
        writer.transport.abort()


def fuzz_ipc(world: World, count: int, chance: random.Random, tell: bool) -> int:
    """Share the frames out; gives how many the parsers refused."""
    parsed, to_frontend = int(PARSED * count), int(TO_FRONTEND * count)
    refused = frames.parse(parsed, chance)
    asyncio.run(frames.to_a_frontend(to_frontend, chance))
    for done in frames.to_an_engine(world.stack.run_dir, count - parsed - to_frontend, chance):
        if tell:
            print(f"{done} frames to the engine", flush=True)
    return refused


def statuses_served(world: World) -> dict[str, int]:
    """What the server itself has counted, whether or not a client waited for it."""
    # A scrape is up to a second old, and what it reads as well.
    time.sleep(2.5)
    with urllib.request.urlopen(world.stack.url + "/metrics", timeout=30) as answer:  # noqa: S310 - our own http URL
        found = SERVED.findall(answer.read().decode())
    counts: Counter[str] = Counter()
    for status, number in found:
        counts[status] += int(float(number))
    return dict(sorted(counts.items()))


def find_problems(world: World, served: dict[str, int], pids: tuple[int, list[int]]) -> list[str]:
    """What must not be, each in a line."""
    found = [f"{number} answers with {s}" for s, number in served.items() if s >= "500" and s not in DOCUMENTED]
    found += [f"wrong: {what}" for what in world.wrong]
    if pids != (world.engine(), world.frontends()):
        found.append("a process has died")
    errors = log_records(world.stack.log, "unexpected error")
    return found + [str(record.get("exc_info", ""))[-500:] for record in errors[:5]]


def main() -> int:
    """The long run; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    findings = run(given.requests, given.frames, given.seed, tell=True)
    command = f"python -m tests.chaos.fuzz --requests {given.requests} --frames {given.frames} --seed {given.seed}"
    path = save_result(make_result("fuzz", command, {}, findings))
    print(json.dumps(msgspec.to_builtins(findings), indent=1, ensure_ascii=False))
    print(f"saved {path}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main())
