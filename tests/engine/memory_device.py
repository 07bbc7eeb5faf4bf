"""A Device in memory, as lazy as CUDA allows: nothing on a stream is done before an event is waited for.

So a copy out of memory that was changed too early, a row that was read too early, or a run that did not wait for its
inputs gives wrong numbers here, every time. Addresses are real ones of this process.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.runners.buckets import Bucket
from engine.runners.device import EAGER, DeviceError, Host
from engine.runners.packing import shapes

POISON = 0xA5


@dataclass
class MemoryDevice:
    """Work is a queue for each stream; `synchronize` does what the event needs, and nothing more."""

    can_register: bool = True
    is_lost: bool = False
    allocations: int = 0
    registered: list[Host] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    _kept: list[Host] = field(default_factory=list)
    _work: defaultdict[int, deque[Callable[[], None]]] = field(default_factory=lambda: defaultdict(deque))
    _recorded: dict[int, tuple[int, int]] = field(default_factory=dict)
    _done: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _put: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    _names: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def _name(self) -> int:
        self._names += 1
        return self._names

    stream = event = _name

    def memory(self, size: int) -> int:
        return int(self.pinned(size).ctypes.data)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        self.allocations += 1
        self._kept.append(np.full(size, POISON, np.uint8))
        return self._kept[-1]

    def register(self, memory: Host) -> None:
        if not self.can_register:
            raise DeviceError("cudaHostRegister: operation not supported")
        self.registered.append(memory)

    def upload(self, target: int, source: Host, stream: int) -> None:
        self.put(stream, "upload", lambda: copy(target, source.ctypes.data, source.nbytes))

    def download(self, target: Host, source: int, stream: int) -> None:
        # What is read before the copy is done is nobody's vector.
        target[...] = np.nan
        self.put(stream, "download", lambda: copy(target.ctypes.data, source, target.nbytes))

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            self._recorded[event] = (stream, self._put[stream])

    def wait(self, stream: int, event: int) -> None:
        with self._lock:
            reached = self._recorded.get(event)
            self.put(stream, "wait", lambda: self._reach(reached))

    def synchronize(self, event: int) -> None:
        if self.is_lost:
            raise DeviceError("cudaEventSynchronize: an illegal memory access was encountered")
        with self._lock:
            self._reach(self._recorded.get(event))

    def put(self, stream: int, name: str, work: Callable[[], None]) -> None:
        with self._lock:
            self.calls.append(name)
            self._put[stream] += 1
            self._work[stream].append(work)

    def _reach(self, reached: tuple[int, int] | None) -> None:
        if reached is None:
            return
        stream, count = reached
        while self._done[stream] < count:
            self._done[stream] += 1
            self._work[stream].popleft()()


def copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def array(address: int, shape: tuple[int, ...], kind: type[np.int32] | type[np.float32]) -> Host:
    """What lies at an address."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    block = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return block.view(kind).reshape(shape)


@dataclass
class SumSession:
    """The "vector" of a text is its length, the sum of its ids, and that of ids times positions.

    `graphs` counts the launches of each graph's number. While `is_broken`, a launch raises.
    """

    device: MemoryDevice
    stream: int
    is_broken: bool = False
    graphs: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    launched: list[Bucket] = field(default_factory=list)
    owner: dict[int, tuple[Bucket, int]] = field(default_factory=dict)

    def bind(self, bucket: Bucket, inputs: Sequence[int], output: int, graph: int) -> Callable[[], None]:
        ids, positions, bounds, _ = (
            array(address, shape, np.int32) for address, shape in zip(inputs, shapes(bucket).values(), strict=True)
        )
        rows = array(output, (bucket.texts, 3), np.float32)
        assert (graph == EAGER) != bucket.is_captured
        if graph != EAGER:
            assert graph > 0
            assert graph not in self.owner, "a graph has one bucket and one place"
            self.owner[graph] = (bucket, output)

        def work() -> None:
            assert bounds[-1] == bucket.tokens
            for row, begin, end in zip(rows, bounds, bounds[1:], strict=False):
                row[:] = (end - begin, ids[begin:end].sum(), (ids[begin:end] * positions[begin:end]).sum())

        def launch() -> None:
            self.device.threads.add(threading.current_thread().name)
            self.graphs[graph] += 1
            self.launched.append(bucket)
            if self.is_broken:
                raise RuntimeError("the launch failed")
            self.device.put(self.stream, "run", work)

        return launch
