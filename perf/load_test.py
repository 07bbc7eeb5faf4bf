"""The original project's load test with Locust, and beside it the same texts at the same rate, open loop.

python -m perf.load_test        about 2.5 minutes

Locust's is a closed loop, kept for comparison: 50 users who each wait for their answer before they ask again. A server
that stalls is asked less, and one that is too slow for 500 requests a second has all 50 users waiting all the time:
that shows saturation, and not the latency at 500 requests a second.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from perf.load import build_requests
from perf.pacing import make_schedule
from perf.phases import OPEN_CONNECTIONS, Phase, Server
from perf.results import ROOT, make_result, save_result
from perf.stack import Stack
from perf.stats import Percentiles, percentiles
from perf.texts import original_texts

LOCUSTFILE: Final = Path("perf", "locust", "locustfile.py")
USERS: Final = 50
RATE_OF_A_USER: Final = 10
TEXTS: Final = 50_000
WARM_UP_SECONDS: Final = 5.0


class Stats(msgspec.Struct):
    """What Locust reports of one kind of request: times in ms, those of the histogram with two digits."""

    num_requests: int
    num_failures: int
    response_times: dict[str, int]
    total_response_time: float
    max_response_time: float
    start_time: float
    last_request_timestamp: float


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """Locust's side. `waiting` is how many of the users wait for an answer at a time (rate × mean latency)."""

    users: int
    requests: int
    failures: int
    achieved_rate: float
    latency_ms: Percentiles
    waiting: float
    locust_cores: float


class LoadTest(msgspec.Struct, frozen=True):
    """Both loops."""

    closed: Closed
    open: Phase


def run_locust(stack: Stack, seconds: float) -> Closed:
    """The scenario, headless, in a process of its own."""
    report = stack.folder / "locust.json"
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--host", stack.url, "-u", str(USERS), "-r", str(USERS), "-t", f"{round(seconds)}s"]
    command += ["--loglevel", "ERROR", "--stop-timeout", "10", "--json-file", str(report.with_suffix(""))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Its exit status tells of failed requests, which the report counts.
    subprocess.run(command, cwd=ROOT, env=stack.env, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not report.exists():
        raise RuntimeError("Locust has made no report; its output above says why.")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return read_stats(msgspec.json.decode(report.read_bytes(), type=list[Stats])[0], cpu)


def read_stats(stats: Stats, cpu_seconds: float) -> Closed:
    """Locust's figures in our terms."""
    seconds = stats.last_request_timestamp - stats.start_time
    times = np.array([float(time) * 1e6 for time in stats.response_times], np.int64)
    found = percentiles(np.repeat(times, list(stats.response_times.values())))
    assert found is not None
    return Closed(
        users=USERS,
        requests=stats.num_requests,
        failures=stats.num_failures,
        achieved_rate=stats.num_requests / seconds,
        latency_ms=msgspec.structs.replace(found, max=stats.max_response_time),
        waiting=stats.total_response_time / 1e3 / seconds,
        locust_cores=cpu_seconds / seconds,
    )


def run_open(server: Server, seconds: float, rate: float) -> Phase:
    """The same texts to the same path, on a Poisson schedule."""
    target = server.target._replace(path="/v1/embed", field="input_text")
    requests = build_requests(target, original_texts(TEXTS))
    schedule = make_schedule("poisson", rate, WARM_UP_SECONDS + seconds)
    return server.run(requests, OPEN_CONNECTIONS, seconds, warm_up=WARM_UP_SECONDS, schedule=schedule)[0]


def main() -> int:
    """Both, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.load_test", description="The original's load test.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    rate = USERS * RATE_OF_A_USER
    with Stack() as stack:
        server = Server(stack)
        run_open(server, 1.0, rate / 4)
        closed = run_locust(stack, options.seconds)
        done = LoadTest(closed, run_open(server, options.seconds, rate))
    report = done.open.report
    print(
        f"Closed loop (Locust, {USERS} users): {closed.achieved_rate:.0f} requests/s, {closed.failures} failures, "
        f"{_times(closed.latency_ms)}; {closed.waiting:.1f} users waiting, Locust took {closed.locust_cores:.2f} cores."
        "\n"
        f"Open loop (Poisson, {report.offered_rate:.0f} offered): {report.achieved_rate:.0f} requests/s, "
        f"errors {report.errors}, {_times(report.latency_ms)}{''.join(f'; VOID: {why}' for why in report.void)}"
    )
    if not options.no_save:
        command = f"python -m perf.load_test --seconds {options.seconds:g}"
        print(save_result(make_result("load-test", command, {}, done)).relative_to(ROOT))
    return int(bool(closed.failures or report.errors))


def _times(latency: Percentiles | None) -> str:
    return f"p50 {latency.p50:.1f}, p95 {latency.p95:.1f}, p99 {latency.p99:.1f} ms" if latency else "no answer"


if __name__ == "__main__":
    sys.exit(main())
