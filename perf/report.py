"""Committed results as Markdown tables for the README.

python -m perf.report [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from perf.operation_tables import (
    bulk_table,
    faults_table,
    fuzz_table,
    protocols_table,
    restart_table,
    scrapes_table,
    soak_table,
    swap_table,
    tracing_table,
)
from perf.overload_tables import fairness_table, overload_table
from perf.pauses import pauses_table
from perf.results import RESULTS, Result, load_result
from perf.tables import Row, bench_table, ladder_table, load_test_table, spread_text, table


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


def sweep_table(data: dict[str, Any]) -> str:
    """A setting's values in every scenario."""
    rows = [
        (
            scenario,
            value,
            f"{found['texts_rate']['median']:.0f}",
            spread_text(found["relative"]),
            f"{found['total_cpu_us']['median']:.0f}",
            f"{found['p50_ms']['median']:.1f} / {found['p99_ms']['median']:.1f}",
        )
        for scenario, values in data.items()
        for value, found in values.items()
    ]
    return table(("scenario", "value", "texts/s", "relative (range)", "CPU, us a text", "p50 / p99, ms"), rows)


def micro_table(data: dict[str, Any]) -> str:
    """What each step costs."""
    rows = [(name, f"{cost['median']:.2f}") for name, cost in data["steps"].items()]
    frontend, engine = data["frontend"], data["engine"]
    rows.append(("front end, whole request, engine answers at once", f"{frontend['frontend_us']:.0f}"))
    rows.append(("engine, all but the model", f"{engine['engine_us']:.1f}"))
    return table(("step", "CPU, us an item"), rows)


def limits_table(data: dict[str, Any]) -> str:
    """What a decision of the limiter costs."""
    rows = [
        (name, *(f"{found[key]:.{digits}f}" for key, digits in (("p50_us", 1), ("p99_us", 1), ("stall_ms", 1))))
        for name, found in data.items()
    ]
    return table(("", "admit p50, us", "p99, us", "longest stall of the loop, ms"), rows)


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
            table(("store", "load", "most in any 60 s, of the limit", "passed in whole cycles, of the limit"), limits),
            table(("512 inputs a request", "JSON, us an input", "raw", "times"), raw),
            f"A hit of the cache over HTTP, one connection: p50 {data['hit_p50_ms']:.2f} ms.",
        )
    )


def compare_table(data: dict[str, Any]) -> str:
    """The first system against each of the others."""
    rows = [
        (
            f"{name} ({found['about']})",
            spread_text(found["texts_rate"], 0),
            spread_text(found["times"]),
            "" if found["cpu_us"] is None else f"{found['cpu_us']['median']:.0f}",
            spread_text(found["cpu_times"]),
            f"{spread_text(found['p50_ms'], 1)} / {spread_text(found['p99_ms'], 1)}",
            str(sum(found["errors"].values())),
        )
        for name, found in data["systems"].items()
    ]
    head = ("", "texts/s (range)", f"{data['base']} is times as fast", "CPU, us a text", "times as much")
    load = f"{data['connections']} connections, {data['texts']} × {data['tokens']} tokens a request."
    void = "".join(f"\n\n**Void:** {reason}" for reason in data["void"])
    return f"{load}\n\n{table((*head, 'p50 / p99, ms', 'errors'), rows)}{void}"


def gpu_table(data: dict[str, Any]) -> str:
    """Every stage, and every part of one, with what it found."""
    rows = [row for name, stage in data["stages"].items() for row in _stage_rows(name, stage)]
    return table(("stage", "", "found"), rows)


def _stage_rows(name: str, stage: dict[str, Any]) -> list[Row]:
    found = stage.get("found") or {}
    parts = {f"{name}, {part}": value for part, value in found.items() if isinstance(value, dict) and "missed" in value}
    if parts:
        return [_stage_row(part, "missed" if value["missed"] else "passed", value) for part, value in parts.items()]
    return [_stage_row(name, stage["status"], {**found, "missed": found.get("missed") or [stage.get("reason")]})]


def _stage_row(name: str, status: str, found: dict[str, Any]) -> Row:
    why = "; ".join(filter(None, found["missed"]))
    shown = [
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if key != "missed" and value is not None
    ]
    return name, f"{status}: {why}" if why else status, ", ".join(shown)


TABLES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "bench": bench_table,
    "ladder": ladder_table,
    "load-test": load_test_table,
    "sweep": sweep_table,
    "micro": micro_table,
    "limits": limits_table,
    "gateway": gateway_table,
    "restart": restart_table,
    "soak": soak_table,
    "swap": swap_table,
    "compare": compare_table,
    "scrapes": scrapes_table,
    "tracing": tracing_table,
    "protocols": protocols_table,
    "bulk": bulk_table,
    "gpu": gpu_table,
    "faults": faults_table,
    "fuzz": fuzz_table,
    "overload": overload_table,
    "fairness": fairness_table,
    "pauses": pauses_table,
}


def main() -> int:
    """Print the given results, else all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    print("\n".join(markdown(load_result(path)) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
