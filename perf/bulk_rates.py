"""Whole files against the runner alone, by turns in one process, and where a text's CPU time goes."""

from __future__ import annotations

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
from ipc.bundle import Bundle
from ipc.messages import Ids
from ipc.settings import DEFAULT_MODEL, Settings
from ipc.slab import Rows
from perf.alone import Alone, equal_batches, run_alone, token_ids
from perf.procfs import Meter
from perf.stats import Spread, spread
from tools.embed.job import Model, Options, embed
from tools.embed.local import Local, with_bulk_batches
from tools.embed.window import Job, Window

ALONE_TEXTS: Final = 32_768


class Slice(msgspec.Struct, frozen=True):
    """One turn of whole files. `parts` is CPU time a text in µs: the model, what is around it in the lanes, tokenizing
    and sorting, writing, and the rest, which is mostly reading.
    """

    texts_rate: float
    tokens_rate: float
    cpu_us: float
    parts: dict[str, float]
    foreign: float


class Rates(msgspec.Struct, frozen=True):
    """Ratios to the runner alone with as large batches, of tokens/s and of CPU time a token.

    `of_served` is that of CPU time to the runner alone with batches as a server has them; `parts` as in Slice, medians.
    """

    rates: Spread
    cpu: Spread
    of_served: Spread
    alone_rate: Spread
    texts_rate: Spread
    parts: dict[str, float]
    foreign: Spread


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
        self.bundle = bundle
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
    served = Settings(model=str(bundle.folder))
    runner = OnnxRunner(bundle, served.device, served.lanes)
    settings = with_bulk_batches(served, runner.device)
    backend = TimedLocal(settings, bundle, runner)
    ids, each = token_ids(bundle, texts[:ALONE_TEXTS]), len(texts) // turns
    large, small = (equal_batches(ids, Limits(s.max_batch_rows, s.max_batch_tokens, 0, 1)) for s in (settings, served))
    run_alone(runner, bundle.dim, large, seconds / 2)
    alone, alone_served, slices = [run_alone(runner, bundle.dim, large, seconds)], [], []
    for turn in range(turns):
        slices.append(_slice(backend, texts[turn * each : (turn + 1) * each], folder))
        alone.append(run_alone(runner, bundle.dim, large, seconds))
        alone_served.append(run_alone(runner, bundle.dim, small, seconds))
        print(f"turn {turn + 1} of {turns}: alone {alone[-1].texts_rate:.0f}, bulk {slices[-1].texts_rate:.0f} texts/s")
    return _compare(alone, alone_served, slices)


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
    tokens = sum(map(len, token_ids(backend.bundle, texts)))
    return Slice(count / usage.seconds, tokens / usage.seconds, used / count / 1e3, parts, usage.foreign)


def _compare(alone: Sequence[Alone], served: Sequence[Alone], slices: Sequence[Slice]) -> Rates:
    pairs = list(zip(alone, alone[1:], slices, strict=False))
    return Rates(
        rates=spread([2 * each.tokens_rate / (a.tokens_rate + b.tokens_rate) for a, b, each in pairs]),
        cpu=spread([(_token_us(a) + _token_us(b)) / 2 / _token_us(each) for a, b, each in pairs]),
        of_served=spread([_token_us(a) / _token_us(each) for a, each in zip(served, slices, strict=True)]),
        alone_rate=spread([each.texts_rate for each in alone]),
        texts_rate=spread([each.texts_rate for each in slices]),
        parts={name: spread([each.parts[name] for each in slices]).median for name in slices[0].parts},
        foreign=spread([each.foreign for each in slices]),
    )


def _token_us(each: Alone | Slice) -> float:
    """CPU time of a token: a short phase may have got the longer texts."""
    return each.cpu_us * each.texts_rate / each.tokens_rate
