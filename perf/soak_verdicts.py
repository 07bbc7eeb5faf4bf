"""What a soak found, and which of its targets that meets."""

from __future__ import annotations

from typing import Final

import msgspec

from perf.record import Report
from perf.stats import Percentiles, Spread
from perf.tables import LEAST_ACHIEVED
from perf.trend import Trend, find_trend
from perf.watch import GENERATOR, Tracks

# The first of so many parts is warm-up for all but latency, and the last is compared with it: ten minutes of an hour.
PARTS: Final = 6
# How far p99 of the last part may be from that of the first, as a part of it.
MOST_P99: Final = 0.10
# Growth that is none: MiB, and what comes and goes with a scrape or a heap.
FLOORS: Final = {"rss": 1.0, "descriptors": 2.0, "mappings": 8.0, "files": 0.0}


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the run: its right answers, their latency, the generator's lag, CPU µs a request, and the share of all
    cores that others had. Where p99 changes, the last two tell whether the server did or the machine.
    """

    answers: int
    latency_ms: Percentiles | None
    lag_p99_ms: float
    cpu_us: dict[str, float]
    foreign: float


class Verdict(msgspec.Struct, frozen=True):
    """A target: what is wanted, what there was."""

    target: str
    wanted: str
    measured: str
    is_met: bool

    @property
    def line(self) -> str:
        """For people."""
        return f"{'met   ' if self.is_met else 'MISSED'} {self.target}: {self.measured}; wanted {self.wanted}"


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. Rates are requests per second; `probes` counts scrapes and health checks by outcome, `complaints` the
    log's lines above INFO, `rows_left` what was lent when nothing was asked any more. `latency_ms` and `tracks` are
    over time; `trends` by kind and name, and without the generator, which keeps what it measures.
    """

    seconds: float
    capacity_before: Spread
    capacity_after: Spread
    rate: float
    report: Report
    probes: dict[str, int]
    complaints: dict[str, int]
    rows_left: int
    parts: list[Part]
    latency_ms: list[Percentiles | None]
    tracks: Tracks
    trends: dict[str, dict[str, Trend]] = {}
    verdicts: list[Verdict] = []

    @property
    def failures(self) -> dict[str, int]:
        """Requests without a right answer, scrapes and health checks with them."""
        probes = {name: count for name, count in self.probes.items() if name != "answered"}
        dropped = {"no free connection": self.report.dropped} if self.report.dropped else {}
        return {**self.report.errors, **dropped, **probes}

    @property
    def p99_ratio(self) -> float | None:
        """Of the last part to the first; None where one of them had no answer."""
        first, last = self.parts[0].latency_ms, self.parts[-1].latency_ms
        return last.p99 / first.p99 if first and last else None

    @property
    def is_met(self) -> bool:
        """Whether each target is."""
        return all(verdict.is_met for verdict in self.verdicts)


def judge(soak: Soak) -> Soak:
    """The same with trends and verdicts."""
    soak = msgspec.structs.replace(soak, trends=find_trends(soak.tracks, soak.seconds / PARTS))
    growing = [_none_grew(kind, soak.trends[kind]) for kind in FLOORS if kind != "rss"]
    return msgspec.structs.replace(
        soak,
        verdicts=[
            _held(soak),
            _count("failed requests", sum(soak.failures.values()), soak.failures),
            _count("errors in the log", _errors(soak.complaints), soak.complaints),
            *(_flat(name, trend, soak.seconds) for name, trend in soak.trends["rss"].items()),
            *growing,
            _count("rows lent in the end", soak.rows_left, {}),
            _p99(soak),
        ],
    )


def find_trends(tracks: Tracks, warm_up: float) -> dict[str, dict[str, Trend]]:
    """Of all that is judged, after so many seconds."""
    first = next(n for n, second in enumerate(tracks.seconds) if second >= warm_up)
    return {
        kind: {
            name: find_trend(tracks.seconds[first:], values[first:], floor)
            for name, values in tracks.values[kind].items()
            if name != GENERATOR
        }
        for kind, floor in FLOORS.items()
    }


def _held(soak: Soak) -> Verdict:
    """Whether that was the load at all: capacity drifts, and above it there is no soak."""
    report, offered = soak.report, soak.report.offered_rate or soak.rate
    shares = (soak.rate / each.median for each in (soak.capacity_before, soak.capacity_after))
    before, after = (f"{share:.0%}" for share in shares)
    void = "".join(f"; VOID: {why}" for why in report.void)
    return Verdict(
        "the load was held",
        f"{LEAST_ACHIEVED:.0%} of it answered, and no void run",
        f"{report.achieved_rate:.0f} of {offered:.0f} requests/s for {soak.seconds / 60:.3g} min, which is {before} of "
        f"capacity before and {after} of that after{void}",
        report.achieved_rate >= LEAST_ACHIEVED * offered and not report.void,
    )


def _count(target: str, count: int, what: dict[str, int]) -> Verdict:
    shown = ", ".join(f"{number} × {name}" for name, number in what.items())
    return Verdict(target, "0", f"{count}" + (f" ({shown})" if shown else ""), count == 0)


def _errors(complaints: dict[str, int]) -> int:
    return sum(count for entry, count in complaints.items() if not entry.startswith("WARNING "))


def _flat(name: str, trend: Trend, seconds: float) -> Verdict:
    minutes = seconds / 60 * (PARTS - 1) / PARTS
    return Verdict(
        f"memory of {name}",
        f"at most {trend.allowed:.2f} either way",
        f"{trend.growth:+.2f} MiB in {minutes:.3g} min, from {trend.first:.1f} to {trend.last:.1f} "
        f"(noise {trend.noise:.2f})",
        trend.is_flat,
    )


def _none_grew(kind: str, trends: dict[str, Trend]) -> Verdict:
    shown = ", ".join(f"{name} {each.first:.0f} → {each.last:.0f}" for name, each in trends.items())
    return Verdict(kind, "no more than after warm-up", shown, all(each.is_no_more for each in trends.values()))


def _p99(soak: Soak) -> Verdict:
    first, last, ratio = soak.parts[0].latency_ms, soak.parts[-1].latency_ms, soak.p99_ratio
    shown = f"{first.p99:.1f} → {last.p99:.1f} ms: {ratio:.3f}" if first and last else "no answer"
    # Both ways: a first part that was disturbed would hide what came later.
    is_met = ratio is not None and abs(ratio - 1) <= MOST_P99
    return Verdict(
        f"p99 in the last {soak.seconds / PARTS / 60:.3g} minutes, of the first", f"1 ± {MOST_P99:g}", shown, is_met
    )
