"""Committed results as Markdown tables for the README.

python -m perf.report [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

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


def restart_table(data: dict[str, Any]) -> str:
    """Spans with and without a rolling restart."""
    rows = []
    for quiet, restarted in zip(data["quiet"], data["restarted"], strict=True):
        for name, span in (("quiet", quiet), ("with a restart", restarted)):
            report, took = span["report"], span["restart_seconds"]
            times = report["latency_ms"] or {}
            rows.append(
                (
                    name,
                    f"{report['offered_rate']:.0f} / {report['achieved_rate']:.0f}",
                    " / ".join(f"{times[part]:.1f}" for part in ("p50", "p99", "max") if part in times),
                    str(report["dropped"] + sum(report["errors"].values())),
                    "" if took is None else f"{took:.1f}",
                    "; ".join(report["void"]) or "no",
                )
            )
    head = ("", "offered / achieved, 1/s", "p50 / p99 / max, ms", "failed", "restart took, s", "void")
    ratio = f"p99 with a restart, of the quiet one: {spread_text(data['p99_ratio'])}."
    return f"{table(head, rows)}\n\nHalf of {data['capacity']:.0f} requests/s. {ratio}"


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


def protocols_table(data: dict[str, Any]) -> str:
    """Ways to ask, under each load."""
    rows = [
        (
            f"{load}{about}",
            way,
            f"{found['rate']['median']:.0f}",
            f"{found['p50_ms']['median']:.2f} / {found['p99_ms']['median']:.2f}",
            spread_text(found["p50_of_json"]),
            f"{found['frontend_us']['median']:.0f}",
            spread_text(found["frontend_of_json"]),
        )
        for part, about in (("served", ""), ("alone", ", no model"))
        for load, ways in data[part].items()
        for way, found in ways.items()
    ]
    head = ("load", "way", "requests/s", "p50 / p99, ms", "p50, of JSON's", "front-end CPU, us a request", "of JSON's")
    libraries = [
        (
            name,
            f"{found['p50_ms']['median']:.2f} / {found['p99_ms']['median']:.2f}",
            spread_text(found["p50_of_openai"]),
            f"{found['client_us']['median']:.0f}",
        )
        for name, found in data["libraries"].items()
    ]
    client_head = (
        "one text a request, with a library",
        "p50 / p99, ms",
        "p50, of openai's",
        "the client's CPU, us a request",
    )
    return f"{table(head, rows)}\n\n{table(client_head, libraries)}"


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


def scrapes_table(data: dict[str, Any]) -> str:
    """Rounds with and without scrapes, by turns; and scrapes of front ends that were killed often."""
    load, restarted = data["load"], data["restarted"]
    rows = [
        (
            str(each["scrapes"]["requests"]) if each["scrapes"] else "",
            f"{each['report']['offered_rate']:.0f} / {each['report']['achieved_rate']:.0f}",
            *(f"{each['report']['latency_ms'][name]:.1f}" for name in ("p50", "p99", "max")),
        )
        for each in load["rounds"]
    ]
    scrapes = [
        (name, *(f"{times[part]:.1f}" for part in ("p50", "p99", "max")))
        for name, times in (
            (f"{load['scrapes']} under load", load["scrape_ms"]),
            (
                f"{restarted['frontends']} front ends after {restarted['restarts']} were killed "
                f"({restarted['files']} files, {restarted['series']} series)",
                restarted["scrape_ms"],
            ),
        )
    ]
    return "\n\n".join(
        (
            f"p99 with scrapes over p99 without: {spread_text(load['p99'], 3)}, of all rounds together "
            f"{load['pooled']:.3f}; p50 {spread_text(load['p50'], 3)}."
            + "".join(f" **Void:** {why}." for why in load["void"]),
            table(("scrapes", "offered / achieved, 1/s", "p50, ms", "p99", "max"), rows),
            table(("scrapes", "p50, ms", "p99", "max"), scrapes),
        )
    )


def tracing_table(data: dict[str, Any]) -> str:
    """A front end's CPU without spans and with them."""
    rows = [
        (name, spread_text(found["frontend_us"], 0), spread_text(found["times"]), f"{found['p50_ms']['median']:.1f}")
        for name, found in data.items()
    ]
    return table(("spans", "front end's CPU, us a request", "over off", "p50, ms"), rows)


def bulk_table(data: dict[str, Any]) -> str:
    """Whole files against the runner alone, memory, kills."""
    ours, run = data["against_alone"], data["undisturbed"]
    rows = [
        ("texts", f"{data['texts']:,}"),
        ("texts/s", spread_text(ours["texts_rate"], 0)),
        ("the runner alone", spread_text(ours["alone_rate"], 0)),
        ("of it, by rate", spread_text(ours["rates"], 3)),
        ("of it, by CPU time", spread_text(ours["cpu"], 3)),
        ("the same, of batches as a server has them", spread_text(ours["of_served"], 3)),
        ("CPU, us a text", ", ".join(f"{name} {value:.1f}" for name, value in ours["parts"].items())),
        ("memory, a quarter done and most after it, MiB", f"{run['settled']:.0f}, {run['most']:.0f}"),
        ("identical after kills", f"{'yes' if data['identical'] else 'no'}, {data['kills']}"),
    ]
    return table(("", ""), rows)


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


def faults_table(data: dict[str, Any]) -> str:
    """Each kind of fault, and what became of all requests."""
    rows = [
        (name, str(count), f"{median:.2f} / {most:.2f}") for name, (count, median, most) in data["by_fault"].items()
    ]
    rows.append(
        ("all, p50 / p99 / max", str(data["faults"]), " / ".join(f"{s:.2f}" for s in data["recovery"].values()))
    )
    answers = ", ".join(f"{count} {verdict}" for verdict, count in data["outcomes"].items())
    return f"{table(('fault', 'times', 'recovery, s: median / longest'), rows)}\n\n{answers}; {_problems(data)}"


def fuzz_table(data: dict[str, Any]) -> str:
    """What the server made of it."""
    rows = [(status, str(count)) for status, count in data["served"].items()]
    about = f"{data['requests']} requests and {data['frames']} frames; {_problems(data)}"
    return f"{table(('status', 'requests that had a head'), rows)}\n\n{about}"


def _problems(data: dict[str, Any]) -> str:
    return f"problems: {'; '.join(data['problems']) or 'none'}"


TABLES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "bench": bench_table,
    "ladder": ladder_table,
    "load-test": load_test_table,
    "sweep": sweep_table,
    "micro": micro_table,
    "limits": limits_table,
    "gateway": gateway_table,
    "restart": restart_table,
    "compare": compare_table,
    "scrapes": scrapes_table,
    "tracing": tracing_table,
    "protocols": protocols_table,
    "bulk": bulk_table,
    "gpu": gpu_table,
    "faults": faults_table,
    "fuzz": fuzz_table,
}


def main() -> int:
    """Print the given results, else all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    print("\n".join(markdown(load_result(path)) for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
