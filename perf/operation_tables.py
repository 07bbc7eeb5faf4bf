"""Committed results of operations and of what is around the data path, as Markdown tables."""

from __future__ import annotations

from typing import Any

from perf.tables import spread_text, table


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


def soak_table(data: dict[str, Any]) -> str:
    """What was judged, then each part of the run."""
    verdicts = [
        (each["target"], each["wanted"], each["measured"], "met" if each["is_met"] else "**missed**")
        for each in data["verdicts"]
    ]
    minutes = data["seconds"] / 60 / len(data["parts"])
    parts = [
        (
            f"{number * minutes:.3g} to {(number + 1) * minutes:.3g}",
            f"{part['answers']:,}",
            " / ".join(f"{part['latency_ms'][name]:.1f}" for name in ("p50", "p99", "max")) if part["answers"] else "",
            f"{part['lag_p99_ms']:.2f}",
            ", ".join(f"{name} {used:.0f}" for name, used in part["cpu_us"].items()),
            f"{part['foreign']:.1%}",
        )
        for number, part in enumerate(data["parts"])
    ]
    head = (
        "minutes",
        "right answers",
        "p50 / p99 / max, ms",
        "generator's lag p99, ms",
        "CPU, us a request",
        "cores that others had",
    )
    before, after = (spread_text(data[f"capacity_{when}"], 0) for when in ("before", "after"))
    about = f"Capacity was {before} requests/s before and {after} after; {data['rate']:.0f} were offered."
    return "\n\n".join((table(("target", "wanted", "measured", ""), verdicts), about, table(head, parts)))


def swap_table(data: dict[str, Any]) -> str:
    """Each swap, and what all requests of the run got."""
    report = data["report"]
    rows = [(each["to"], *(f"{each[key]:.2f}" for key in ("away_s", "pause_s", "longest_s"))) for each in data["swaps"]]
    latency = report["latency_ms"]
    return "\n\n".join(
        (
            table(("to", "no engine, s", "no answer at all, s", "longest request, s"), rows),
            f"{data['rate']:.0f} requests/s offered for {report['seconds']:.0f} s: "
            f"{sum(data['answers'].values())} right answers, errors {report['errors'] or 'none'}; "
            f"p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f} ms.",
        )
    )


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
