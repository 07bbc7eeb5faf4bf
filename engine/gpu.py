"""The engine's own GPU for Prometheus, as NVIDIA's driver tells it (NVML).

A thread reads it: the driver may take its time, and other threads run while it does. What cannot be read is no metric
and one log line; the engine needs none of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge

from engine.runners.device import DeviceError

log = logging.getLogger(__name__)

READ_SECONDS: Final = 2.0
CUDA_DRIVER = "libcuda.so.1"
USED, TOTAL = "embedlane_gpu_memory_used_bytes", "embedlane_gpu_memory_total_bytes"
UTILIZATION, TEMPERATURE = "embedlane_gpu_utilization_ratio", "embedlane_gpu_temperature_celsius"
POWER = "embedlane_gpu_power_watts"
METRICS: Final = {
    USED: "Memory of the engine's GPU that is taken, by all programs.",
    TOTAL: "Memory of the engine's GPU.",
    UTILIZATION: "Part of the time in which the engine's GPU ran anything, of any program.",
    TEMPERATURE: "Temperature of the engine's GPU.",
    POWER: "What the engine's GPU draws.",
}


class Gpu:
    """One GPU, found by the UUID that CUDA has for it. `nvml` is the module pynvml, or what has its functions."""

    def __init__(self, nvml: Any, identity: str) -> None:
        """Raises DeviceError where NVML cannot be used or knows no such GPU."""
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._gpu = self._find(identity)
        except nvml.NVMLError as error:
            raise DeviceError(f"NVML: {error}") from error

    def read(self) -> dict[str, float]:
        """The metrics by name, without those that this GPU does not have. Raises DeviceError."""
        nvml, gpu, found = self._nvml, self._gpu, dict[str, float]()
        try:
            with contextlib.suppress(nvml.NVMLError_NotSupported):
                memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
                found |= {USED: memory.used, TOTAL: memory.total}
            with contextlib.suppress(nvml.NVMLError_NotSupported):
                found[UTILIZATION] = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
            with contextlib.suppress(nvml.NVMLError_NotSupported):
                found[TEMPERATURE] = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
            with contextlib.suppress(nvml.NVMLError_NotSupported):
                found[POWER] = nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
        except nvml.NVMLError as error:
            raise DeviceError(f"NVML: {error}") from error
        return found

    def _find(self, identity: str) -> Any:
        with contextlib.suppress(self._nvml.NVMLError_NotFound):
            return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
        # A part of a GPU.
        return self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{identity}")


def open_gpu() -> Gpu:
    """The GPU that this process computes on. Raises DeviceError with what is missing."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError("the package nvidia-ml-py is not installed") from error
    return Gpu(pynvml, own_uuid())


def own_uuid() -> str:
    """UUID of CUDA's device 0, which CUDA_VISIBLE_DEVICES and CUDA's own order make another than NVML's.

    Raises DeviceError where there is none.
    """
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        cuda = ctypes.CDLL(CUDA_DRIVER)
        calls: list[Callable[[], int]] = [
            lambda: cuda.cuInit(0),
            lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
            lambda: cuda.cuDeviceGetUuid_v2(found, device),
        ]
    except OSError as error:
        raise DeviceError(f"NVIDIA's driver cannot be loaded: {error}") from error
    try:
        code = next(filter(None, (call() for call in calls)), 0)
    except AttributeError as error:
        raise DeviceError(f"NVIDIA's driver is older than CUDA 11.4: {error}") from error
    if code:
        raise DeviceError(f"NVIDIA's driver gives no GPU: CUDA error {code}")
    return str(uuid.UUID(bytes=bytes(found)))


class GpuMetrics:
    """Gauges that appear with the first reading; while there is none they are NaN."""

    def __init__(self, registry: CollectorRegistry, gpu: Gpu) -> None:
        self._registry = registry
        self._gpu = gpu
        self._gauges: dict[str, Gauge] = {}
        self._is_lost = False

    def refresh(self) -> None:
        """Read the GPU; that it cannot be read is logged once, until it can."""
        found: dict[str, float] = {}
        was_lost, self._is_lost = self._is_lost, False
        try:
            found = self._gpu.read()
        except DeviceError as error:
            self._is_lost = True
            if not was_lost:
                log.warning("the GPU's metrics are gone", extra={"reason": str(error)})
        for name in self._gauges.keys() | found.keys():
            self._gauge(name).set(found.get(name, math.nan))

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, METRICS[name], registry=self._registry, multiprocess_mode="livesum")
        return self._gauges[name]


def watch_gpu(registry: CollectorRegistry) -> None:
    """Read the GPU from now on, in a thread that ends with the process; where there is nothing to read, say so once."""
    threading.Thread(target=_watch, args=(registry,), name="gpu", daemon=True).start()


def _watch(registry: CollectorRegistry) -> None:
    try:
        metrics = GpuMetrics(registry, open_gpu())
    except DeviceError as error:
        log.warning("the GPU's metrics are not there", extra={"reason": str(error)})
        return
    while True:
        metrics.refresh()
        time.sleep(READ_SECONDS)
