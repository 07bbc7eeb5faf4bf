"""The GPU's measurements, each a function of what it measures, so that all but the figures is tested on a CPU."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from engine.runners import Runner
from engine.scheduler import Limits
from ipc.messages import Ids
from ipc.slab import Rows
from perf.gpu.parts import Found, form_batches

MOST_LOSS = 1e-4
# Other programs on the device may take and give back some.
MOST_GROWTH_MIB = 2.0
KERNEL = re.compile(r"Operator=(\w+).*?SdpaKernel=(\w+)")
WANTED_KERNEL = "FLASH_ATTENTION"
MIB = 2**20


class Environment(Found, kw_only=True):
    """The device as nvidia-smi tells it: name, driver, memory, compute capability."""

    gpu: str
    onnxruntime: str
    cuda: str
    providers: list[str]


class Accuracy(Found, kw_only=True):
    """1 - cosine between the vectors of half and of single precision: results are rounded, and it is near 0."""

    texts: int
    largest_loss: float
    p99_loss: float
    mean_loss: float


class BatchSpread(Found, kw_only=True):
    """A text's vector alone against those in other company: how many have the same bits, and by how much not.

    A loss is 1 - cosine.
    """

    vectors: int
    same_bits: float
    largest_loss: float
    largest_difference: float


class MemoryUse(Found, kw_only=True):
    """MiB on the device before and after batches of random shapes, and what the process grew by on the host."""

    seconds: float
    batches: int
    device_before: float
    device_after: float
    host_growth: float


class Kernels(Found, kw_only=True):
    """Which kernels attention ran, and how often ONNX Runtime said so."""

    kernels: dict[str, int]


def embed(runner: Runner, texts: Sequence[Ids], dim: int, limits: Limits) -> Rows:
    """The vectors [texts, dim] of texts in batches in the given order; one by one where a batch has one length."""
    batches = form_batches(texts, limits) if runner.mixes_lengths else [[ids] for ids in texts]
    vectors, done = np.empty((len(texts), dim), np.float32), 0
    for batch in batches:
        runner.run(batch, vectors[done : done + len(batch)])
        done += len(batch)
    return vectors


def cosines(one: Rows, other: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each two rows; NaN where one of them is zero."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        found: np.ndarray[Any, np.dtype[np.float64]] = (a * b).sum(1) / (
            np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        )
    return found


def accuracy(runner: Runner, reference: Runner, texts: Sequence[Ids], dim: int, limits: Limits) -> Accuracy:
    """Half precision in full batches against single precision."""
    losses = 1 - cosines(embed(runner, texts, dim, limits), embed(reference, texts, dim, limits))
    largest = float(losses.max())
    # Written so that NaN is a miss.
    missed = [] if largest <= MOST_LOSS else [f"the lowest cosine is {1 - largest:.6f}, {1 - MOST_LOSS} is the target"]
    return Accuracy(
        texts=len(texts),
        largest_loss=largest,
        p99_loss=float(np.quantile(losses, 0.99)),
        mean_loss=float(losses.mean()),
        missed=missed,
    )


def batch_spread(runner: Runner, texts: Sequence[Ids], dim: int, limits: Limits, sizes: Sequence[int]) -> BatchSpread:
    """Each text alone, and once in a batch of each of these sizes, in another order every time."""
    alone = embed(runner, texts, dim, replace(limits, rows=1))
    chance = np.random.default_rng(0)
    same, loss, largest = [], 0.0, 0.0
    for rows in sizes:
        order = chance.permutation(len(texts))
        together = np.empty_like(alone)
        together[order] = embed(runner, [texts[n] for n in order], dim, replace(limits, rows=rows))
        same.append((together.view(np.uint32) == alone.view(np.uint32)).all(axis=1))
        loss = max(loss, float((1 - cosines(alone, together)).max()))
        largest = max(largest, float(np.abs(alone - together).max()))
    bits = np.concatenate(same)
    return BatchSpread(vectors=len(bits), same_bits=float(bits.mean()), largest_loss=loss, largest_difference=largest)


def random_shapes(
    runner: Runner, used: Callable[[], int], slab: Rows, limits: Limits, longest: int, seconds: float
) -> MemoryUse:
    """Batches of random sizes for so long; `used` gives the bytes taken on the device."""
    chance, batches = np.random.default_rng(0), 0
    before, host = used(), _host_mib()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or not batches:
        lengths = chance.integers(1, 1 + chance.integers(1, longest + 1), chance.integers(1, limits.rows + 1))
        lengths = lengths[np.cumsum(lengths) <= limits.tokens]
        texts = [np.ones(length, np.int32) for length in lengths]
        if texts:
            runner.run(texts, slab[: len(texts)])
            batches += 1
    after = used()
    growth = (after - before) / MIB
    missed = [f"the device's memory grew by {growth:.1f} MiB"] if growth > MOST_GROWTH_MIB else []
    return MemoryUse(
        seconds=time.perf_counter() - began,
        batches=batches,
        device_before=before / MIB,
        device_after=after / MIB,
        host_growth=_host_mib() - host,
        missed=missed,
    )


def _host_mib() -> float:
    """The most that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attention_kernels(command: Sequence[str], folder: Path) -> Kernels:
    """Run a program that runs the model, and read what ONNX Runtime says of its attention. Raises RuntimeError."""
    done = subprocess.run(  # noqa: S603 - our own command
        command,
        env={**os.environ, "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    kernels = Counter(" ".join(names) for names in KERNEL.findall(done.stdout + done.stderr))
    if not kernels:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"ONNX Runtime named no attention kernel (exit status {done.returncode}): {''.join(last)}")
    missed = [f"attention ran {name}" for name in kernels if not name.endswith(f" {WANTED_KERNEL}")]
    return Kernels(kernels=dict(kernels), missed=missed)


def environment(providers: list[str]) -> Environment:
    """Raises RuntimeError where there is no driver, or an ONNX Runtime without CUDA."""
    fields = "name,driver_version,memory.total,compute_cap"
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own program
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],  # noqa: S607 - wherever the driver put it
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"nvidia-smi does not run: install NVIDIA's driver ({error})") from error
    if "CUDAExecutionProvider" not in providers:
        raise RuntimeError("this ONNX Runtime has no CUDA: install onnxruntime-gpu in place of onnxruntime")
    return Environment(
        gpu=done.stdout.strip(),
        onnxruntime=ort.__version__,
        cuda=str(getattr(ort, "cuda_version", "unknown")),
        providers=providers,
    )
