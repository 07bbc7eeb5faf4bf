"""The GPU's measurements on a device in memory: everything but the figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.runners.buckets import Buckets
from engine.runners.cuda import CudaRunner
from engine.scheduler import Limits
from ipc.bundle import TOKENIZER, Bundle
from ipc.messages import Ids
from ipc.slab import Rows
from perf.gpu.__main__ import STAGES, Gpu, run_stages, targets_missed
from perf.gpu.parts import (
    BERT_BASE,
    MINILM,
    Found,
    Shape,
    TimedDevice,
    TimedSession,
    form_batches,
    matrix_rate,
    write_checkpoint,
)
from perf.gpu.rates import equal_rate, mixed_rate, rate, step_times
from perf.gpu.stages import accuracy, attention_kernels, batch_spread, embed, random_shapes
from perf.report import TABLES
from perf.results import ROOT
from tests.engine.memory_device import MemoryDevice, SumSession
from tools.checkpoint import read_checkpoint

ROWS, TOKENS, MAX_TOKENS, DIM = 16, 512, 60, 3
LIMITS = Limits(ROWS, TOKENS, 0, queue_items=10_000, mixes_lengths=True)
BUCKETS = Buckets(ROWS, TOKENS, MAX_TOKENS)


@dataclass
class PlainSums:
    """SumSession's vectors, one after the other. `error` is added to the first number of each text in company."""

    mixes_lengths: bool = False
    error: float = 0.0
    device: str = "cpu"
    precision: str = "exact"
    lanes: int = 1

    def warm_up(self, rows: Rows) -> None:
        rows[:] = 0

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        assert self.mixes_lengths or len({len(text) for text in texts}) == 1
        for text, row in zip(texts, rows, strict=True):
            row[:] = (len(text), text.sum(), (text * np.arange(len(text))).sum())
        if len(texts) > 1:
            rows[:, 0] += self.error
        return 0


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice()


@pytest.fixture
def runner(device: MemoryDevice) -> Iterator[CudaRunner]:
    made = CudaRunner(device, lambda stream: SumSession(device, stream), BUCKETS, DIM)
    yield made
    made.close()


@pytest.fixture
def slab() -> Rows:
    return np.zeros((2 * ROWS, DIM), np.float32)


def make(count: int, longest: int = MAX_TOKENS, *, shortest: int = 1) -> list[Ids]:
    chance = np.random.default_rng(count)
    return [chance.integers(1, 50, chance.integers(shortest, longest + 1), dtype=np.int32) for _ in range(count)]


def test_the_same_vectors_have_the_cosine_one(runner: CudaRunner) -> None:
    found = accuracy(runner, PlainSums(), make(50), DIM, LIMITS)
    assert found.texts == 50
    assert found.largest_loss == pytest.approx(0, abs=1e-9)
    assert not found.missed


@pytest.mark.parametrize("error", [30.0, np.nan])
def test_other_vectors_miss_the_target(error: float) -> None:
    wrong = PlainSums(mixes_lengths=True, error=error)
    assert "0.9999 is the target" in accuracy(wrong, PlainSums(), make(50), DIM, LIMITS).missed[0]


def test_vectors_that_company_does_not_change_have_no_spread(runner: CudaRunner) -> None:
    found = batch_spread(runner, make(40), DIM, LIMITS, (2, 7, ROWS))
    assert (found.vectors, found.same_bits, found.largest_difference) == (120, 1.0, 0.0)


def test_vectors_that_company_changes_are_seen() -> None:
    found = batch_spread(PlainSums(mixes_lengths=True, error=0.5), make(40), DIM, LIMITS, (2, 8))
    assert found.same_bits == 0
    assert found.largest_difference == 0.5
    assert found.largest_loss > 0


def test_a_runner_of_one_length_gets_one_text_at_a_time() -> None:
    texts = make(5)
    assert np.array_equal(
        embed(PlainSums(), texts, DIM, LIMITS), embed(PlainSums(mixes_lengths=True), texts, DIM, LIMITS)
    )


def test_every_step_of_a_batch_is_timed(device: MemoryDevice, runner: CudaRunner, slab: Rows) -> None:
    clock = TimedDevice(device)
    timed = CudaRunner(clock, lambda stream: TimedSession(SumSession(device, stream), clock, stream), BUCKETS, DIM, 1)
    batches = {"one": make(1), "full": make(ROWS, 30)}
    found = step_times((timed, clock), runner, BUCKETS, batches, slab, runs=5)
    timed.close()
    assert {step: len(times) for step, times in clock.times.items()} == {"h2d": 5, "run": 5, "d2h": 5}
    for name, steps in found.items():
        assert steps.texts == len(batches[name])
        assert steps.padded > steps.tokens == sum(map(len, batches[name]))
        assert min(steps.pack, steps.h2d, steps.run, steps.d2h, steps.whole) > 0
    assert slab[:ROWS].tolist() == embed(PlainSums(), batches["full"], DIM, LIMITS).tolist()


def test_a_rate_counts_what_all_lanes_did(runner: CudaRunner, slab: Rows) -> None:
    batches = [make(8, 20), make(4, 30)]
    found = rate(runner, batches, slab, seconds=0.05)
    assert found.texts_rate > 0
    assert found.tokens_rate > found.texts_rate
    least, most = sorted(1 + runner.run(b, slab[: len(b)]) / sum(map(len, b)) for b in batches)
    assert 1 < least <= found.waste <= most


