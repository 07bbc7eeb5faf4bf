"""The tables of loads: of a bench, a ladder and a load test; and how all tables show numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

Row = Sequence[str]
# Below this part of the offered rate a server does not keep up.
LEAST_ACHIEVED: Final = 0.95
TIMES: Final = "p50 / p95 / p99 / p99.9 / max, ms"


def bench_table(data: dict[str, Any]) -> str:
    """Targets, the server against the model alone, open loop, saturation."""
    targets = [
        (
            each["target"],
            f"{'≥' if each['is_least'] else '≤'} {each['bound']:g} {each['unit']}",
            spread_text(each["spread"]) if each["spread"] else f"{each['measured']:.4g}",
            "met" if data["met"][each["target"]] else "**missed**",
        )
        for each in data["verdicts"]
    ]
    ratios = "texts and tokens per second" if data["is_quiet"] else "CPU time, for others used the machine as well"
    one = data["ceiling"]["one_connection"]
    return "\n\n".join(
        (
            f"Ratios are of {ratios}.",
            table(("target", "wanted", "measured (range)", ""), targets),
            _ceiling_table(data["ceiling"]),
            f"One connection: p50 {spread_text(one['p50'])} ms; the graph alone on one thread "
            f"{spread_text(one['alone_one_thread'])} ms, on all cores {spread_text(one['alone_all_cores'])} ms. "
            f"Mixed lengths, of equal lengths served: {spread_text(data['ceiling']['mixed_of_equal'])}. "
            f"Memory: {memory_text(data['memory'])}.",
            _open_table(data["open"]),
            _stages_table(data["open"]),
            _saturation_table(data["saturation"]),
        )
    )


def _ceiling_table(data: dict[str, Any]) -> str:
    rows = []
    for name, key in (
        ("ONNX Runtime alone, 16 tokens", "alone"),
        ("ONNX Runtime alone, mixed lengths", "alone_mixed"),
        ("64 connections, one text a request", "single"),
        ("4 connections, 32 texts a request", "many"),
        ("64 connections, mixed lengths", "mixed"),
    ):
        phases = [round_[key] for round_ in data["rounds"]]
        rates, is_served = range_text([phase["texts_rate"] for phase in phases]), key in data["rates"]
        times = (middle([phase["report"]["latency_ms"][p] for phase in phases]) for p in ("p50", "p99") if is_served)
        ratios = (spread_text(data["rates"][key]), spread_text(data["cpu"][key])) if is_served else ("1", "1")
        rows.append((name, rates, *ratios, " / ".join(f"{time:.0f}" for time in times)))
    head = ("", "texts/s (range)", "of the model alone", "the same by CPU time", "p50 / p99, ms")
    return table(head, rows)


def _open_table(phases: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, phase in phases.items():
        report = phase["report"]
        errors = ", ".join(f"{count} × {status}" for status, count in report["errors"].items() if count) or "none"
        rows.append(
            (
                name,
                f"{report['offered_rate']:.0f} / {report['achieved_rate']:.0f}",
                _times(report["latency_ms"]),
                f"{report['lag_ms']['p99']:.2f}",
                errors,
                "; ".join(report["void"]) or "no",
            )
        )
    return table(("open loop", "offered / achieved, 1/s", TIMES, "generator's lag p99, ms", "errors", "void"), rows)


def _stages_table(phases: dict[str, dict[str, Any]]) -> str:
    """Where a request's time goes, and the cores."""
    rows = []
    for name, phase in phases.items():
        served = phase["served"]
        cores = {each: used * phase["texts_rate"] / 1e6 for each, used in phase["cpu_us"].items()}
        rows.append(
            (
                name,
                *(
                    f"{served[each]['p50']:.1f} / {served[each]['p99']:.1f}"
                    for each in ("tokenize_ms", "queue_ms", "compute_ms", "rest_ms")
                ),
                f"{mean_batch(served['batches']):.1f}",
                ", ".join(f"{each} {used:.2f}" for each, used in cores.items()),
                ", ".join(f"{share:.0%}" for share in phase["shares"].values()),
            )
        )
    head = ("p50 / p99, ms", "tokenize", "queue", "model", "rest", "mean batch", "cores busy", "shares")
    return table(head, rows)


