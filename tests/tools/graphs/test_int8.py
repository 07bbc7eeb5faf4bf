"""The int8 graph: near the fp32 one, smaller, and with the same bits in any company."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engine.runners.mixing import arrange
from tests.tools.conftest import write_model
from tools.checkpoint import Checkpoint, read_checkpoint
from tools.families import CONFIGS
from tools.graphs.encoder import build_graph
from tools.graphs.int8 import LARGEST_WEIGHT, Int8Nodes
from tools.graphs.nodes import tensor

MakeModel = Callable[..., Path]
Rows = NDArray[np.float32]

# xlm-roberta's graph is roberta's.
FAMILIES = [kind for kind in CONFIGS if kind != "xlm-roberta"]
SHAPES: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}


def session(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, ids: NDArray[np.int32]) -> Rows:
    rows: Rows = session.run(None, {"input_ids": ids})[0]
    return rows


def random_ids(checkpoint: Checkpoint, batch: int, length: int, seed: int = 3) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, checkpoint.config.vocab_size, (batch, length), dtype=np.int32)


@pytest.mark.parametrize("kind", FAMILIES)
def test_vectors_are_near_those_of_fp32(make_model: MakeModel, kind: str) -> None:
    checkpoint = read_checkpoint(make_model(model_type=kind, **SHAPES))
    model = build_graph(checkpoint, "int8")
    onnx.checker.check_model(model)
    ids = random_ids(checkpoint, 8, 20)
    one, other = run(session(model), ids), session(build_graph(checkpoint)).run(None, arrange(list(ids)))[0]
    cosines = (one * other).sum(axis=1)
    assert 0.98 < cosines.min() < 1 - 1e-6  # less than 1: it would be no int8 graph


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_product_with_weights_is_in_int8(make_model: MakeModel, kind: str) -> None:
    checkpoint = read_checkpoint(make_model(model_type=kind))
    model = build_graph(checkpoint, "int8")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    assert len(stored) == 2 * 6  # layers, and matrices of each
    assert {node.input[1] for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"} == stored.keys()
    # The largest weight of each column, and none that would overflow.
    assert all((np.abs(matrix.astype(int)).max(axis=0) == LARGEST_WEIGHT).all() for matrix in stored.values())
    others = {t.name for t in model.graph.initializer} & {n.input[1] for n in model.graph.node if n.op_type == "MatMul"}
    assert not others


def test_a_product(tmp_path: Path) -> None:
    """Of states with very different sizes: each token and each column must have its own scale."""
    chance = np.random.default_rng(1)
    matrix = (chance.normal(0, 1, (64, 16)) * 10.0 ** np.arange(-8, 8)).astype(np.float32)
    matrix[:, 3] = 0
    states = (chance.normal(0, 1, (3, 4, 64)) * 10.0 ** np.arange(-6, 6).reshape(3, 4, 1)).astype(np.float32)
    states[1, 2] = 0
    nodes = Int8Nodes()
    first = nodes.product("states", "first", matrix)
    nodes.add("Add", first, nodes.product("states", "second", matrix))
    sizes = ("batch", "length", 64)
    model = nodes.model([tensor("states", np.float32, *sizes)], tensor("sum", np.float32, *sizes[:2], 16))
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    rows = session(model).run(None, {"states": states})[0]
    exact = 2 * states.astype(np.float64) @ matrix
    sizes_of = np.linalg.norm(states.astype(np.float64), axis=-1)[..., None] * np.linalg.norm(matrix, axis=0)
    np.testing.assert_array_less(np.abs(rows - exact), 0.02 * 2 * sizes_of + 1e-30)
    assert (rows[1, 2] == 0).all()
    assert (rows[..., 3] == 0).all()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Checkpoint, list[ort.InferenceSession]]]:
    every = {}
    for kind in FAMILIES:
        folder = write_model(tmp_path_factory.mktemp(kind), model_type=kind, max_position_embeddings=260, **SHAPES)
        checkpoint = read_checkpoint(folder)
        model = build_graph(checkpoint, "int8")
        every[kind] = checkpoint, [session(model, threads) for threads in (1, 2)]
    return every


@given(st.integers(1, 16), st.integers(1, 256), st.integers(0, 15), st.integers(0, 2**32 - 1))
@example(batch=16, length=256, row=15, seed=0)
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_has_the_same_bits_alone_and_in_any_batch(
    models: dict[str, tuple[Checkpoint, list[ort.InferenceSession]]],
    kind: str,
    batch: int,
    length: int,
    row: int,
    seed: int,
) -> None:
    checkpoint, sessions = models[kind]
    ids = random_ids(checkpoint, batch, length, seed)
    row %= batch
    alone = run(sessions[0], ids[row : row + 1])[0]
    for each in sessions:
        assert run(each, ids)[row].tobytes() == alone.tobytes()
        assert run(each, ids[row : row + 1])[0].tobytes() == alone.tobytes()
