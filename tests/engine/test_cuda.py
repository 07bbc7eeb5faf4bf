"""The CUDA runner on a device in memory that does nothing before it has to, and a session whose sums can be checked."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engine.runners import cudart, open_runner
from engine.runners.buckets import Bucket, Buckets
from engine.runners.cuda import RUNS_UNTIL_CAPTURED, CudaRunner, OrtSession, cuda_options, open_cuda_runner
from engine.runners.device import EAGER, DeviceError
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Epoch, Slab
from tests.engine.memory_device import MemoryDevice, SumSession

ROWS, TOKENS, MAX_TOKENS = 16, 4000, 200
DIM = 3


class Fixture:
    def __init__(self, lanes: int = 2) -> None:
        self.device = MemoryDevice()
        self.buckets = Buckets(ROWS, TOKENS, MAX_TOKENS)
        self.rows = np.zeros((64, DIM), np.float32)
        self.ends = 0
        self.runner = CudaRunner(self.device, self.open, self.buckets, DIM, lanes, self.end)

    def end(self) -> None:
        self.ends += 1

    def open(self, stream: int) -> SumSession:
        self.session = SumSession(self.device, stream)
        return self.session


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    made.runner.close()


def make(lengths: Sequence[int], seed: int = 0) -> list[Ids]:
    chance = np.random.default_rng(seed)
    return [chance.integers(1, 100, length, dtype=np.int32) for length in lengths]


def expected(texts: Sequence[Ids]) -> list[list[float]]:
    return [[len(text), text.sum(), (text * np.arange(len(text))).sum()] for text in texts]


def test_vectors_are_on_the_host_when_run_returns(fixture: Fixture) -> None:
    texts = make([3, 200, 1, 17])
    fixture.runner.run(texts, fixture.rows[5:9])
    assert fixture.rows[5:9].tolist() == expected(texts)
    assert not fixture.rows[:5].any()
    assert not fixture.rows[9:].any()


def test_a_batch_is_one_copy_each_way(fixture: Fixture) -> None:
    fixture.runner.run(make([3, 50]), fixture.rows[:2])
    assert fixture.device.calls == ["upload", "wait", "run", "download"]


batches = st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=ROWS)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(batches, min_size=1, max_size=8))
def test_lanes_at_once_do_not_meet(fixture: Fixture, work: list[list[int]]) -> None:
    texts = [make(lengths, seed) for seed, lengths in enumerate(work)]

    def run(batch: list[Ids]) -> list[list[float]]:
        rows = np.zeros((len(batch), DIM), np.float32)
        fixture.runner.run(batch, rows)
        return rows.tolist()

    with ThreadPoolExecutor(fixture.runner.lanes) as lanes:
        assert list(lanes.map(run, texts)) == [expected(batch) for batch in texts]
    assert len(fixture.device.threads) == 1, "one thread has to do with the session"


def test_warm_up_runs_every_bucket_the_largest_first(fixture: Fixture) -> None:
    fixture.runner.warm_up(fixture.rows[:ROWS])
    launched = fixture.session.launched
    assert set(launched) == set(fixture.buckets)
    assert launched[0] == next(iter(fixture.buckets))
    assert [b.tokens for b in launched] == sorted((b.tokens for b in launched), reverse=True)


def test_warm_up_captures_each_small_bucket_in_each_place_and_nothing_is_captured_later(fixture: Fixture) -> None:
    fixture.runner.warm_up(fixture.rows[:ROWS])
    graphs = fixture.session.graphs
    small = [bucket for bucket in fixture.buckets if bucket.is_captured]
    assert len(small) > 1
    captured = {graph: count for graph, count in graphs.items() if graph != EAGER}
    assert set(captured) == set(fixture.session.owner)
    assert len(captured) == fixture.runner.lanes * len(small)
    assert set(captured.values()) == {RUNS_UNTIL_CAPTURED}
    assert graphs[EAGER] == len(fixture.buckets) - len(small)


def test_nothing_is_allocated_after_the_start(fixture: Fixture) -> None:
    before = fixture.device.allocations
    fixture.runner.warm_up(fixture.rows[:ROWS])
    for seed in range(50):
        lengths = np.random.default_rng(seed).integers(1, MAX_TOKENS, 1 + seed % ROWS)
        fixture.runner.run(make(lengths.tolist(), seed), fixture.rows[: len(lengths)])
    assert fixture.device.allocations == before == 3 * fixture.runner.lanes


def test_the_whole_slab_is_page_locked(fixture: Fixture, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    slab = Slab.create(tmp_path, Epoch(1), 64, DIM)
    fixture.runner.warm_up(slab.rows[:ROWS])
    [registered] = fixture.device.registered
    assert registered.ctypes.data == slab.rows.ctypes.data
    assert registered.nbytes == slab.rows.nbytes


def test_a_slab_that_cannot_be_page_locked_works_and_is_told(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.device.can_register = False
    fixture.runner.warm_up(fixture.rows[:ROWS])
    assert "not page-locked" in caplog.text
    texts = make([4, 9])
    fixture.runner.run(texts, fixture.rows[:2])
    assert fixture.rows[:2].tolist() == expected(texts)


def test_a_failed_launch_fails_its_batch_and_its_place_is_used_again(fixture: Fixture) -> None:
    fixture.session.is_broken = True
    for _ in range(fixture.runner.lanes + 1):
        with pytest.raises(RuntimeError, match="launch failed"):
            fixture.runner.run(make([5]), fixture.rows[:1])
    fixture.session.is_broken = False
    for seed in range(fixture.runner.lanes):
        texts = make([5, 7], seed)
        fixture.runner.run(texts, fixture.rows[:2])
        assert fixture.rows[:2].tolist() == expected(texts)


def test_a_lost_gpu_ends_the_engine(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    fixture.device.is_lost = True
    with pytest.raises(DeviceError, match="illegal memory access"):
        fixture.runner.run(make([5]), fixture.rows[:1])
    assert fixture.ends == 1
    assert "the GPU failed" in caplog.text


def test_a_run_tells_what_it_padded(fixture: Fixture) -> None:
    assert fixture.runner.run(make([20]), fixture.rows[:1]) == 64 - 20


def test_rows_in_pieces_are_refused(fixture: Fixture) -> None:
    with pytest.raises(ValueError, match="extent"):
        fixture.runner.run(make([2, 2]), fixture.rows[:8:4])
    with pytest.raises(ValueError, match="extent"):
        fixture.runner.run(make([2, 2]), fixture.rows[:3])


def test_one_lane_is_enough() -> None:
    fixture = Fixture(lanes=1)
    texts = make([6, 1])
    fixture.runner.run(texts, fixture.rows[:2])
    fixture.runner.close()
    assert fixture.rows[:2].tolist() == expected(texts)


def sum_graph(path: Path) -> Path:
    """The sums of SumSession from the four arrays, by ONNX operators."""
    constants = {"axis": [0], "zero": [0], "one": [1], "last": [-1], "end": [2**31 - 1], "columns": [1]}
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["position_ids"], ["positions"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids", "positions"], ["products"]),
        helper.make_node("Sub", ["ids", "ids"], ["nothing"]),
        helper.make_node("Exp", ["nothing"], ["ones"]),
        *(helper.make_node("Unsqueeze", [name, "columns"], [f"{name}_column"]) for name in ("ones", "ids", "products")),
        helper.make_node("Concat", ["ones_column", "ids_column", "products_column"], ["table"], axis=1),
        helper.make_node("CumSum", ["table", "axis_scalar"], ["sums"]),
        helper.make_node("Pad", ["sums", "pads"], ["padded"]),
        helper.make_node("Gather", ["padded", "cu_seqlens"], ["at"], axis=0),
        helper.make_node("Slice", ["at", "one", "end", "axis"], ["ends"]),
        helper.make_node("Slice", ["at", "zero", "last", "axis"], ["begins"]),
        helper.make_node("Sub", ["ends", "begins"], ["embeddings"]),
        helper.make_node("Identity", ["token_offset"], ["unread"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, shape)
        for name, shape in (
            ("input_ids", ["tokens"]),
            ("position_ids", ["tokens"]),
            ("cu_seqlens", ["bounds"]),
            ("token_offset", ["texts", "longest"]),
        )
    ]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["texts", DIM])]
    initializers = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array(0), "axis_scalar"))
    initializers.append(numpy_helper.from_array(np.array([1, 0, 0, 0]), "pads"))
    graph = helper.make_graph(nodes, "sums", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class EnqueuedSession:
    """ONNX Runtime's CPU provider as if it had a stream: its runs wait there for their turn."""

    def __init__(self, session: OrtSession, device: MemoryDevice, stream: int) -> None:
        self.session, self.device, self.stream = session, device, stream

    def bind(self, bucket: Bucket, inputs: Sequence[int], output: int, graph: int) -> Callable[[], None]:
        run = self.session.bind(bucket, inputs, output, graph)
        return lambda: self.device.put(self.stream, "run", run)


