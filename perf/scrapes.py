"""What scrapes of `/metrics` do to requests: p99 with them over p99 without, at half of what the server can do.

python -m perf.scrapes          about 8 minutes

Rounds with and without scrapes take turns, and each has the same requests on the same schedule (Poisson). Prometheus
asks every five seconds, this ten times a second; a front end reads anew once a second at most. Then eight front ends
are killed 25 times, and scraped.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import uvloop

from perf.http import Target
from perf.load import Generator, build_requests
from perf.pacing import make_schedule
from perf.phases import Server
from perf.record import Report, Run
from perf.restarts import Restarted, measure_restarts
from perf.results import make_result, save_result
from perf.stack import Stack
from perf.stats import Nanoseconds, Percentiles, Spread, percentiles, spread
from perf.texts import exact_texts

SCRAPES: Final = 1000
MOST: Final = 1.05
RESTARTS: Final = 200
MOST_MS: Final = 50.0
TOKENS: Final = 16
TEXTS: Final = 20_000
SATURATED: Final = 64
CONNECTIONS: Final = 256
# So many that each front end has some of them.
SCRAPERS: Final = 8
WARM_UP_SECONDS: Final = 1.0


class Round(msgspec.Struct, frozen=True):
    """A quiet round, or one with scrapes. `foreign` is the share of all cores that others had."""

    report: Report
    scrapes: Report | None
    foreign: float


class Measured(msgspec.Struct, frozen=True):
    """A round with all its times."""

    run: Run
    scraped: Run | None
    foreign: float

    @property
    def round(self) -> Round:
        """What is kept of it."""
        return Round(self.run.report, self.scraped.report if self.scraped else None, self.foreign)


class Scrapes(msgspec.Struct, frozen=True, kw_only=True):
    """`p99` and `p50` are of each round with scrapes over the mean of the two quiet ones beside it; `pooled` is p99
    of all rounds' requests together. `scrape_ms` are the scrapes' own times, from when each was to leave.
    """

    capacity: float
    rate: float
    rounds: list[Round]
    p99: Spread
    p50: Spread
    pooled: float
    scrapes: int
    scrape_ms: Percentiles
    errors: dict[str, int]
    void: list[str]


class Done(msgspec.Struct, frozen=True):
    """Both parts."""

    load: Scrapes
    restarted: Restarted


async def _round(server: Server, requests: list[bytes], rate: float, seconds: float, scrapes: int) -> Measured:
    schedule = make_schedule("poisson", rate, WARM_UP_SECONDS + seconds)
    times = WARM_UP_SECONDS * 1e9 + np.arange(scrapes) * (seconds * 1e9 / max(1, scrapes))
    meter = server.meter()
    async with (
        Generator(server.target, CONNECTIONS, meter.window) as load,
        Generator(server.target, SCRAPERS) as scraper,
    ):
        asking = load.open(requests, schedule, warm_up=WARM_UP_SECONDS)
        if not scrapes:
            return Measured(await asking, None, meter.usage.foreign)
        scraping = scraper.open([scrape_request(server.target)], times.astype(np.int64), warm_up=WARM_UP_SECONDS)
        run, scraped = await asyncio.gather(asking, scraping)
        return Measured(run, scraped, meter.usage.foreign)


def scrape_request(target: Target) -> bytes:
    """As Prometheus asks, with a key for a server that wants one."""
    return (
        f"GET /metrics HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nAuthorization: Bearer {target.key}\r\n\r\n"
    ).encode()


def measure(server: Server, rounds: int, seconds: float, scrapes: int, say: Callable[[str], None]) -> Scrapes:
    """So many rounds with scrapes, and one more without, of so many seconds each."""
    requests = build_requests(server.target, exact_texts(TOKENS, TEXTS, seed=2))
    server.closed(requests, SATURATED, WARM_UP_SECONDS)
    capacity = server.closed(requests, SATURATED, seconds).report.achieved_rate
    say(f"{capacity:.0f} requests/s at most")
    found = []
    for number in range(2 * rounds + 1):
        each = scrapes // rounds if number % 2 else 0
        found.append(uvloop.run(_round(server, requests, capacity / 2, seconds, each)))
        latency = found[-1].run.report.latency_ms
        say(f"{each} scrapes: " + (f"p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms" if latency else "no answer"))
    return judge(found, capacity)


def judge(found: Sequence[Measured], capacity: float) -> Scrapes:
    """Ratios of rounds that took turns, the first and the last without scrapes."""
    quiet, scraped = found[::2], [each.scraped for each in found if each.scraped is not None]
    own = percentiles(np.concatenate([run.latencies for run in scraped]))
    assert own is not None, "scrapes were answered"
    errors: dict[str, int] = {}
    reports = [*(each.run.report for each in found), *(run.report for run in scraped)]
    for report in reports:
        for status, count in report.errors.items():
            errors[status] = errors.get(status, 0) + count
    return Scrapes(
        capacity=capacity,
        rate=capacity / 2,
        rounds=[each.round for each in found],
        p99=spread(_ratios(found, lambda times: times.p99)),
        p50=spread(_ratios(found, lambda times: times.p50)),
        pooled=_pooled(found[1::2]) / _pooled(quiet),
        scrapes=sum(run.report.requests for run in scraped),
        scrape_ms=own,
        errors={status: count for status, count in errors.items() if count},
        void=sorted({reason for report in reports for reason in report.void}),
    )


def _ratios(found: Sequence[Measured], of: Callable[[Percentiles], float]) -> list[float]:
    values = [of(_times(each.run.latencies)) for each in found]
    return [values[n] / (values[n - 1] + values[n + 1]) * 2 for n in range(1, len(values), 2)]


def _pooled(found: Sequence[Measured]) -> float:
    return _times(np.concatenate([each.run.latencies for each in found])).p99


def _times(latencies: Nanoseconds) -> Percentiles:
    times = percentiles(latencies)
    assert times is not None, "requests were answered"
    return times


def main() -> int:
    """Measure, print, save; exit status 1 where the target is missed or a request failed."""
    parser = argparse.ArgumentParser(prog="python -m perf.scrapes", description="What scrapes do to p99.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with scrapes")
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--scrapes", type=int, default=SCRAPES, help="in all rounds together")
    parser.add_argument("--restarts", type=int, default=RESTARTS, help="front ends that are killed in the last part")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, in lower case")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    settings = dict(given.split("=", 1) for given in options.set)
    with Stack(**settings) as stack:
        load = measure(Server(stack), options.rounds, options.seconds, options.scrapes, print)
    restarted = measure_restarts(options.restarts, print)
    is_met = load.p99.median < MOST and not load.errors and not load.void
    print(
        f"{_verdict(is_met)} p99 with scrapes over p99 without: {load.p99.median:.3f} "
        f"({load.p99.min:.3f} to {load.p99.max:.3f}; {load.pooled:.3f} of all together), wanted below {MOST}\n"
        f"       {load.scrapes} scrapes: {_show(load.scrape_ms)}; errors {load.errors}"
        + "".join(f"; VOID: {why}" for why in load.void)
    )
    is_fast = restarted.scrape_ms.max < MOST_MS
    print(
        f"{_verdict(is_fast)} {restarted.frontends} front ends after {restarted.restarts} were killed: "
        f"{_show(restarted.scrape_ms)}, {restarted.files} files, {restarted.series} series, wanted below {MOST_MS:g} ms"
    )
    if not options.no_save:
        given = "".join(f" --set {name}={value}" for name, value in settings.items())
        command = f"python -m perf.scrapes --rounds {options.rounds} --seconds {options.seconds:g}"
        command += f" --scrapes {options.scrapes} --restarts {options.restarts}{given}"
        print(save_result(make_result("scrapes", command, settings, Done(load, restarted))).name)
    return int(not (is_met and is_fast))


def _verdict(is_met: bool) -> str:
    return "met   " if is_met else "MISSED"


def _show(times: Percentiles) -> str:
    return f"p50 {times.p50:.1f}, p99 {times.p99:.1f}, max {times.max:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
