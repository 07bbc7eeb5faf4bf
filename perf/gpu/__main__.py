"""Everything that is to be known of the CUDA path, in one command on a machine with a GPU.

    python -m perf.gpu                        about 40 minutes
    python -m perf.gpu --stages accuracy steps
    python -m perf.gpu --seconds 5 --memory-seconds 20

A stage that fails, or misses a target, is in the result with a sentence, and the others go on. The exit status is 1
then. The default model is prepared with its half-precision graph, and so is a model of BERT-base's shape with random
weights, both below data/gpu.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnxruntime as ort

from engine.runners.buckets import Buckets
from engine.runners.cuda import LANES, PROVIDER, CudaRunner, OrtSession, cuda_options, open_cuda_runner
from engine.runners.cudart import CudaDevice
from engine.runners.onnx import OnnxRunner
from engine.scheduler import Limits
from ipc.bundle import TOKENIZER, Bundle, load_bundle
from ipc.messages import Ids
from ipc.settings import DEFAULT_MODEL, Settings
from ipc.slab import Rows
from perf.alone import token_ids
from perf.gpu import server
from perf.gpu.parts import BERT_BASE, MINILM, Found, Shape, TimedDevice, TimedSession, matrix_rate, write_checkpoint
from perf.gpu.rates import Rate, Steps, equal_rate, mixed_rate, step_times
from perf.gpu.server import Load, Offered, Saturated
from perf.gpu.stages import (
    Accuracy,
    BatchSpread,
    Environment,
    Kernels,
    MemoryUse,
    accuracy,
    attention_kernels,
    batch_spread,
    environment,
    random_shapes,
)
from perf.results import ROOT, make_result, save_result
from perf.texts import exact_texts, make_texts

ROWS, TOKENS = 1024, 16_384
SERVER: Final = {
    "device": "cuda",
    "max_batch_rows": ROWS,
    "max_batch_tokens": TOKENS,
    "max_wait_ms": 1,
    "slab_rows": 32_768,
}
LIMITS = Limits(ROWS, TOKENS, 0, queue_items=1 << 20, mixes_lengths=True)
MATRIX_SIZE, MATRIX_RUNS = 8192, 50
REFERENCE_TEXTS = ROOT / "tests" / "reference" / "texts.json"


class Stage(msgspec.Struct, kw_only=True):
    """What became of a stage: `reason` says why it failed, `found` is its own, None where it did."""

    status: Literal["passed", "missed", "failed"]
    seconds: float
    found: Found | dict[str, Any] | None = None
    reason: str | None = None


class Model:
    """A bundle on the GPU, opened when it is first asked for, with rows for all lanes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle: Bundle = load_bundle(folder)
        self.buckets = Buckets(ROWS, TOKENS, self.bundle.max_tokens)
        self.slab: Rows = np.zeros((LANES * ROWS, self.bundle.dim), np.float32)

    @cached_property
    def runner(self) -> CudaRunner:
        """As the engine has it, warm; the slab is page-locked then."""
        settings = Settings(max_batch_rows=ROWS, max_batch_tokens=TOKENS)
        runner = open_cuda_runner(settings, self.bundle, go_on)
        runner.warm_up(self.slab[:ROWS])
        return runner

    @cached_property
    def timed(self) -> tuple[CudaRunner, TimedDevice]:
        """The same with a clock at each step, one batch at a time."""
        device = TimedDevice(CudaDevice())

        def open_session(stream: int) -> TimedSession:
            session = OrtSession(self.bundle.graph("fp16"), PROVIDER, cuda_options(stream), self.bundle.dim)
            return TimedSession(session, device, stream)

        runner = CudaRunner(device, open_session, self.buckets, self.bundle.dim, lanes=1, end=go_on)
        runner.warm_up(np.zeros((ROWS, self.bundle.dim), np.float32))
        return runner, device

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """As a front end would send them: with special tokens, cut to the model's longest."""
        return [ids[: self.bundle.max_tokens] for ids in token_ids(self.bundle, texts)]


