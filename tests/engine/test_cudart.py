"""The calls of the CUDA runtime by its documented signatures: a runtime in memory that does everything at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from engine.runners import cudart
from engine.runners.buckets import Buckets
from engine.runners.cuda import CudaRunner
from engine.runners.cudart import SIGNATURES, CudaDevice
from engine.runners.device import DeviceError
from ipc.errors import StartError
from tests.engine.memory_device import MemoryDevice, SumSession

OUT_OF_MEMORY = 2
NO_DEVICE = 100
REASONS = {OUT_OF_MEMORY: b"out of memory", NO_DEVICE: b"no CUDA-capable device is detected"}
FREE, TOTAL = 3 << 30, 8 << 30


@dataclass
class Runtime:
    """The functions by their C names and arguments; `fails` gives a function's error code."""

    fails: dict[str, int] = field(default_factory=dict)
    kept: list[object] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    handles: set[int] = field(default_factory=set)
    flags: dict[str, int] = field(default_factory=dict)
    registered: dict[int, int] = field(default_factory=dict)
    errors_taken: int = 0

    def __getattribute__(self, name: str) -> Callable[..., object]:
        function: Callable[..., object] = object.__getattribute__(self, name)
        fails: dict[str, int] = object.__getattribute__(self, "fails")
        return (lambda *_: fails[name]) if name in fails else function

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802
        assert device == 0
        return 0

    def cudaGetLastError(self) -> int:  # noqa: N802
        self.errors_taken += 1
        return 0

    def cudaGetErrorString(self, code: int) -> bytes:  # noqa: N802
        return REASONS[code]

    def _handle(self, target: object, kind: str, flags: int) -> int:
        self.flags[kind] = flags
        self.handles.add(len(self.handles) + 1000)
        set_pointer(target, len(self.handles) + 999)
        return 0

    def cudaStreamCreateWithFlags(self, stream: object, flags: int) -> int:  # noqa: N802
        return self._handle(stream, "stream", flags)

    def cudaEventCreateWithFlags(self, event: object, flags: int) -> int:  # noqa: N802
        return self._handle(event, "event", flags)

    def cudaMalloc(self, target: object, size: int) -> int:  # noqa: N802
        self.cudaHostAlloc(target, size, 0)
        self.sizes[target._obj.value] = size  # type: ignore[attr-defined]
        return 0

    def cudaHostAlloc(self, target: object, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 0
        block = (ctypes.c_uint8 * size)()
        self.kept.append(block)
        set_pointer(target, ctypes.addressof(block))
        return 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 0
        self.registered[address] = size
        return 0

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:  # noqa: N802
        assert kind in (1, 2), "host to device, device to host"
        on_device = target if kind == 1 else source
        assert any(begin <= on_device and on_device + size <= begin + had for begin, had in self.sizes.items())
        assert stream in self.handles
        ctypes.memmove(target, source, size)
        return 0

    def cudaEventRecord(self, event: int, stream: int) -> int:  # noqa: N802
        assert {event, stream} <= self.handles
        return 0

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> int:  # noqa: N802
        assert {event, stream} <= self.handles
        assert flags == 0
        return 0

    def cudaEventSynchronize(self, event: int) -> int:  # noqa: N802
        assert event in self.handles
        return 0

    def cudaMemGetInfo(self, free: object, total: object) -> int:  # noqa: N802
        set_pointer(free, FREE)
        set_pointer(total, TOTAL)
        return 0


def set_pointer(reference: object, value: int) -> None:
    """What C does through a pointer."""
    reference._obj.value = value  # type: ignore[attr-defined]


class AtOnce(MemoryDevice):
    """Runs at once, as everything in this file."""

    def put(self, stream: int, name: str, work: Callable[[], None]) -> None:
        work()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(cudart, "load_library", lambda: made)
    return made


def test_a_batch_goes_to_the_device_and_back(runtime: Runtime) -> None:
    session = SumSession(AtOnce(), 0)
    runner = CudaRunner(CudaDevice(), lambda _: session, Buckets(8, 200, 60), 3)
    rows = np.zeros((8, 3), np.float32)
    runner.warm_up(rows[:4])
    texts = [np.array(ids, np.int32) for ids in ([4, 5], [7], [1, 2, 3])]
    runner.run(texts, rows[2:5])
    runner.close()
    assert rows[2:5].tolist() == [[2, 9, 5], [1, 7, 0], [3, 6, 8]]
    assert runtime.registered == {rows.ctypes.data: rows.nbytes}


def test_streams_are_independent_and_events_let_a_thread_sleep(runtime: Runtime) -> None:
    device = CudaDevice()
    assert device.stream() != device.event()
    assert runtime.flags == {"stream": 1, "event": 1 | 2}


def test_used_memory_is_what_is_not_free(runtime: Runtime) -> None:
    assert CudaDevice().used() == TOTAL - FREE


def test_every_function_that_is_called_has_its_types(runtime: Runtime) -> None:
    own = {name for name in vars(Runtime) if name.startswith("cuda")}
    assert own - {"cudaGetLastError", "cudaGetErrorString"} == set(SIGNATURES)


def test_a_refusal_names_the_function_and_the_reason(runtime: Runtime) -> None:
    device = CudaDevice()
    runtime.fails["cudaMalloc"] = OUT_OF_MEMORY
    with pytest.raises(DeviceError, match="cudaMalloc: out of memory"):
        device.memory(8)
    assert runtime.errors_taken == 1


def test_a_machine_without_a_gpu_is_told_so(runtime: Runtime) -> None:
    runtime.fails["cudaSetDevice"] = NO_DEVICE
    with pytest.raises(StartError, match="no CUDA-capable device"):
        CudaDevice()
