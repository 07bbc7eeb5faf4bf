"""Committed results as Markdown tables for the README.

python -m perf.report [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from perf.results import RESULTS, Result, load_result

Row = Sequence[str]
# Below this part of the offered rate a server does not keep up.
LEAST_ACHIEVED: Final = 0.95
TIMES: Final = "p50 / p95 / p99 / p99.9 / max, ms"


def markdown(result: Result) -> str:
    """One result: where, when, how, and its table."""
    machine, versions = result.machine, result.versions
    about = (
        f"{machine.cpu}, {machine.cores} cores; {result.measured[:10]}, commit {result.commit}; "
        f"ONNX Runtime {versions.get('onnxruntime')}, Python {versions.get('python')}. Repeat with `{result.command}`."
    )
    kind = next((kind for kind in TABLES if result.name.startswith(kind)), None)
    body = TABLES[kind](result.data) if kind else "(no table for this one)"
    return f"### {result.name}\n\n{about}\n\n{body}\n"


def bench_table(data: dict[str, Any]) -> str:
    """Targets, the server against the model alone, open loop, saturation."""
    targets = [
        (
            each["target"],
            f"{'≥' if each['is_least'] else '≤'} {each['bound']:g} {each['unit']}",
            _spread(each["spread"]) if each["spread"] else f"{each['measured']:.4g}",
            "met" if data["met"][each["target"]] else "**missed**",
        )
        for each in data["verdicts"]
    ]
    ratios = "texts and tokens per second" if data["is_quiet"] else "CPU time, for others used the machine as well"
    one = data["ceiling"]["one_connection"]
    return "\n\n".join(
        (
            f"Ratios are of {ratios}.",
            _table(("target", "wanted", "measured (range)", ""), targets),
            _ceiling_table(data["ceiling"]),
            f"One connection: p50 {_spread(one['p50'])} ms; the graph alone {_spread(one['alone_one_thread'])} ms on "
            f"one thread, {_spread(one['alone_all_cores'])} ms on all cores. Mixed lengths, of equal lengths served: "
            f"{_spread(data['ceiling']['mixed_of_equal'])}. Memory: {_memory(data['memory'])}.",
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
        rates, is_served = _range([phase["texts_rate"] for phase in phases]), key in data["rates"]
        times = (_middle([phase["report"]["latency_ms"][p] for phase in phases]) for p in ("p50", "p99") if is_served)
        ratios = (_spread(data["rates"][key]), _spread(data["cpu"][key])) if is_served else ("1", "1")
        rows.append((name, rates, *ratios, " / ".join(f"{time:.0f}" for time in times)))
    head = ("", "texts/s (range)", "of the model alone", "the same by CPU time", "p50 / p99, ms")
    return _table(head, rows)


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
    return _table(("open loop", "offered / achieved, 1/s", TIMES, "generator's lag p99, ms", "errors", "void"), rows)


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
    return _table(head, rows)


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
    return _table(("connections (closed loop)", "requests/s", TIMES, "mean batch"), rows)


def mean_batch(batches: dict[str, int]) -> float:
    """Mean texts of a run of the model."""
    return sum(int(size) * count for size, count in batches.items()) / max(1, sum(batches.values()))


def _times(latency: dict[str, float] | None) -> str:
    if latency is None:
        return ""
    return " / ".join(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99", "p999", "max"))


def ladder_table(data: dict[str, Any]) -> str:
    """Every rung under the same traffic."""
    rows = []
    for each in data["rungs"].values():
        phase, rates = each["open"][-1], [saturated["texts_rate"] for saturated in each["saturation"]]
        report, served = phase["report"], phase["served"]
        rows.append(
            (
                each["rung"]["title"] + (f" ({served['hits']:.0%} hits)" if served["hits"] else ""),
                _range(rates),
                _spread(each["relative"]),
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
    return _table(head, rows)


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
    return _table(("the original's four kinds of texts", "requests/s", "failures", TIMES), rows)


def sweep_table(data: dict[str, Any]) -> str:
    """A setting's values in every scenario."""
    rows = [
        (
            scenario,
            value,
            f"{found['texts_rate']['median']:.0f}",
            _spread(found["relative"]),
            f"{found['total_cpu_us']['median']:.0f}",
            f"{found['p50_ms']['median']:.1f} / {found['p99_ms']['median']:.1f}",
        )
        for scenario, values in data.items()
        for value, found in values.items()
    ]
    return _table(("scenario", "value", "texts/s", "relative (range)", "CPU, us a text", "p50 / p99, ms"), rows)


def micro_table(data: dict[str, Any]) -> str:
    """What each step costs."""
    rows = [(name, f"{cost['median']:.2f}") for name, cost in data["steps"].items()]
    frontend, engine = data["frontend"], data["engine"]
    rows.append(("front end, whole request, engine answers at once", f"{frontend['frontend_us']:.0f}"))
    rows.append(("engine, all but the model", f"{engine['engine_us']:.1f}"))
    return _table(("step", "CPU, us an item"), rows)


def limits_table(data: dict[str, Any]) -> str:
    """What a decision of the limiter costs."""
    rows = [
        (name, *(f"{found[key]:.{digits}f}" for key, digits in (("p50_us", 1), ("p99_us", 1), ("stall_ms", 1))))
        for name, found in data.items()
    ]
    return _table(("", "admit p50, us", "p99, us", "longest stall of the loop, ms"), rows)


def gateway_table(data: dict[str, Any]) -> str:
    """Limits over HTTP, hits of the cache, raw vectors."""
    limits = [
        (store, kind, f"{run['worst']:.3f}", f"{run['steady']:.3f}")
        for store, kinds in data["limits"].items()
        for kind, run in kinds.items()
    ]
    raw = [
        (name, f"{each['json_us']:.1f}", f"{each['raw_us']:.1f}", f"{each['times']:.1f}")
        for name, each in data["raw"].items()
    ]
    return "\n\n".join(
        (
            _table(("store", "load", "most in any 60 s, of the limit", "passed in whole cycles, of the limit"), limits),
            _table(("512 inputs a request", "JSON, us an input", "raw", "times"), raw),
            f"A hit of the cache over HTTP, one connection: p50 {data['hit_p50_ms']:.2f} ms.",
        )
    )


TABLES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "bench": bench_table,
    "ladder": ladder_table,
    "load-test": load_test_table,
    "sweep": sweep_table,
    "micro": micro_table,
    "limits": limits_table,
    "gateway": gateway_table,
}


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['min']:.2f}–{spread['max']:.2f})"


def _range(values: Sequence[float]) -> str:
    return f"{_middle(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _memory(processes: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {m['rss']:.0f} MiB (PSS {m['pss']:.0f})" for name, m in processes.items())


def main() -> int:
    """Print the given results, else all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    print("\n".join(markdown(load_result(path)) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