class Gpu:
    """The stages, in order. Each method is one; what they share is made by the first that needs it."""

    def __init__(self, seconds: float, memory_seconds: float, frontends: list[int]) -> None:
        self._seconds = seconds
        self._memory_seconds = memory_seconds
        self._frontends = frontends

    @cached_property
    def _minilm(self) -> Model:
        return Model(prepare(DEFAULT_MODEL, ROOT / "data" / "gpu" / "minilm"))

    @cached_property
    def _bert_base(self) -> Model:
        target = ROOT / "data" / "gpu" / "bert-base"
        if not (target / "bundle.json").is_file():
            with tempfile.TemporaryDirectory() as folder:
                source = write_checkpoint(Path(folder) / "model", BERT_BASE, self._minilm.bundle.path(TOKENIZER))
                target = prepare(str(source), target)
        return Model(target)

    @cached_property
    def _peak(self) -> float:
        return matrix_rate(PROVIDER, MATRIX_SIZE, MATRIX_RUNS)

    def environment(self) -> Environment:
        """Device, driver, versions."""
        return environment(ort.get_available_providers())

    def kernels(self) -> Kernels:
        """Which attention ran, by ONNX Runtime's own report in another process."""
        return attention_kernels([sys.executable, "-m", "perf.gpu", "--stages", "spread", "--no-save"], ROOT)

    def accuracy(self) -> Accuracy:
        """Half precision against single precision on the CPU, on the reference texts and on texts of all lengths."""
        real = [entry["text"] for entry in msgspec.json.decode(REFERENCE_TEXTS.read_bytes())]
        texts, model = self._minilm.ids([*real, *make_texts("mixed", 1000)]), self._minilm
        reference = OnnxRunner(model.bundle, "cpu", 1)
        return accuracy(model.runner, reference, texts, model.bundle.dim, LIMITS)

    def spread(self) -> BatchSpread:
        """Alone against company."""
        model = self._minilm
        texts = model.ids(make_texts("mixed", 500))
        return batch_spread(model.runner, texts, model.bundle.dim, LIMITS, (2, 7, 32, 200))

    def steps(self) -> dict[str, Steps]:
        """Pack, upload, run, download at batches of 1, 32 and as many as there may be."""
        found: dict[str, Steps] = {}
        for name, model in (("minilm", self._minilm), ("bert-base", self._bert_base)):
            for length in (16, 128):
                ids = model.ids(exact_texts(length, ROWS))
                sizes = {f"{n} x {length}": ids[:n] for n in (1, 32, min(ROWS, TOKENS // length))}
                steps = step_times(model.timed, model.runner, model.buckets, sizes, model.slab, runs=100)
                found |= {f"{name} {size}": step for size, step in steps.items()}
        return found

    def matrix(self) -> dict[str, float]:
        """FLOP/s of a large product: what shares are of."""
        return {"flops": self._peak}

    def rates(self) -> dict[str, Rate]:
        """The runner alone."""
        found = {
            "minilm 16": self._equal(self._minilm, MINILM, 16),
            "minilm 128": self._equal(self._minilm, MINILM, 128),
            "bert-base 50": self._equal(self._bert_base, BERT_BASE, 50),
            "bert-base 128": self._equal(self._bert_base, BERT_BASE, 128, least=0.40),
            "bert-base 512": self._equal(self._bert_base, BERT_BASE, 512),
        }
        for name, model in (("minilm", self._minilm), ("bert-base", self._bert_base)):
            ids = model.ids(make_texts("mixed", 20_000))
            found[f"{name} mixed"] = mixed_rate(model.runner, ids, model.slab, LIMITS, self._seconds / 4)
        return found

    def memory(self) -> MemoryUse:
        """Random shapes for a long time."""
        model = self._minilm
        runner, used = model.runner, CudaDevice().used
        return random_shapes(runner, used, model.slab, LIMITS, model.bundle.max_tokens, self._memory_seconds)

    def open_loop(self) -> dict[str, Offered]:
        """500 and 5,000 requests a second, at times left to chance."""
        folder, settings = self._minilm.folder, {**SERVER, "frontends": max(self._frontends)}
        return {
            "500": server.offer(folder, settings, 500, self._seconds, p50=3.0, p99=6.0),
            "5000": server.offer(folder, settings, 5000, self._seconds, p50=10.0, p99=10.0),
        }

    def saturation(self) -> dict[str, Saturated]:
        """As much as it takes, with more and more front ends."""
        minilm, base, most = self._minilm.folder, self._bert_base.folder, self._frontends[-1:]
        seconds = self._seconds / 2
        one, many = Load(16, 1, 256, 4, least_requests=25_000), Load(50, 32, 64, 4, least_tokens=1.6e6)
        long = Load(512, 32, 32, 4, least_tokens=1.8e6)
        return {
            "minilm, one text a request": server.saturate(minilm, SERVER, self._frontends, one, seconds),
            "bert-base, 32 texts of 50": server.saturate(base, SERVER, most, many, seconds),
            "bert-base, 32 texts of 512": server.saturate(base, SERVER, most, long, seconds),
        }

    def _equal(self, model: Model, shape: Shape, length: int, least: float = 0.0) -> Rate:
        texts, flops = model.ids(exact_texts(length, 5 * ROWS)), shape.flops(length)
        seconds = self._seconds / 4
        return equal_rate(model.runner, texts, model.slab, LIMITS, seconds, flops, self._peak, least)


def go_on() -> None:
    """In place of ending the process: what was measured before a GPU failed is worth keeping."""


STAGES: Final = (
    "environment",
    "kernels",
    "accuracy",
    "spread",
    "steps",
    "matrix",
    "rates",
    "memory",
    "open_loop",
    "saturation",
)


def run_stages(
    stages: Mapping[str, Callable[[], object]], save: Callable[[dict[str, Stage]], None]
) -> dict[str, Stage]:
    """All of them in order, whatever becomes of each. After each, says so and calls `save` with all so far."""
    done: dict[str, Stage] = {}
    for name, stage in stages.items():
        began = time.monotonic()
        try:
            found = stage()
            status: Literal["passed", "missed"] = "missed" if targets_missed(found) else "passed"
            done[name] = Stage(status=status, seconds=time.monotonic() - began, found=msgspec.to_builtins(found))
        except Exception as error:
            # Results name no folder of this machine.
            reason = f"{type(error).__name__}: {error}".replace(str(ROOT), ".").replace(str(Path.home()), "~")
            done[name] = Stage(status="failed", seconds=time.monotonic() - began, reason=reason)
        print(f"{name}: {msgspec.json.encode(done[name]).decode()}", flush=True)
        # A driver that takes the process down with it takes no results.
        save(done)
    return done


def targets_missed(found: object) -> list[str]:
    """The sentences of one result, or of several by name."""
    if isinstance(found, Found):
        return found.missed
    return [sentence for part in found.values() for sentence in targets_missed(part)] if isinstance(found, dict) else []


def prepare(source: str, target: Path) -> Path:
    """The bundle of a model with its half-precision graph. Raises RuntimeError where it cannot be made."""
    command = [sys.executable, "-m", "tools.prepare", source, "--precision", "fp16", "--out", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise RuntimeError(f"no half-precision bundle: {(done.stderr or done.stdout).strip()[-300:]}")
    return target


def main() -> int:
    """Measure, print, save; exit status 1 where a stage failed or missed a target."""
    parser = argparse.ArgumentParser(prog="python -m perf.gpu", description="The CUDA path, measured.")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=f"{STAGES}")
    parser.add_argument("--seconds", type=float, default=60, help="of each run of a server; others take a part of it")
    parser.add_argument("--memory-seconds", type=float, default=600, help="of random shapes")
    parser.add_argument("--frontends", type=int, nargs="+", default=[2, 4, 8, 12], help="for saturation, ascending")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    gpu = Gpu(options.seconds, options.memory_seconds, options.frontends)
    command = f"python -m perf.gpu --seconds {options.seconds:g} --memory-seconds {options.memory_seconds:g}"

    def save(done: dict[str, Stage]) -> None:
        if not options.no_save:
            save_result(make_result("gpu", command, dict(SERVER), {"stages": done}))

    done = run_stages({name: getattr(gpu, name) for name in options.stages}, save)
    return int(any(stage.status != "passed" for stage in done.values()))


if __name__ == "__main__":
    sys.exit(main())
