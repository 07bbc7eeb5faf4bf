"""How fast the runner is on its own, and where a batch's time goes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.runners.buckets import Buckets
from engine.runners.cuda import CudaRunner
from engine.runners.packing import empty, pack
from engine.scheduler import Limits
from ipc.messages import Ids
from ipc.slab import Rows
from perf.gpu.parts import Found, TimedDevice, form_batches

MOST_WASTE = 1.05


class Steps(Found, kw_only=True):
    """Medians in µs of one step after the other, nothing overlapping, and of the whole batch as it is served."""

    texts: int
    tokens: int
    padded: int
    pack: float
    h2d: float
    run: float
    d2h: float
    whole: float


class Rate(Found, kw_only=True):
    """The runner alone. `share` is of the measured rate of a large product; None where texts have several lengths."""

    texts_rate: float
    tokens_rate: float
    waste: float
    share: float | None = None


def step_times(
    timed: tuple[CudaRunner, TimedDevice],
    plain: CudaRunner,
    buckets: Buckets,
    batches: Mapping[str, Sequence[Ids]],
    slab: Rows,
    runs: int,
) -> dict[str, Steps]:
    """Each named batch, so many times; both runners are warm and have these buckets."""
    runner, device = timed
    found = {}
    for name, texts in batches.items():
        rows, tokens = slab[: len(texts)], sum(map(len, texts))
        bucket = buckets.choose(len(texts), tokens, max(map(len, texts)))
        arrays = empty(bucket)
        device.times.clear()
        for _ in range(runs):
            runner.run(texts, rows)
        steps = {step: statistics.median(device.times[step]) / 1e3 for step in ("h2d", "run", "d2h")}
        found[name] = Steps(
            texts=len(texts),
            tokens=tokens,
            padded=bucket.tokens,
            pack=_median_us(lambda t=texts, b=bucket, a=arrays: pack(t, b, a), runs),  # type: ignore[misc]
            whole=_median_us(lambda t=texts, r=rows: plain.run(t, r), runs),  # type: ignore[misc]
            h2d=steps["h2d"],
            run=steps["run"],
            d2h=steps["d2h"],
        )
    return found


def _median_us(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def rate(runner: CudaRunner, batches: Sequence[Sequence[Ids]], slab: Rows, seconds: float) -> Rate:
    """All lanes, each going round its part of the batches and writing to its part of the slab."""
    room = len(slab) // runner.lanes

    def work(lane: int) -> tuple[int, int, int, float]:
        texts = tokens = padding = 0
        rows = slab[lane * room : (lane + 1) * room]
        began = time.perf_counter()
        for batch in itertools.cycle(batches[lane :: runner.lanes]):
            padding += runner.run(batch, rows[: len(batch)])
            texts, tokens = texts + len(batch), tokens + sum(map(len, batch))
            if time.perf_counter() - began >= seconds:
                break
        return texts, tokens, padding, time.perf_counter() - began

    with ThreadPoolExecutor(runner.lanes) as lanes:
        done = list(lanes.map(work, range(runner.lanes)))
    # Each lane by its own clock: they end at different times, each with a whole batch.
    return Rate(
        texts_rate=sum(texts / spent for texts, _, _, spent in done),
        tokens_rate=sum(tokens / spent for _, tokens, _, spent in done),
        waste=1 + sum(padding for _, _, padding, _ in done) / sum(tokens for _, tokens, _, _ in done),
    )


def equal_rate(
    runner: CudaRunner,
    texts: Sequence[Ids],
    slab: Rows,
    limits: Limits,
    seconds: float,
    flops: float,
    peak: float,
    least: float = 0.0,
) -> Rate:
    """Full batches of texts of one length, `flops` each; `peak` FLOP/s is what the device was measured at."""
    found = rate(runner, form_batches(texts, limits)[:-1], slab, seconds)
    found.share = found.texts_rate * flops / peak
    if found.share < least:
        found.missed = [f"{found.share:.2f} of the measured matrix rate, {least} is the target"]
    return found


def mixed_rate(runner: CudaRunner, texts: Sequence[Ids], slab: Rows, limits: Limits, seconds: float) -> Rate:
    """Texts of any lengths in full batches, as the scheduler forms them while enough wait."""
    found = rate(runner, form_batches(texts, limits)[:-1], slab, seconds)
    if found.waste > MOST_WASTE:
        found.missed = [f"padded over real tokens are {found.waste:.3f}, {MOST_WASTE} is the target"]
    return found
