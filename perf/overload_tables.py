"""What happens above capacity, and beside others, as Markdown tables."""

from __future__ import annotations

from typing import Any

from perf.tables import spread_text, table


def _times(times: dict[str, float] | None) -> str:
    return "" if times is None else f"{times['p50']:.1f} / {times['p99']:.1f}"


def overload_table(data: dict[str, Any]) -> str:
    """Each kind of request at each factor."""
    head = (
        "requests",
        "times capacity",
        "offered, 1/s",
        "answered, of the most",
        "p50 / p99 of these, ms",
        "refused",
        "p50 / p99 of refusals, ms",
        "other errors",
        "MiB before / after",
        "p99 before / after, ms",
        "busy cores: generator, front ends, engine",
    )
    rows = [
        (
            kind["kind"],
            f"{each['factor']:g}",
            f"{each['offered']:.0f}",
            f"{each['goodput']:.2f}",
            _times(each["accepted_ms"]),
            str(each["refused"]),
            _times(each["refused_ms"]),
            str(sum(each["other_errors"].values())),
            f"{each['memory_before']:.0f} / {each['memory_after']:.0f}",
            " / ".join(f"{each[when]['p99']:.1f}" for when in ("quiet_before_ms", "quiet_after_ms") if each[when]),
            ", ".join(f"{each['cores'][name]:.2f}" for name in ("generator", "frontends", "engine")),
        )
        for kind in data["kinds"]
        for each in kind["overloads"]
    ]
    return table(head, rows)


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
