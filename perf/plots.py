"""Plots of ladders and soaks, as PNG in docs/images.

python -m perf.plots [FILE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
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
LINES: Final = ("-", "--", "-.", ":")
# The two of Okabe and Ito's that no process has.
LATENCY_COLOURS: Final = {"p50": "#E69F00", "p99": "#000000"}
DPI: Final = 150


def plot_ladder(result: Result, folder: Path = IMAGES) -> list[Path]:
    """Latency's distribution, throughput and batch size against offered load; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    rate, rungs = result.data["rate"], result.data["rungs"].values()
    paths: list[Path] = []
    with _figure(result, f"latency at {rate:g} requests/s, open loop (Poisson)", folder, "latency", paths) as (axes,):
        _latency(axes, rungs)
    with _figure(result, "throughput against offered load", folder, "throughput", paths) as (axes,):
        _throughput(axes, rungs)
    with _figure(result, "batch size against offered load", folder, "batch", paths) as (axes,):
        _batch(axes, rungs)
    return paths


def plot_soak(result: Result, folder: Path = IMAGES) -> list[Path]:
    """Memory of each process, and latency below it, over time; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    found, paths = result.data, list[Path]()
    rate, minutes = found["report"]["offered_rate"], found["seconds"] / 60
    title = f"{minutes:g} minutes at {rate:.0f} requests/s, open loop (Poisson)"
    with _figure(result, title, folder, "", paths, panels=2) as (memory, latency):
        _memory(memory, found["tracks"], found["trends"]["rss"], minutes / len(found["parts"]))
        _latency_over_time(latency, found["latency_ms"], minutes)
    return paths


@contextmanager
def _figure(
    result: Result, title: str, folder: Path, name: str, paths: list[Path], panels: int = 1
) -> Iterator[list[Axes]]:
    """Its panels, one below the other and over the same axis."""
    width, height = INCHES
    figure = Figure(figsize=(width, height * (panels + 1) / 2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    cores = f"{result.machine.cpu}, {result.machine.cores} cores"
    all_axes[0].set_title(f"{title[0].upper()}{title[1:]}\n{cores}", fontsize=11)
    for axes in all_axes:
        axes.grid(visible=True, alpha=0.3)
    yield all_axes
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    path = folder / ("-".join(filter(None, (result.name, name, result.machine.slug))) + ".png")
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


def _memory(axes: Axes, tracks: Any, trends: Any, warm_up: float) -> None:
    """Of all processes that are judged, with what each grew by after so many minutes."""
    minutes = [second / 60 for second in tracks["seconds"]]
    for number, (name, trend) in enumerate(trends.items()):
        # Front ends lie on each other, so the line under another must show through it.
        style, label = LINES[number % len(LINES)], f"{name}, {trend['growth']:+.2f} MiB after warm-up"
        axes.plot(minutes, tracks["values"]["rss"][name], color=_colour(number), linestyle=style, label=label)
    axes.axvspan(0, warm_up, color="#999999", alpha=0.15, linewidth=0)
    axes.set_ylabel("resident memory, MiB")
    axes.set_ylim(bottom=0)


def _latency_over_time(axes: Axes, points: Any, minutes: float) -> None:
    """A point stands in the middle of its span; where nothing was answered there is none."""
    middles = [minutes * (n + 0.5) / len(points) for n in range(len(points))]
    for (part, colour), marker in zip(LATENCY_COLOURS.items(), MARKERS, strict=False):
        values = [point[part] if point else float("nan") for point in points]
        axes.plot(middles, values, color=colour, marker=marker, markersize=3, linewidth=1, label=part)
    axes.set_xlabel("minutes")
    axes.set_ylabel("latency from the scheduled time, ms")
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


# The beginning of a result's name → what plots it.
PLOTS: Final[dict[str, Callable[[Result], list[Path]]]] = {"ladder": plot_ladder, "soak": plot_soak}


def main() -> int:
    """Plot the given results, else all that have plots."""
    paths = [Path(name) for name in sys.argv[1:]]
    for path in paths or sorted(path for kind in PLOTS for path in RESULTS.glob(f"{kind}-*.json")):
        result = load_result(path)
        plot = next((plot for kind, plot in PLOTS.items() if result.name.startswith(kind)), None)
        if plot is None:
            print(f"{path.name} has no plot; those of {' and '.join(PLOTS)} have.", file=sys.stderr)
            return 1
        for image in plot(result):
            print(image.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