def _saturation_table(phases: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            connections,
            f"{phase['texts_rate']:.0f}",
            _times(phase["report"]["latency_ms"]),
            f"{mean_batch(phase['served']['batches']):.1f}",
        )
        for connections, phase in phases.items()
    ]
    return table(("connections (closed loop)", "requests/s", TIMES, "mean batch"), rows)


def mean_batch(batches: dict[str, int]) -> float:
    """Mean texts of a run of the model."""
    return sum(int(size) * count for size, count in batches.items()) / max(1, sum(batches.values()))


def ladder_table(data: dict[str, Any]) -> str:
    """Every rung under the same traffic."""
    rows = []
    for each in data["rungs"].values():
        phase, rates = each["open"][-1], [saturated["texts_rate"] for saturated in each["saturation"]]
        report, served = phase["report"], phase["served"]
        rows.append(
            (
                each["rung"]["title"] + (f" ({served['hits']:.0%} hits)" if served["hits"] else ""),
                range_text(rates),
                spread_text(each["relative"]),
                f"{report['achieved_rate']:.0f}",
                why_not(report) or " / ".join(f"{report['latency_ms'][name]:.1f}" for name in ("p50", "p95", "p99")),
                f"{mean_batch(served['batches']):.1f}",
                f"{sum(phase['cpu_us'].values()):.0f}",
            )
        )
    rate = f"{data['rate']:.0f} requests/s offered (Poisson)"
    head = (
        "rung",
        "saturated (64 connections), texts/s (range)",
        "of the first",
        f"{rate}: achieved",
        "p50 / p95 / p99, ms",
        "mean batch",
        "CPU, us a text",
    )
    return table(head, rows)


def why_not(report: dict[str, Any]) -> str:
    """Why an open loop's latencies mean nothing; empty where they do.

    Of a server that cannot keep up they only tell how long the run was.
    """
    if report["achieved_rate"] < LEAST_ACHIEVED * report["offered_rate"]:
        return "overloaded"
    return f"void: {'; '.join(report['void'])}" if report["void"] else ""


def load_test_table(data: dict[str, Any]) -> str:
    """Locust's closed loop beside the open one."""
    closed, phase = data["closed"], data["open"]
    report = phase["report"]
    rows = [
        (
            f"closed loop, Locust, {closed['users']} users ({closed['waiting']:.1f} of them waiting at a time)",
            f"{closed['achieved_rate']:.0f}",
            str(closed["failures"]),
            _times(closed["latency_ms"]),
        ),
        (
            f"open loop, Poisson, {report['offered_rate']:.0f} requests/s offered"
            + "".join(f"; void: {why}" for why in report["void"]),
            f"{report['achieved_rate']:.0f}",
            str(sum(report["errors"].values())),
            _times(report["latency_ms"]),
        ),
    ]
    return table(("the original's four kinds of texts", "requests/s", "failures", TIMES), rows)


def _times(latency: dict[str, float] | None) -> str:
    if latency is None:
        return ""
    return " / ".join(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99", "p999", "max"))


def table(head: Row, rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread_text(spread: dict[str, float] | None, digits: int = 2) -> str:
    """Median and range; empty where there is none."""
    if spread is None:
        return ""
    median, least, most = (f"{spread[part]:.{digits}f}" for part in ("median", "min", "max"))
    return f"{median} ({least}–{most})"


def range_text(values: Sequence[float]) -> str:
    """Median and range of whole numbers."""
    return f"{middle(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def middle(values: Sequence[float]) -> float:
    """One of the values, in the middle."""
    return sorted(values)[len(values) // 2]


def memory_text(processes: dict[str, dict[str, float]]) -> str:
    """Of each process."""
    return ", ".join(f"{name} {m['rss']:.0f} MiB (PSS {m['pss']:.0f})" for name, m in processes.items())
