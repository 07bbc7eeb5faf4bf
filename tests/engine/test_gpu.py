from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry

from engine import gpu
from engine.gpu import METRICS, POWER, TEMPERATURE, TOTAL, USED, UTILIZATION, Gpu, GpuMetrics, open_gpu, own_uuid
from engine.runners.device import DeviceError

IDENTITY = "01010101-0101-0101-0101-010101010101"
ALL = {USED: 20.0, TOTAL: 80.0, UTILIZATION: 0.5, TEMPERATURE: 61.0, POWER: 300.5}


class Driver:
    """NVML in memory: pynvml's functions that are used, with its own errors. `fails` maps some to error codes."""

    NVMLError = pynvml.NVMLError
    NVMLError_NotFound = pynvml.NVMLError_NotFound
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self, name: str = f"GPU-{IDENTITY}") -> None:
        self._name = name
        self.fails: dict[str, int] = {}

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as all below
        self._called("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        if name != self._name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return name

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return self._called("nvmlDeviceGetMemoryInfo", handle, SimpleNamespace(used=20, free=60, total=80))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return self._called("nvmlDeviceGetUtilizationRates", handle, SimpleNamespace(gpu=50, memory=10))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:  # noqa: N802
        return self._called("nvmlDeviceGetTemperature", handle, 61 if sensor == self.NVML_TEMPERATURE_GPU else 0)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:  # noqa: N802
        return self._called("nvmlDeviceGetPowerUsage", handle, 300_500)

    def _called(self, function: str, handle: str | None = None, found: object = None) -> object:
        assert handle in {None, self._name}
        if function in self.fails:
            raise pynvml.NVMLError(self.fails[function])
        return found


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name)


@pytest.mark.parametrize("name", [f"GPU-{IDENTITY}", f"MIG-{IDENTITY}"])
def test_a_gpu_or_a_part_of_one_is_found_by_cudas_uuid(name: str) -> None:
    assert Gpu(Driver(name), IDENTITY).read() == ALL


def test_a_gpu_that_nvml_does_not_know_and_a_driver_that_does_not_start_are_told() -> None:
    with pytest.raises(DeviceError, match="NVML: Not Found"):
        Gpu(Driver("GPU-another"), IDENTITY)
    driver = Driver()
    driver.fails = {"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
    with pytest.raises(DeviceError, match=r"NVML: .*mismatch"):
        Gpu(driver, IDENTITY)


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        ("nvmlDeviceGetMemoryInfo", {USED, TOTAL}),
        ("nvmlDeviceGetUtilizationRates", {UTILIZATION}),
        ("nvmlDeviceGetTemperature", {TEMPERATURE}),
        ("nvmlDeviceGetPowerUsage", {POWER}),
    ],
)
def test_what_a_gpu_does_not_have_is_no_metric(function: str, gone: set[str]) -> None:
    driver, registry = Driver(), CollectorRegistry()
    driver.fails = {function: pynvml.NVML_ERROR_NOT_SUPPORTED}
    GpuMetrics(registry, Gpu(driver, IDENTITY)).refresh()
    assert {name: value(registry, name) for name in METRICS} == ALL | dict.fromkeys(gone, None)


def test_a_gpu_that_is_lost_is_logged_once_and_has_no_numbers(caplog: pytest.LogCaptureFixture) -> None:
    driver, registry = Driver(), CollectorRegistry()
    metrics = GpuMetrics(registry, Gpu(driver, IDENTITY))
    metrics.refresh()
    for _ in range(2):
        driver.fails = {"nvmlDeviceGetUtilizationRates": pynvml.NVML_ERROR_GPU_IS_LOST}
        for _ in range(3):
            metrics.refresh()
        assert all(math.isnan(value(registry, name) or 0) for name in METRICS)
        driver.fails = {}
        metrics.refresh()
        assert {name: value(registry, name) for name in METRICS} == ALL
    assert [record.getMessage() for record in caplog.records] == 2 * ["the GPU's metrics are gone"]


def test_without_a_driver_there_is_one_line_and_no_metric(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> Gpu:
        raise DeviceError("no GPU")

    monkeypatch.setattr(gpu, "open_gpu", nothing)
    registry = CollectorRegistry()
    gpu._watch(registry)
    assert not list(registry.collect())
    ((level, message, reason),) = [(r.levelno, r.getMessage(), vars(r)["reason"]) for r in caplog.records]
    assert (level, message, reason) == (logging.WARNING, "the GPU's metrics are not there", "no GPU")


def test_a_library_that_is_no_driver_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loader's own error, then libraries that lack the functions: here the C library stands for one."""
    monkeypatch.setattr(gpu, "CUDA_DRIVER", str(tmp_path / "none.so"))
    with pytest.raises(DeviceError, match="NVIDIA's driver cannot be loaded"):
        own_uuid()
    monkeypatch.setattr(gpu, "CUDA_DRIVER", None)
    with pytest.raises(DeviceError, match=r"older than CUDA 11\.4"):
        open_gpu()
