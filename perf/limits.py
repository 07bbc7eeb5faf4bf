"""What a decision of the limiter costs, in both stores, alone and while four processes ask for the same key.

On a schedule a process sleeps between decisions and its caches are cold; back to back they are hot.

python -m perf.limits
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import uvloop

from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.quota import Quota
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from perf.redis_server import RedisServer
from perf.results import ROOT, make_result, save_result
from perf.stats import nearest_rank

PROCESSES: Final = 4
# Of each process: together twice what the stack serves on two cores.
RATE: Final = 500
TICK_SECONDS: Final = 0.001
TARGETS_US: Final = {"embedded": 30.0, "redis": 300.0}
# All three rules are counted, and none refuses.
QUOTA: Final = Quota(rpm=1 << 40, rph=1 << 40, tpm=1 << 40)
TOKENS: Final = 16


class Samples(msgspec.Struct):
    """Of one process: ns of each admit, the longest stall of the loop (s), and calls without answer."""

    times: list[int]
    stall: float
    unanswered: int


class Cost(msgspec.Struct, frozen=True):
    """Of all processes of a scenario."""

    p50_us: float
    p99_us: float
    stall_ms: float
    decisions: int
    unanswered: int


async def ask(store: EmbeddedWindows | RedisWindows | None, rate: float, seconds: float) -> Samples:
    """Admit on a schedule, or back to back where the rate is 0, and watch the loop; None: only watch."""
    samples = Samples([], 0.0, 0)
    watching = asyncio.create_task(_watch(samples))
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        due = due + 1 / rate if rate else time.perf_counter()
        if store is None:
            continue
        began = time.perf_counter_ns()
        verdict = await store.admit("key", QUOTA, TOKENS)
        samples.times.append(time.perf_counter_ns() - began)
        samples.unanswered += verdict is None
    watching.cancel()
    return samples


async def _watch(samples: Samples) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.perf_counter()
        samples.stall = max(samples.stall, now - last - TICK_SECONDS)
        last = now


async def work(folder: Path, url: str, rate: float, seconds: float) -> Samples:
    """One process of a scenario; without a URL with the embedded store, without a folder with none at all."""
    if url:
        link = RedisLink(url)
        samples = await ask(RedisWindows(link), rate, seconds)
        await link.close()
        return samples
    if folder == Path():
        return await ask(None, rate, seconds)
    store = EmbeddedWindows(folder)
    samples = await ask(store, rate, seconds)
    store.close()
    return samples


def measure(folder: Path, url: str, processes: int, seconds: float, rate: float = RATE) -> Cost:
    """A scenario: so many processes at once."""
    worker = ["--worker", str(folder), url, str(rate)]
    command = [sys.executable, "-m", "perf.limits", "--seconds", str(seconds), *worker]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)  # noqa: S603
        for _ in range(processes)
    ]
    found = [msgspec.json.decode(process.communicate()[0], type=Samples) for process in started]
    times = np.sort(np.concatenate([samples.times for samples in found])) / 1e3
    return Cost(
        p50_us=nearest_rank(times, 0.5) if len(times) else 0.0,
        p99_us=nearest_rank(times, 0.99) if len(times) else 0.0,
        stall_ms=max(samples.stall for samples in found) * 1e3,
        decisions=len(times),
        unanswered=sum(samples.unanswered for samples in found),
    )


def measure_all(seconds: float) -> dict[str, Cost]:
    """Every scenario, and for comparison the stalls of loops that ask nothing."""
    found = {}
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        for name, url in (("no store", ""), ("embedded", ""), ("redis", server.url)):
            for processes, rate in ((1, RATE), (PROCESSES, RATE), *([] if name == "no store" else [(1, 0)])):
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
                label = f"{name}, {processes} process{'es' if processes > 1 else ''}{'' if rate else ', back to back'}"
                cost = measure(Path(folder if name == "embedded" else "."), url, processes, seconds, rate)
                print(
                    f"{cost.p50_us:7.1f} us p50 {cost.p99_us:8.1f} us p99 {cost.stall_ms:6.1f} ms stall  {label}",
                    flush=True,
                )
                found[label] = cost
    return found


def _verdict(found: dict[str, Cost]) -> str:
    lines = []
    for name, target in TARGETS_US.items():
        p50 = found[f"{name}, 1 process"].p50_us
        lines.append(f"{'PASS' if p50 <= target else 'MISSED'}: {name}: {p50:.1f} us, target {target:g}")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.limits", description="What a decision of the limiter costs.")
    parser.add_argument("--seconds", type=float, default=5, help="for each scenario")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "URL", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, url, rate = options.worker
        print(msgspec.json.encode(uvloop.run(work(Path(folder), url, float(rate), options.seconds))).decode())
        return 0
    found = measure_all(options.seconds)
    print(_verdict(found))
    if not options.no_save:
        command = f"python -m perf.limits --seconds {options.seconds:g}"
        settings = {"processes": PROCESSES, "rate": RATE}
        print(save_result(make_result("limits", command, settings, found)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