def test_the_share_is_of_the_measured_peak(runner: CudaRunner, slab: Rows) -> None:
    texts = make(200, 20, shortest=20)
    found = equal_rate(runner, texts, slab, LIMITS, 0.05, flops=1e3, peak=1e6)
    assert found.share == pytest.approx(found.texts_rate / 1e3)
    assert not found.missed
    missed = equal_rate(runner, texts, slab, LIMITS, 0.05, flops=1e-9, peak=1e6, least=0.4).missed
    assert "0.4 is the target" in missed[0]


def test_padding_above_the_target_is_told(runner: CudaRunner, slab: Rows) -> None:
    # Batches of half the tokens that the buckets are made for, at a size that is none of theirs.
    found = mixed_rate(runner, make(300), slab, replace(LIMITS, tokens=300), 0.05)
    assert found.waste > 1.05
    assert "1.05 is the target" in found.missed[0]


def test_batches_are_full_and_in_order() -> None:
    texts = make(100)
    batches = form_batches(texts, LIMITS)
    assert [id(text) for batch in batches for text in batch] == list(map(id, texts))
    assert all(sum(map(len, batch)) > TOKENS - MAX_TOKENS or len(batch) == ROWS for batch in batches[:-1])


def test_memory_that_grows_is_told(runner: CudaRunner, slab: Rows) -> None:
    flat = random_shapes(runner, lambda: 7 << 20, slab, LIMITS, MAX_TOKENS, 0.05)
    assert flat.batches > 1
    assert not flat.missed
    sizes = iter((0, 5 << 20))
    assert "5.0 MiB" in random_shapes(runner, lambda: next(sizes), slab, LIMITS, MAX_TOKENS, 0.05).missed[0]


def says(*lines: str) -> list[str]:
    return [sys.executable, "-c", f"import os; assert os.environ['{KERNEL_VARIABLE}'] == '1'; print({lines!r})"]


KERNEL_VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
FLASH = "\x1b[36mOperator=PackedMultiHeadAttention Node=a DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m"


def test_the_kernel_is_read_from_another_process() -> None:
    found = attention_kernels(says(FLASH), ROOT)
    assert found.kernels == {"PackedMultiHeadAttention FLASH_ATTENTION": 1}
    assert not found.missed


def test_another_kernel_is_a_target_missed() -> None:
    assert attention_kernels(says(FLASH.replace("FLASH_ATTENTION", "MATH")), ROOT).missed == [
        "attention ran PackedMultiHeadAttention MATH"
    ]


def test_a_process_that_names_no_kernel_failed() -> None:
    with pytest.raises(RuntimeError, match="no attention kernel"):
        attention_kernels(says("nothing"), ROOT)


def test_a_large_product_has_a_rate() -> None:
    assert matrix_rate("CPUExecutionProvider", 64, 3) > 0


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_product_on_the_wrong_device_has_none() -> None:
    with pytest.raises(RuntimeError, match="cannot be had"):
        matrix_rate("CUDAExecutionProvider", 64, 3)


@pytest.mark.parametrize(
    ("shape", "length", "gflop"),
    [(MINILM, 16, 0.34), (MINILM, 128, 2.87), (BERT_BASE, 128, 22.4), (BERT_BASE, 512, 96.6)],
)
def test_arithmetic_of_a_text(shape: Shape, length: int, gflop: float) -> None:
    assert shape.flops(length) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_a_model_of_a_shape_is_one_that_can_be_prepared(tmp_path: Path, bundle: Bundle) -> None:
    shape = Shape(layers=2, hidden=32, heads=4, positions=48)
    found = read_checkpoint(write_checkpoint(tmp_path / "model", shape, bundle.path(TOKENIZER)))
    assert (found.max_tokens, found.config.num_hidden_layers, found.pooling) == (48, 2, "mean")


class Missing(Found):
    """A result for the test."""


def test_a_stage_that_fails_stops_no_other() -> None:
    def fails() -> object:
        raise RuntimeError(f"no file {ROOT}/data")

    saved: list[object] = []
    done = run_stages(
        {"bad": fails, "short": lambda: {"a": Missing(missed=["too slow"])}, "good": Missing}, saved.append
    )
    assert {name: stage.status for name, stage in done.items()} == {
        "bad": "failed",
        "short": "missed",
        "good": "passed",
    }
    assert len(saved) == 3, "what was found is kept at once"
    assert done["bad"].reason == "RuntimeError: no file ./data"
    assert done["short"].found == {"a": {"missed": ["too slow"]}}


def test_targets_are_looked_for_in_several_results() -> None:
    assert targets_missed({"a": Missing(missed=["x"]), "b": {"c": Missing(missed=["y"])}, "d": 1.0}) == ["x", "y"]


def test_every_stage_there_is_can_be_named() -> None:
    own = [name for name, value in vars(Gpu).items() if callable(value) and not name.startswith("_")]
    assert own == list(STAGES)


def test_without_a_gpu_the_command_says_so_and_ends_with_1() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "perf.gpu", "--no-save", "--stages", "environment", "matrix"],
        cwd=ROOT,
        env={"PATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 1
    assert "nvidia-smi" in lines["environment"]
    assert msgspec.json.decode(lines["matrix"])["status"] == "failed"


def test_results_have_a_table() -> None:
    stages = {
        "memory": {"status": "missed", "found": {"batches": 9, "missed": ["it grew"]}},
        "rates": {"status": "passed", "found": {"minilm 16": {"texts_rate": 12345.6, "missed": []}}},
        "kernels": {"status": "failed", "reason": "no GPU"},
    }
    table = TABLES["gpu"]({"stages": stages})
    assert "| memory | missed: it grew | batches 9 |" in table
    assert "| rates, minilm 16 | passed | texts_rate 12346 |" in table
    assert "| kernels | failed: no GPU |  |" in table