def test_onnx_runtime_reads_and_writes_at_the_addresses_bound_once(tmp_path: Path) -> None:
    device, graph = MemoryDevice(), sum_graph(tmp_path / "sums.onnx")
    buckets = Buckets(ROWS, TOKENS, MAX_TOKENS)
    session = OrtSession(graph, "CPUExecutionProvider", {}, DIM)
    runner = CudaRunner(device, lambda stream: EnqueuedSession(session, device, stream), buckets, DIM)
    rows = np.zeros((ROWS, DIM), np.float32)
    runner.warm_up(rows)
    for seed in range(20):
        lengths = np.random.default_rng(seed).integers(1, MAX_TOKENS, 1 + seed % ROWS).tolist()
        texts = make(lengths, seed)
        runner.run(texts, rows[: len(texts)])
        assert rows[: len(texts)].tolist() == expected(texts)
    runner.close()


def test_a_graph_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(StartError, match="cannot run"):
        OrtSession(tmp_path / "broken.onnx", "CPUExecutionProvider", {}, DIM)


def test_a_provider_that_is_not_there_is_never_replaced_in_silence(tmp_path: Path) -> None:
    graph = sum_graph(tmp_path / "sums.onnx")
    with pytest.raises(StartError, match="CUDAExecutionProvider"), pytest.warns(UserWarning, match="CUDA"):
        OrtSession(graph, "CUDAExecutionProvider", cuda_options(7), DIM)


