"""Plots of a ladder's results, as PNG in docs/images.

python -m perf.plots [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from perf.results import RESULTS, ROOT, Result, load_result
from perf.tables import mean_batch, why_not

IMAGES: Final = ROOT / "docs" / "images"
# Okabe and Ito's colours (Color Universal Design, 2008), which all kinds of sight tell apart; markers differ as well.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
INCHES: Final = (8, 4.8)
DPI: Final = 150


def plot_ladder(result: Result, folder: Path = IMAGES) -> list[Path]:
    """Latency's distribution, throughput and batch size against offered load; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    rate, rungs = result.data["rate"], result.data["rungs"].values()
    paths: list[Path] = []
    with _figure(result, f"latency at {rate:g} requests/s, open loop (Poisson)", folder, "latency", paths) as axes:
        _latency(axes, rungs)
    with _figure(result, "throughput against offered load", folder, "throughput", paths) as axes:
        _throughput(axes, rungs)
    with _figure(result, "batch size against offered load", folder, "batch", paths) as axes:
        _batch(axes, rungs)
    return paths


@contextmanager
def _figure(result: Result, title: str, folder: Path, name: str, paths: list[Path]) -> Iterator[Axes]:
    figure = Figure(figsize=INCHES, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(f"{title[0].upper()}{title[1:]}\n{result.machine.cpu}, {result.machine.cores} cores", fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    yield axes
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    path = folder / f"{result.name}-{name}-{result.machine.slug}.png"
    # Without the library's version in it, the same numbers give the same file.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    paths.append(path)


def _latency(axes: Axes, rungs: Any) -> None:
    for number, rung in enumerate(rungs):
        times = rung["cdf_ms"]
        parts = [100 * (n + 1) / len(times) for n in range(len(times))]
        why = why_not(rung["open"][-1]["report"]).partition(":")[0]
        label = rung["rung"]["title"] + (f" ({why})" if why else "")
        axes.plot(times, parts, color=_colour(number), linestyle=":" if why else "-", label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xlabel("latency from the scheduled time, ms")
    axes.set_ylabel("requests answered within, %")


def _throughput(axes: Axes, rungs: Any) -> None:
    most = 0.0
    for number, rung in enumerate(rungs):
        points = _points(rung)
        most = max(most, points[-1]["report"]["offered_rate"])
        _line(axes, number, rung, [point["report"]["achieved_rate"] for point in points])
    axes.plot([0, most], [0, most], color="#999999", linestyle="--", linewidth=1, label="all that is offered")
    axes.set_xlabel("offered load, requests/s")
    axes.set_ylabel("achieved, requests/s")


def _batch(axes: Axes, rungs: Any) -> None:
    for number, rung in enumerate(rungs):
        _line(axes, number, rung, [mean_batch(point["served"]["batches"]) for point in _points(rung)])
    axes.set_xlabel("offered load, requests/s")
    axes.set_ylabel("mean texts in a run of the model")
    axes.set_ylim(bottom=0)


def _line(axes: Axes, number: int, rung: Any, values: list[float]) -> None:
    offered = [point["report"]["offered_rate"] for point in _points(rung)]
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(offered, values, color=_colour(number), marker=marker, markersize=5, label=rung["rung"]["title"])


def _points(rung: Any) -> list[Any]:
    """All open loops, by their load; of those at the ladder's own rate the last."""
    return sorted([*rung["offered"], rung["open"][-1]], key=lambda phase: float(phase["report"]["offered_rate"]))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def main() -> int:
    """Plot the given results, else all ladders."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("ladder-*.json"))
    for path in paths:
        for image in plot_ladder(load_result(path)):
            print(image.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
