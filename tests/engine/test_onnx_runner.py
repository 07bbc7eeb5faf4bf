"""The real model: what it writes, where it writes it, and that company changes no bit."""

from __future__ import annotations

import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runners import onnx
from engine.runners.onnx import MOST_THREADS, OnnxRunner, choose_device
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.messages import Ids
from ipc.slab import Epoch, Rows, Slab, slab_file

ROWS = 64


@pytest.fixture(scope="module")
def runner(bundle: Bundle) -> OnnxRunner:
    return OnnxRunner(bundle, "cpu", lanes=2)


@pytest.fixture(scope="module", params=[2, 3, MOST_THREADS])
def wide(request: pytest.FixtureRequest, bundle: Bundle) -> OnnxRunner:
    """A runner as on a machine with so many cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "cores", lambda: request.param)
        return OnnxRunner(bundle, "cpu", lanes=1)


@pytest.fixture
def slab(tmp_path: Path, bundle: Bundle) -> Slab:
    tmp_path.chmod(0o700)
    return Slab.create(tmp_path, Epoch(1), ROWS, bundle.dim)


def random_texts(seed: int, count: int, length: int, vocab_size: int) -> list[Ids]:
    return list(np.random.default_rng(seed).integers(0, vocab_size, (count, length), np.int32))


def mixed_texts(seed: int, lengths: list[int], vocab_size: int) -> list[Ids]:
    chance = np.random.default_rng(seed)
    return [chance.integers(0, vocab_size, length, np.int32) for length in lengths]


def batches(most: int) -> st.SearchStrategy[list[int]]:
    """Lengths of texts."""
    return st.lists(st.one_of(st.integers(1, 40), st.integers(1, 256)), min_size=1, max_size=most)


def alone(runner: OnnxRunner, text: Ids, dim: int) -> Rows:
    row = np.empty((1, dim), np.float32)
    runner.run([text], row)
    return row


def test_vectors_have_length_one(runner: OnnxRunner, slab: Slab, bundle: Bundle) -> None:
    runner.run(random_texts(1, 5, 9, bundle.vocab_size), slab.rows[10:15])
    assert np.allclose(np.linalg.norm(slab.rows[10:15], axis=1), 1, atol=1e-5)
    assert not slab.rows[:10].any()
    assert not slab.rows[15:].any()


def test_onnx_runtime_writes_into_the_mapped_file_itself(
    runner: OnnxRunner, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    slab = Slab.create(tmp_path, Epoch(1), ROWS, bundle.dim)
    bound: list[tuple[int, int]] = []
    real = ort.IOBinding.bind_output

    def note(self: ort.IOBinding, name: str, *rest: object) -> None:
        device, _, _, shape, pointer = rest
        assert device == "cpu"
        bound.append((int(pointer), int(np.prod(shape)) * 4))  # type: ignore[call-overload]
        real(self, name, *rest)

    monkeypatch.setattr(ort.IOBinding, "bind_output", note)
    runner.run(random_texts(1, 4, 9, bundle.vocab_size), slab.rows[8:12])
    [(pointer, size)] = bound
    begin, end = mapping_of(slab_file(tmp_path, Epoch(1), "rows"))
    assert begin <= pointer < pointer + size <= end
    assert pointer == begin + 8 * bundle.dim * 4
    # And the file, read as a file, has what was written.
    with slab_file(tmp_path, Epoch(1), "rows").open("rb") as file:
        file.seek(8 * bundle.dim * 4)
        assert np.array_equal(np.frombuffer(file.read(size), np.float32).reshape(4, -1), slab.rows[8:12])


def mapping_of(path: Path) -> tuple[int, int]:
    for line in Path(f"/proc/{os.getpid()}/maps").read_text().splitlines():
        if line.endswith(str(path)):
            begin, _, end = line.split(maxsplit=1)[0].partition("-")
            return int(begin, 16), int(end, 16)
    raise AssertionError(f"{path} is not mapped")


def test_rows_in_pieces_are_refused(runner: OnnxRunner, slab: Slab, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="extent"):
        runner.run(random_texts(1, 4, 9, bundle.vocab_size), slab.rows[::2][:4])
    with pytest.raises(ValueError, match="extent"):
        runner.run(random_texts(1, 4, 9, bundle.vocab_size), slab.rows[:3])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=batches(16))
def test_company_changes_no_bit(runner: OnnxRunner, bundle: Bundle, seed: int, lengths: list[int]) -> None:
    texts = mixed_texts(seed, lengths, bundle.vocab_size)
    together = np.empty((len(texts), bundle.dim), np.float32)
    assert runner.run(texts, together) == 0
    for index in {0, seed % len(texts), len(texts) - 1}:
        assert together[index].tobytes() == alone(runner, texts[index], bundle.dim).tobytes()


def test_two_lanes_at_once_change_no_bit(runner: OnnxRunner, bundle: Bundle) -> None:
    some = [mixed_texts(n, [4 + n, *range(1, n % 8)], bundle.vocab_size) for n in range(40)]

    def run(texts: list[Ids]) -> bytes:
        rows = np.empty((len(texts), bundle.dim), np.float32)
        runner.run(texts, rows)
        return rows.tobytes()

    one_by_one = [run(texts) for texts in some]
    with ThreadPoolExecutor(2) as lanes:
        assert list(lanes.map(run, some)) == one_by_one


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=batches(8))
def test_more_threads_change_no_bit(wide: OnnxRunner, bundle: Bundle, seed: int, lengths: list[int]) -> None:
    texts = mixed_texts(seed, lengths, bundle.vocab_size)
    by_one, by_all = (np.empty((len(texts), bundle.dim), np.float32) for _ in range(2))
    wide.run(texts, by_one)
    wide.run_alone(texts, by_all)
    assert by_all.tobytes() == by_one.tobytes()


def test_on_one_core_there_is_nothing_to_share_a_run_with(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "cores", lambda: 1)
    opened = []
    real = ort.InferenceSession

    def note(*arguments: object, **options: object) -> object:
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", note)
    runner = OnnxRunner(bundle, "cpu", lanes=1)
    row = np.zeros((1, bundle.dim), np.float32)
    runner.run_alone(random_texts(1, 1, 9, bundle.vocab_size), row)
    assert len(opened) == 1
    assert row.any()


def test_cuda_is_never_replaced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert choose_device("auto") == "cpu"
    with pytest.raises(StartError, match="EMBEDLANE_DEVICE=cuda"):
        choose_device("cuda")


def test_cuda_that_falls_back_stops_the_start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # An ONNX Runtime that offers CUDA, on a machine where it cannot be used.
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    with pytest.raises(StartError, match="EMBEDLANE_DEVICE=cpu"), pytest.warns(UserWarning):
        OnnxRunner(bundle, "auto", lanes=0)


def test_a_graph_that_cannot_be_loaded_is_told(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "model.fp32.onnx").write_bytes(b"no graph")
    broken = type(bundle)(**{f: getattr(bundle, f) for f in bundle.__struct_fields__} | {"folder": tmp_path})
    with pytest.raises(StartError, match="cannot load"):
        OnnxRunner(broken, "cpu", lanes=1)


def test_a_binding_keeps_what_is_bound_to_it(bundle: Bundle) -> None:
    binding = ort.InferenceSession(bundle.graph("fp32"), providers=["CPUExecutionProvider"]).io_binding()
    ids = np.zeros(4, np.int32)
    binding.bind_cpu_input("input_ids", ids)
    bound = weakref.ref(ids)
    del ids
    assert bound() is not None
    del binding
    assert bound() is None