def test_on_cuda_a_bundle_with_a_packed_graph_gets_the_packing_runner(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def open_packed(settings: Settings, bundle: Bundle) -> CudaRunner:
        asked.append(bundle.precisions["fp16"])
        return Fixture().runner

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr("engine.runners.cuda.open_cuda_runner", open_packed)
    precisions = {**bundle.precisions, "fp16": "model.fp16.packed.onnx"}
    packed = msgspec.structs.replace(bundle, precisions=precisions, layouts={"fp16": "packed"})
    runner = open_runner(Settings(), packed)
    assert asked == ["model.fp16.packed.onnx"]
    assert runner.mixes_lengths


def test_on_the_cpu_nothing_is_packed(bundle: Bundle) -> None:
    runner = open_runner(Settings(device="cpu"), bundle)
    assert (runner.device, runner.precision, runner.mixes_lengths) == ("cpu", "fp32", True)


def test_a_gpu_without_room_is_told_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(size: int) -> int:
        raise DeviceError("cudaMalloc: out of memory")

    device = MemoryDevice()
    monkeypatch.setattr(device, "memory", no_room)
    monkeypatch.setattr("engine.runners.cuda.CudaDevice", lambda: device)
    monkeypatch.setattr("engine.runners.cuda.OrtSession", lambda *_: SumSession(device, 1))
    precisions = {**bundle.precisions, "fp16": bundle.precisions["fp32"]}
    with pytest.raises(StartError, match="out of memory"):
        open_cuda_runner(Settings(), msgspec.structs.replace(bundle, precisions=precisions))


def test_a_machine_without_the_cuda_runtime_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", nothing)
    with pytest.raises(StartError, match="libcudart"):
        cudart.CudaDevice()
