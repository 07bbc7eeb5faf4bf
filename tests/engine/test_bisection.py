from __future__ import annotations

import logging
from collections.abc import Sequence
from math import log2
from threading import Semaphore

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bisection import Ran, is_out_of_memory, run_parts
from engine.lanes import Batch, Lanes
from engine.queue import Item
from ipc.messages import Ids
from ipc.priority import Priority
from ipc.slab import Rows
from tests.engine.sum_runner import FAILS, NOT_A_NUMBER, PATIENCE_SECONDS, SumRunner

GOOD = 1


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


# As these libraries word it, with the addresses and sizes of some machine.
SHORT_OF_MEMORY = {
    "onnxruntime's arena": RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. "
        "Status Message: BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 805306368"
    ),
    "onnxruntime's limit": RuntimeError(
        "Status Message: bfc_arena.cc:342 Available memory of 16777216 is smaller than requested bytes of 33554432"
    ),
    "CUDA": RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);"),
    "cuBLAS": RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
    "cuDNN": RuntimeError("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0"),
    "PyTorch by its type": OutOfMemoryError("Tried to allocate 2.00 GiB."),
    "PyTorch on a CPU": RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes"
    ),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
}
OTHERS = [RuntimeError("this id fails"), ValueError("3 texts and 4 tokens of padding do not fit"), KeyError("memory")]


class Runner:
    """Sums, but fails on FAILS, and where a run has more than `room` tokens, as a device without memory does."""

    def __init__(self, room: int = 1 << 30, error: BaseException = SHORT_OF_MEMORY["CUDA"]) -> None:
        self.room = room
        self.error = error
        self.runs: list[int] = []

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        self.runs.append(len(texts))
        # A run that fails may have written by then.
        rows[:] = np.nan
        if sum(map(len, texts)) > self.room:
            raise self.error
        if any(FAILS in text for text in texts):
            raise RuntimeError("this id fails")
        for text, row in zip(texts, rows, strict=True):
            row[:] = (len(text), text.sum())
            if NOT_A_NUMBER in text:
                row[0] = np.inf
        return 2

    def do(self, *texts: list[int]) -> tuple[Ran, Rows]:
        rows = np.zeros((len(texts), 2), np.float32)
        return run_parts(self.run, [np.array(text, np.int32) for text in texts], rows, range(len(texts))), rows


@given(bad=st.lists(st.booleans(), min_size=1, max_size=33))
def test_the_bad_fail_and_nobody_else_in_bounded_work(bad: list[bool]) -> None:
    runner = Runner()
    ran, rows = runner.do(*([FAILS if is_bad else GOOD, n] for n, is_bad in enumerate(bad, 100)))
    assert ran.finite.tolist() == [not is_bad for is_bad in bad]
    for n, is_bad in enumerate(bad):
        assert is_bad or rows[n].tolist() == [2, GOOD + 100 + n]
    halvings = int(np.ceil(log2(len(bad))))
    assert sum(runner.runs) <= len(bad) * (1 + halvings), "each text once for each halving, and once more"
    assert len(runner.runs) <= 1 + 2 * halvings * sum(bad)
    assert ran.fits is None


def test_a_good_batch_is_one_run() -> None:
    runner = Runner()
    ran, _ = runner.do([1], [2], [3])
    assert runner.runs == [3]
    assert (ran.padding, ran.failures) == (2, 0)


def test_what_is_no_number_is_seen_in_every_part() -> None:
    ran, _ = Runner().do([1], [NOT_A_NUMBER], [FAILS], [NOT_A_NUMBER, 2])
    assert ran.finite.tolist() == [True, False, False, False]


@pytest.mark.parametrize("error", SHORT_OF_MEMORY.values(), ids=SHORT_OF_MEMORY)
def test_a_batch_without_memory_is_cut_until_it_fits(error: BaseException) -> None:
    runner = Runner(room=10, error=error)
    ran, rows = runner.do(*([n] * 4 for n in range(1, 9)))
    assert ran.finite.all()
    assert rows[:, 1].tolist() == [4 * n for n in range(1, 9)]
    assert runner.runs == [8, 4, 2, 2, 4, 2, 2]
    assert ran.fits == 8, "what a part had that ran"


def test_a_text_that_alone_is_too_much_fails_alone_and_teaches_nothing_about_batches() -> None:
    ran, _ = Runner(room=10).do([1] * 11, [1] * 4)
    assert ran.finite.tolist() == [False, True]
    assert ran.fits == 7
    assert Runner(room=10).do([1] * 11)[0].fits == 11


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_want_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_what_is_no_exception_ends_no_lane(error: BaseException) -> None:
    ran, _ = Runner(room=3, error=error).do([1, 1], [1, 1])
    assert ran.finite.all()


def test_the_log_has_one_traceback_and_the_texts_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Runner().do([1], [2], [FAILS, 2], [3])
    told = [(record.message, record.__dict__["sequences"], bool(record.exc_info)) for record in caplog.records]
    assert told == [("a batch failed", [0, 1, 2, 3], True), ("a text failed by itself", [2], False)]


def test_a_lane_goes_on_after_a_batch_in_parts() -> None:
    done = Semaphore(0)
    rows = np.zeros((4, 2), np.float32)
    lanes = Lanes(SumRunner(lanes=1), rows, done.release)
    items = [
        Item(1, n, np.array(ids, np.int32), Priority.INTERACTIVE, 0, 0) for n, ids in enumerate(([1], [FAILS], [2]))
    ]
    for _ in range(2):
        lanes.start(Batch(items, 1, 0))
        assert done.acquire(timeout=PATIENCE_SECONDS)
        [batch] = lanes.collect()
        assert batch.ran.finite.tolist() == [True, False, True]
        assert rows[1].tolist() == [1, 1]
        assert rows[3].tolist() == [1, 2]
    lanes.close()
