"""The ceiling: the server's own runner on its own graph and lanes, with no server around it."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnxruntime as ort
import tokenizers

from engine.runners.mixing import arrange
from engine.runners.onnx import SLOW_FUSIONS, OnnxRunner
from engine.scheduler import Limits
from ipc.bundle import TOKENIZER, Bundle
from ipc.messages import Ids


class Alone(msgspec.Struct, frozen=True):
    """One measurement: texts and tokens per second, and the threads' CPU time for a text in µs."""

    texts_rate: float
    tokens_rate: float
    cpu_us: float

    @property
    def total_cpu_us(self) -> float:
        """As that of a Phase: nothing else runs."""
        return self.cpu_us


@dataclass
class _Tally:
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_ns: int = 0


def token_ids(bundle: Bundle, texts: Sequence[str]) -> list[Ids]:
    """What a front end would send for these texts."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    return [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch_fast(list(texts))]


def equal_batches(texts: Sequence[Ids], limits: Limits, seed: int = 0) -> list[list[Ids]]:
    """Full batches of texts of one length each, shuffled; what fills no batch is left as a smaller one."""
    by_length: defaultdict[int, list[Ids]] = defaultdict(list)
    for text in texts:
        by_length[len(text)].append(text)
    batches = [
        group[first : first + limits.rows_of(length)]
        for length, group in by_length.items()
        for first in range(0, len(group), limits.rows_of(length))
    ]
    random.Random(seed).shuffle(batches)  # noqa: S311 - reproducible order, no secret
    return batches


def run_alone(runner: OnnxRunner, dim: int, batches: Sequence[list[Ids]], seconds: float) -> Alone:
    """Every lane runs batch after batch until the time is over."""
    tallies = [_Tally() for _ in range(runner.lanes)]
    stop = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(runner, dim, batches[lane :: runner.lanes], stop, tally))
        for lane, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    # Each lane by its own clock: they end at different times, each with a whole batch.
    return Alone(
        texts_rate=sum(tally.texts / tally.seconds for tally in tallies),
        tokens_rate=sum(tally.tokens / tally.seconds for tally in tallies),
        cpu_us=sum(tally.cpu_ns for tally in tallies) / sum(tally.texts for tally in tallies) / 1e3,
    )


def vectors_alone(runner: OnnxRunner, bundle: Bundle, texts: Sequence[str]) -> list[bytes]:
    """The bits of each text's vector, float32 [dim], alone in its batch."""
    row = np.empty((1, bundle.dim), np.float32)
    found = []
    for ids in token_ids(bundle, texts):
        runner.run([ids], row)
        found.append(row.tobytes())
    return found


def single_ms(session: ort.InferenceSession, text: Ids, seconds: float) -> float:
    """Median time of a batch of one, again and again for so long, with nothing else running."""
    batch = arrange([text])
    times: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while not times or time.perf_counter_ns() < end:
        began = time.perf_counter_ns()
        session.run(None, batch)
        times.append(time.perf_counter_ns() - began)
    return float(np.median(times)) / 1e6


def open_session(bundle: Bundle, threads: int) -> ort.InferenceSession:
    """The graph on the CPU with so many threads a run: what one text alone gains from more than one core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(
        bundle.graph("fp32"), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
    )


def _work(runner: OnnxRunner, dim: int, batches: Sequence[list[Ids]], stop: threading.Event, tally: _Tally) -> None:
    rows = np.empty((max(map(len, batches)), dim), np.float32)
    endless = itertools.cycle(batches)
    began, cpu = time.perf_counter(), time.thread_time_ns()
    while not stop.is_set():
        batch = next(endless)
        runner.run(batch, rows[: len(batch)])
        tally.texts += len(batch)
        tally.tokens += len(batch) * len(batch[0])
    tally.seconds, tally.cpu_ns = time.perf_counter() - began, time.thread_time_ns() - cpu
