"""A running server looked at again and again: what each process holds, and what is in the run directory."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import numpy as np

from perf.procfs import Meter, Usage, descriptors, mappings, memory
from perf.stack import Stack

# What a server in operation is asked all the time: by Prometheus, and by whoever sends it requests.
PROBES: Final = ("/metrics", "/ready")
PROBE_SECONDS: Final = 10.0
GENERATOR: Final = "generator"

# Kind → process, or place → value.
Sample: TypeAlias = dict[str, dict[str, float]]
Series: TypeAlias = dict[str, dict[str, list[float]]]


class Tracks(msgspec.Struct, frozen=True):
    """Samples over time, medians of a few each: seconds since the beginning, and by kind and name a value for each.

    "rss" and "pss" are MiB, "descriptors" and "mappings" counts, all by process; "files" are those in the run
    directory and in its folder of metrics, "rows" those of the slab that were lent at the moment.
    """

    seconds: list[float]
    values: Series


class Watch:
    """Looks at a server `count` times in `seconds`, evenly, and reads CPU clocks at the ends of so many `parts`.

    `on_part` is told of each that has ended. A process that ends ends the watch, as RuntimeError.
    """

    def __init__(
        self, stack: Stack, seconds: float, count: int, parts: int, on_part: Callable[[int, Sample, Usage], None]
    ) -> None:
        assert count % parts == 0, "parts end where samples are taken"
        self._stack = stack
        self._every = seconds / count
        self._count = count
        self._per_part = count // parts
        self._on_part = on_part
        self._pids = pids_of(stack)
        self._meter = Meter(self._pids)
        self._times: list[float] = []
        self._samples: list[Sample] = []
        self.usages: list[Usage] = []
        self.probes: Counter[str] = Counter()

    async def run(self, has_failed: Callable[[], bool]) -> None:
        """To the end, or until what is watched `has_failed`."""
        began = time.monotonic()
        for number in range(self._count + 1):
            await asyncio.sleep(max(0.0, began + number * self._every - time.monotonic()))
            if has_failed():
                break
            # In a thread: what the kernel takes to count pages would be latency otherwise.
            await asyncio.to_thread(self._look, number, began)

    def tracks(self, width: float) -> Tracks:
        """What was seen, a median for each `width` seconds."""
        return condense(self._times, self._samples, width)

    def _look(self, number: int, began: float) -> None:
        try:
            if number % self._per_part == 0:
                self._meter.window(False)
                if number:
                    self.usages.append(self._meter.usage)
                self._meter.window(True)
            sample = look(self._pids, self._stack.run_dir)
        # The kernel gives an empty file for a process that has ended, and is not yet waited for.
        except (OSError, KeyError):
            raise RuntimeError(
                f"A process of the server ended after {(time.monotonic() - began) / 60:.1f} minutes; its log has "
                f"{dict(complaints(self._stack.log)) or 'no complaint'}"
            ) from None
        self._times.append(time.monotonic() - began)
        self._samples.append(sample)
        for path in PROBES:
            self.probes["answered" if answers(self._stack.url + path) else f"failed {path}"] += 1
        if number and number % self._per_part == 0:
            self._on_part(number // self._per_part, sample, self.usages[-1])


def pids_of(stack: Stack) -> dict[str, int]:
    """The server's processes by name."""
    assert stack.process is not None, "the server runs"
    return {
        "engine": stack.pids("engine")[0],
        **{f"frontend-{n}": pid for n, pid in enumerate(stack.pids("frontend"))},
        "supervisord": int((stack.run_dir / "supervisord.pid").read_text()),
        "serve": stack.process.pid,
    }


def look(pids: dict[str, int], run_dir: Path) -> Sample:
    """As it is now, this process with it. Raises OSError or KeyError where a process has ended."""
    pids = {**pids, GENERATOR: os.getpid()}
    held = {name: memory(pid) for name, pid in pids.items()}
    return {
        "rss": {name: each.rss for name, each in held.items()},
        "pss": {name: each.pss for name, each in held.items()},
        "descriptors": {name: descriptors(pid) for name, pid in pids.items()},
        "mappings": {name: mappings(pid) for name, pid in pids.items()},
        "files": {"run": len(list(run_dir.iterdir())), "metrics": len(list((run_dir / "metrics").iterdir()))},
        "rows": {"lent": lent_rows(run_dir)},
    }


def lent_rows(run_dir: Path) -> int:
    """Rows of all slabs that are lent to front ends."""
    return sum(int(np.count_nonzero(np.fromfile(path, np.uint32))) for path in run_dir.glob("slab-*.leases"))


def condense(times: Sequence[float], samples: Sequence[Sample], width: float) -> Tracks:
    """The median of all samples in each `width` seconds."""
    places = (np.array(times) / width).astype(int)
    groups = [places == place for place in np.unique(places)]

    def medians(values: Sequence[float]) -> list[float]:
        return [float(np.median(np.array(values)[group])) for group in groups]

    return Tracks(
        medians(times),
        {
            kind: {name: medians([sample[kind][name] for sample in samples]) for name in names}
            for kind, names in samples[0].items()
        },
    )


def answers(url: str) -> bool:
    """Whether a GET gets 200, to the end of the body."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as answer:  # noqa: S310 - our own http URL
            answer.read()
            return bool(answer.status == 200)
    except OSError:
        return False


def complaints(log: Path) -> Counter[str]:
    """What the log says above INFO: "LEVEL message" → how often."""
    found: Counter[str] = Counter()
    with log.open("rb") as lines:
        for line in lines:
            # Nearly all lines are of requests, and need not be read.
            if b'"level":"INFO"' not in line and line.startswith(b"{"):
                try:
                    entry = msgspec.json.decode(line)
                    found[f"{entry['level']} {entry['message']}"] += 1
                except (msgspec.DecodeError, KeyError):
                    found["a line that is no JSON"] += 1
    return found
