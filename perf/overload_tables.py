"""What happens above capacity, and beside others, as Markdown tables."""

from __future__ import annotations

import math
from typing import Any, Final

from msgspec.structs import asdict

from perf.stats import spread
from perf.tables import middle, spread_text, table

PROCESSES: Final = ("generator", "frontends", "engine")


def _times(times: dict[str, float] | None) -> str:
    return "" if times is None else f"{times['p50']:.1f} / {times['p99']:.1f}"


def overload_table(data: dict[str, Any]) -> str:
    """Each kind of request at each factor, of all turns: what is answered as median and range, times of the worst."""
    head = (
        "requests",
        "times capacity",
        "offered, 1/s",
        "answered, of the most",
        "p99 of these, ms",
        "refused",
        "p99 of refusals, ms",
        "other errors",
        "MiB before / after",
        "p99 after, of that before",
        "busy cores: generator, front ends, engine",
    )
    rows = [
        (kind["kind"], f"{factor:g}", *_turns([each for each in kind["overloads"] if each["factor"] == factor]))
        for kind in data["kinds"]
        for factor in dict.fromkeys(each["factor"] for each in kind["overloads"])
    ]
    return table(head, rows)


def _turns(turns: list[dict[str, Any]]) -> tuple[str, ...]:
    grown = max(turns, key=lambda each: each["memory_after"] - each["memory_before"])
    after = [_ratio(each["quiet_after_ms"], each["quiet_before_ms"]) for each in turns]
    return (
        f"{middle([each['offered'] for each in turns]):.0f}",
        spread_text(asdict(spread([each["goodput"] for each in turns]))),
        f"{max(each['accepted_ms']['p99'] if each['accepted_ms'] else math.inf for each in turns):.0f}",
        str(sum(each["refused"] for each in turns)),
        f"{max(each['refused_ms']['p99'] if each['refused_ms'] else 0 for each in turns):.1f}",
        str(sum(sum(each["other_errors"].values()) for each in turns)),
        f"{grown['memory_before']:.0f} / {grown['memory_after']:.0f}",
        spread_text(asdict(spread(after))),
        ", ".join(f"{middle([each['cores'][name] for each in turns]):.2f}" for name in PROCESSES),
    )


def _ratio(after: dict[str, float] | None, before: dict[str, float] | None) -> float:
    return after["p99"] / before["p99"] if after and before else math.inf


def fairness_table(data: dict[str, Any]) -> str:
    """The modest load beside each of the others."""
    head = ("beside", "its rate, 1/s", "p50 / p99 alone, ms", "p50 / p99 beside it, ms", "failed")
    rows = [
        (
            name,
            f"{turn['other']['achieved_rate']:.0f}",
            _times(turn["quiet"]["latency_ms"]),
            _times(turn["beside"]["latency_ms"]),
            str(turn["beside"]["dropped"] + sum(turn["beside"]["errors"].values())),
        )
        for name, found in data.items()
        for turn in found["turns"]
    ]
    ratios = "; ".join(f"{name}: {spread_text(found['ratio'])}" for name, found in data.items())
    return f"{table(head, rows)}\n\np99, of that alone: {ratios}."
