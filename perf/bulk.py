"""Whole files: how near `tools.embed` comes to ONNX Runtime alone, its memory, and whether kills change a byte.

    python -m perf.bulk [--texts 200000]

The rate by turns in one process: the runner alone, then a slice of the texts from file to file, again and again. Then
the command itself, once undisturbed with its memory looked at, and once killed at random moments and begun again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from engine.runners.onnx import OnnxRunner
from engine.scheduler import Limits
from ipc.bundle import Bundle, hash_file, load_bundle
from ipc.messages import Ids
from ipc.settings import DEFAULT_MODEL, PREFIX, Settings
from ipc.slab import Rows
from perf.alone import Alone, equal_batches, run_alone, token_ids
from perf.ceiling import MOST_FOREIGN
from perf.procfs import Meter, memory
from perf.results import ROOT, make_result, save_result
from perf.stats import Spread, spread
from perf.texts import make_texts
from tools.embed.job import Model, Options, embed
from tools.embed.local import Local
from tools.embed.window import Job, Window
from tools.prepare import ensure_bundle

LEAST: Final = 0.97
# Above what the process has when its windows are full.
MOST_GROWTH_MIB: Final = 32.0
KILLS: Final = 10
# As long as half a window takes on two cores.
KILL_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.05
SETTLED: Final = 0.25


class Slice(msgspec.Struct, frozen=True):
    """One turn of whole files. `parts` is CPU time a text in µs: the model, what is around it in the lanes, tokenizing
    and sorting, writing, and the rest, which is mostly reading.
    """

    texts_rate: float
    cpu_us: float
    parts: dict[str, float]
    foreign: float


class Rates(msgspec.Struct, frozen=True):
    """Ratios to the runner alone, of texts/s and of CPU time; `parts` as in Slice, medians."""

    rates: Spread
    cpu: Spread
    alone_rate: Spread
    texts_rate: Spread
    parts: dict[str, float]
    foreign: Spread


class Run(msgspec.Struct, frozen=True):
    """The command, undisturbed: its memory in MiB when a quarter was done, and the most from then on."""

    seconds: float
    settled: float
    most: float


class Bulk(msgspec.Struct, frozen=True):
    """Everything; `identical` says that the killed run's output has the undisturbed one's bytes."""

    texts: int
    against_alone: Rates
    undisturbed: Run
    kills: int
    identical: bool


class TimedRunner:
    """The runner, and the CPU time that its runs take."""

    def __init__(self, runner: OnnxRunner, clock: Counter[str]) -> None:
        self.device, self.precision = runner.device, runner.precision
        self.lanes, self.mixes_lengths = runner.lanes, runner.mixes_lengths
        self._runner = runner
        self._clock = clock
        self._lock = threading.Lock()

    def warm_up(self, rows: Rows) -> None:
        """See Runner."""
        self._runner.warm_up(rows)

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """See Runner."""
        began = time.thread_time_ns()
        padding = self._runner.run(texts, rows)
        with self._lock:
            self._clock["model"] += time.thread_time_ns() - began
        return padding


class TimedLocal(Local):
    """The backend, and the CPU time that its parts take."""

    def __init__(self, settings: Settings, bundle: Bundle, runner: OnnxRunner) -> None:
        self.clock: Counter[str] = Counter()
        self._clock_lock = threading.Lock()
        super().__init__(settings, bundle, TimedRunner(runner, self.clock))

    def plan(self, window: Window) -> list[Job]:
        """See Backend."""
        began = time.thread_time_ns()
        jobs = super().plan(window)
        self.clock["tokenize"] += time.thread_time_ns() - began
        return jobs

    @contextmanager
    def worker(self, number: int) -> Iterator[Callable[[Job], int]]:
        """See Backend."""
        began = time.thread_time_ns()
        with super().worker(number) as run:
            yield run
        with self._clock_lock:
            self.clock["lanes"] += time.thread_time_ns() - began


def measure_rates(bundle: Bundle, texts: list[str], turns: int, seconds: float, folder: Path) -> Rates:
    """The runner alone and a slice of the texts, by turns; a slice is compared with the mean of its neighbours."""
    settings = Settings(model=str(bundle.folder))
    runner = OnnxRunner(bundle, settings.device, settings.lanes)
    backend = TimedLocal(settings, bundle, runner)
    limits = Limits(settings.max_batch_rows, settings.max_batch_tokens, 0, settings.queue_items)
    each = len(texts) // turns
    batches = equal_batches(token_ids(bundle, texts[: min(len(texts), 32_768)]), limits)
    run_alone(runner, bundle.dim, batches, 1.0)
    alone, slices = [run_alone(runner, bundle.dim, batches, seconds)], []
    for turn in range(turns):
        slices.append(_slice(backend, texts[turn * each : (turn + 1) * each], folder))
        alone.append(run_alone(runner, bundle.dim, batches, seconds))
        print(f"turn {turn + 1} of {turns}: alone {alone[-1].texts_rate:.0f}, bulk {slices[-1].texts_rate:.0f} texts/s")
    return _compare(alone, slices)


def _slice(backend: TimedLocal, texts: Sequence[str], folder: Path) -> Slice:
    source, out = folder / "slice.txt", folder / "slice.npy"
    source.write_text("\n".join(texts))
    backend.clock.clear()
    meter = Meter({})
    meter.window(True)
    main = time.thread_time_ns()
    options = Options(source=str(source), out=out, restart=True, quiet=True)
    embed(options, backend, Model(DEFAULT_MODEL, 1))
    main = time.thread_time_ns() - main
    meter.window(False)
    usage, clock, count = meter.usage, backend.clock, len(texts)
    used = usage.total() * 1e9
    nanoseconds = {
        "model": clock["model"],
        "lanes": clock["lanes"] - clock["model"],
        "tokenize": clock["tokenize"],
        "write": main,
        "rest": used - clock["lanes"] - clock["tokenize"] - main,
    }
    parts = {name: value / count / 1e3 for name, value in nanoseconds.items()}
    return Slice(count / usage.seconds, used / count / 1e3, parts, usage.foreign)


def _compare(alone: Sequence[Alone], slices: Sequence[Slice]) -> Rates:
    pairs = list(zip(alone, alone[1:], slices, strict=False))
    return Rates(
        rates=spread([2 * each.texts_rate / (a.texts_rate + b.texts_rate) for a, b, each in pairs]),
        cpu=spread([(a.cpu_us + b.cpu_us) / 2 / each.cpu_us for a, b, each in pairs]),
        alone_rate=spread([each.texts_rate for each in alone]),
        texts_rate=spread([each.texts_rate for each in slices]),
        parts={name: spread([each.parts[name] for each in slices]).median for name in slices[0].parts},
        foreign=spread([each.foreign for each in slices]),
    )


class Command:
    """`python -m tools.embed` on a file of texts."""

    def __init__(self, bundle: Bundle, source: Path) -> None:
        ours = {PREFIX + "MODEL": str(bundle.folder)}
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | ours
        self._source = source

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        command = [sys.executable, "-m", "tools.embed", str(self._source), str(out), "--quiet"]
        return subprocess.Popen(command, cwd=ROOT, env=self._env)  # noqa: S603 - our own command

    def run(self, out: Path, size: int) -> Run:
        """To the end, with the memory looked at. `size` is how large the output will be."""
        began, seen = time.monotonic(), []
        with self.start(out) as process:
            while process.poll() is None:
                if _size(out) >= SETTLED * size:
                    seen.append(memory(process.pid).rss)
                time.sleep(LOOK_SECONDS)
        _check(process)
        return Run(time.monotonic() - began, seen[0], max(seen))

    def run_killed(self, out: Path, size: int, kills: int, pause: float = KILL_SECONDS) -> int:
        """The same with so many deaths on the way, each at a random share of the output and up to `pause` seconds
        later; gives how many there were, for a run that ended before is not killed.
        """
        chance = random.Random(kills)  # noqa: S311 - reproducible moments, no secret
        killed = 0
        for share in sorted(chance.uniform(0.0, 0.9) for _ in range(kills)):
            if out.exists():
                break
            with self.start(out) as process:
                while _size(out) <= share * size and process.poll() is None:
                    time.sleep(LOOK_SECONDS)
                time.sleep(chance.uniform(0, pause))
                killed += process.poll() is None
                process.kill()
            print(f"killed behind {share:.0%}, with {_size(out) / size:.1%} on the disk", flush=True)
        if not out.exists():
            with self.start(out) as process:
                process.wait()
            _check(process)
        return killed


def _check(process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        raise RuntimeError(f"tools.embed ended with status {process.returncode}")


def _size(out: Path) -> int:
    partial = out.with_name(f"{out.name}.partial")
    return partial.stat().st_size if partial.exists() else 0


def measure(count: int, turns: int, seconds: float, kills: int) -> Bulk:
    """All of it."""
    bundle = load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"))
    texts = make_texts("short", count)
    with tempfile.TemporaryDirectory(prefix="embedlane-bulk-") as name:
        folder = Path(name)
        found = measure_rates(bundle, texts, turns, seconds, folder)
        (folder / "texts.txt").write_text("\n".join(texts))
        command = Command(bundle, folder / "texts.txt")
        calm, shaken, size = folder / "calm.npy", folder / "shaken.npy", count * bundle.dim * 4
        undisturbed = command.run(calm, size)
        print(f"undisturbed: {undisturbed.seconds:.0f} s, {undisturbed.settled:.0f} to {undisturbed.most:.0f} MiB")
        killed = command.run_killed(shaken, size, kills)
        return Bulk(count, found, undisturbed, killed, hash_file(calm) == hash_file(shaken))


def missed(found: Bulk) -> list[str]:
    """The targets that are missed; where others had the cores, CPU time tells the ratio."""
    ours = found.against_alone
    ratio = ours.cpu if ours.foreign.median > MOST_FOREIGN else ours.rates
    growth = found.undisturbed.most - found.undisturbed.settled
    return [
        *([f"{ratio.median:.3f} of the runner alone, {LEAST} is asked for"] if ratio.median < LEAST else []),
        *([f"memory grew by {growth:.0f} MiB"] if growth > MOST_GROWTH_MIB else []),
        *([] if found.identical else ["the killed run's output is another"]),
    ]


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.bulk", description="Whole files.")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=8, help="slices that the texts are cut into for the rate")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the runner alone, each turn")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.texts, options.turns, options.seconds, options.kills)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    misses = missed(found)
    print("\n".join(misses) or "all targets are met")
    if not options.no_save:
        command = f"python -m perf.bulk --texts {options.texts} --turns {options.turns} --seconds {options.seconds:g}"
        print(save_result(make_result("bulk", f"{command} --kills {options.kills}", {}, found)).relative_to(ROOT))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
