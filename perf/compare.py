"""Two or more systems in one run, by turns: how many times as fast the first one is, and how far that varies.

    python -m perf.compare here infinity:onnx
    python -m perf.compare here commit:HEAD~1
    python -m perf.compare here infinity:onnx mosec original

Machines are noisy and drift, so the systems take turns (A B C A B C ... A), each warm and idle while another one runs,
with the same texts from the same generator on the same cores. Each ratio compares a turn with the mean of the first
system's turns before and after it. What the systems are: perf.peers.systems.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from ipc.errors import StartError
from perf.ceiling import MOST_FOREIGN
from perf.peers.contender import Contender, Phase, measure
from perf.peers.systems import MODEL_NAME, System, parse_system
from perf.results import ROOT, Result, make_result, save_result
from perf.stats import Spread, spread
from perf.texts import exact_texts

TEXTS = 32_768


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One system. `times` is how many times as many texts a second the first system served; None for itself, and where
    one of the two served none. `cpu_times` is how many times as much CPU time this one takes for a text."""

    about: str
    lowest_cosine: float | None
    texts_rate: Spread
    p50_ms: Spread | None
    p99_ms: Spread | None
    cpu_us: Spread | None
    errors: dict[str, int]
    times: Spread | None
    cpu_times: Spread | None
    phases: list[Phase]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All systems by name, the first one being the base. `void` says why the numbers must not be used.

    Where others used the machine as well (not `is_quiet`), the ratios of CPU time say more than those of rates. Turns
    of servers that ran already tell nothing about that, for their own work is in `foreign`.
    """

    base: str
    connections: int
    texts: int
    tokens: int
    void: list[str]
    is_quiet: bool
    systems: dict[str, Found]


def summarize(contenders: Sequence[Contender]) -> tuple[list[str], dict[str, Found]]:
    """Why the run is void, and what was found of each system."""
    base = contenders[0]
    void = [reason for contender in contenders for reason in contender.void]
    systems = {}
    for contender in contenders:
        found = _found(contender, None if contender is base else base.phases)
        systems[contender.system.name] = found
        if found.errors.get("wrong"):
            void.append(f"{contender.system.name}: {found.errors['wrong']} answers of the wrong form")
        if found.p50_ms is None:
            void.append(f"{contender.system.name}: a turn without a right answer")
    return void, systems


def _found(contender: Contender, base: Sequence[Phase] | None) -> Found:
    phases = contender.phases
    latencies = [phase.report.latency_ms for phase in phases]
    served = [latency for latency in latencies if latency is not None]
    has_all = len(served) == len(latencies)
    errors: Counter[str] = Counter()
    for phase in phases:
        errors.update(phase.report.errors)
    return Found(
        about=contender.system.about,
        lowest_cosine=contender.lowest_cosine,
        texts_rate=spread([phase.texts_rate for phase in phases]),
        p50_ms=spread([latency.p50 for latency in served]) if has_all else None,
        p99_ms=spread([latency.p99 for latency in served]) if has_all else None,
        cpu_us=_spread([phase.cpu_us for phase in phases]),
        errors=dict(errors),
        times=_spread(times([p.texts_rate for p in base], [p.texts_rate for p in phases])) if base else None,
        cpu_times=_spread(inverse(times([p.cpu_us for p in base], [p.cpu_us for p in phases]))) if base else None,
        phases=phases,
    )


def times(base: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    """The mean of the base before and after, over the other between the two; None where one of the three is missing or
    zero. `base` has one value more."""
    return [
        (before + after) / 2 / between if before and after and between else None
        for (before, after), between in zip(itertools.pairwise(base), other, strict=True)
    ]


def inverse(values: Sequence[float | None]) -> list[float | None]:
    """1 over each."""
    return [1 / value if value else None for value in values]


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def compare(systems: Sequence[System], options: argparse.Namespace) -> Comparison:
    """Start all, measure, end all. Raises StartError where one does not start."""
    _refuse_what_cannot_be(systems, options.texts)
    texts = exact_texts(options.tokens, TEXTS)
    with ExitStack() as ends:
        contenders = []
        for system in systems:
            print(f"starting {system.name}: {system.about}", flush=True)
            contenders.append(Contender(system, ends.enter_context(system.start()), texts, options.texts))
        measure(contenders, options.rounds, options.seconds, options.connections, warm_up=options.warm_up)
    void, found = summarize(contenders)
    return Comparison(
        base=systems[0].name,
        connections=options.connections,
        texts=options.texts,
        tokens=options.tokens,
        void=void,
        is_quiet=all(p.foreign <= MOST_FOREIGN for f in found.values() for p in f.phases if p.cpu_us is not None),
        systems=found,
    )


def _refuse_what_cannot_be(systems: Sequence[System], texts: int) -> None:
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or len(names) < 2:
        raise StartError("Give two systems or more, each once.")
    for system in systems:
        if system.most_texts is not None and texts > system.most_texts:
            raise StartError(f"{system.name} takes {system.most_texts} text a request: leave out --texts, or it.")


def verdict(comparison: Comparison) -> str:
    """What a person wants to know."""
    lines = []
    for name, found in comparison.systems.items():
        line = f"{name} ({found.about}): {found.texts_rate.median:.0f} texts/s"
        if found.times is not None:
            line += f"; {comparison.base} serves {_show(found.times)} times as many"
        if found.cpu_us is not None:
            line += f"; CPU {found.cpu_us.median:.0f} us a text"
        if found.cpu_times is not None:
            line += f", {_show(found.cpu_times)} times as much"
        lines.append(line + (f"; errors {found.errors}" if found.errors else ""))
    if not comparison.is_quiet:
        lines.append("Others used the machine as well: go by CPU time.")
    return "\n".join([*lines, *(f"VOID: {reason}" for reason in comparison.void)])


def _show(spread: Spread) -> str:
    return f"{spread.median:.2f} (from {spread.min:.2f} to {spread.max:.2f})"


def result_of(comparison: Comparison, options: argparse.Namespace) -> Result:
    """To be saved: one file for each set of systems. The key is no part of it."""
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(["compare", *comparison.systems]).lower()).strip("-")
    given = {name: getattr(options, name) for name in ("rounds", "seconds", "connections", "texts", "tokens")}
    flags = [part for name, value in given.items() for part in (f"--{name}", f"{value:g}")]
    return make_result(
        name, shlex.join(["python", "-m", "perf.compare", *comparison.systems, *flags]), given, comparison
    )


def main() -> int:
    """Measure, print, save; exit status 1 where the run is void or had errors, 3 where it cannot be made."""
    options = parse_options()
    try:
        systems = [parse_system(name, options.key, options.model, options.texts) for name in options.systems]
        comparison = compare(systems, options)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    print(verdict(comparison))
    if not options.no_save:
        print(save_result(result_of(comparison, options)).relative_to(ROOT))
    return int(bool(comparison.void or any(found.errors for found in comparison.systems.values())))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m perf.compare",
        description="Compare servers by turns in one run.",
        epilog="Systems: here, commit:REVISION, url:http://HOST:PORT[/PREFIX], infinity:onnx, infinity:torch, mosec, "
        "original. Install the peers with python -m perf.peers install NAME.",
    )
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help="the first one is the base of all ratios")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of load on each before the first turn")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1, help="texts in a request")
    parser.add_argument("--tokens", type=int, default=16, help="tokens in a text")
    parser.add_argument("--key", default=os.environ.get("EMBEDLANE_API_KEY", ""), help="for url: systems")
    parser.add_argument("--model", default=MODEL_NAME, help="what url: systems call the model")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
