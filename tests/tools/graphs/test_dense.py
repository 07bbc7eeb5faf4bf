"""The dense graph: the same vectors as plain NumPy, the same bits in any batch, and never a NaN."""

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

from engine.runners.onnx import SLOW_FUSIONS
from ipc.bundle import Bundle
from tests.tools.conftest import write_model
from tools import reference
from tools.checkpoint import read_checkpoint
from tools.families import CONFIGS, GELU_ERF, GELU_TANH
from tools.graphs.encoder import build_graph

Rows = NDArray[np.float32]
MakeModel = Callable[..., Path]

# Chosen to have kernels in ONNX Runtime's CPU and CUDA providers. Before you add one, look it up in ONNX Runtime's
# docs/OperatorKernels.md, and see that it works on each row by itself.
ALLOWED = {
    *("EmbedLayerNormalization", "Attention", "MatMul", "LayerNormalization", "BiasGelu", "FastGelu"),
    *("Shape", "Concat", "ConstantOfShape", "Cast", "Div", "Gather", "Transpose", "Sqrt", "Max", "Reshape"),
    *("MultiHeadAttention", "Slice", "Add"),
}


def session(model: str | bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS)


def run(session: ort.InferenceSession, ids: NDArray[np.int32]) -> Rows:
    rows: Rows = session.run(["embeddings"], {"input_ids": ids})[0]
    return rows


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("hidden_act", GELU_ERF + GELU_TANH)
@pytest.mark.parametrize("kind", CONFIGS)
def test_vectors_are_those_of_the_formulas(
    make_model: MakeModel, kind: str, hidden_act: str, pooling: str, normalize: bool
) -> None:
    options = {"pooling": pooling, "normalize": normalize, "layer_norm_eps": 1e-3}
    checkpoint = read_checkpoint(make_model(model_type=kind, hidden_act=hidden_act, **options))
    model = build_graph(checkpoint)
    onnx.checker.check_model(model)
    tiny = session(model.SerializeToString())
    ids = np.random.default_rng(3).integers(0, checkpoint.config.vocab_size, (4, 11), dtype=np.int32)
    expected = np.stack([reference.embed(checkpoint, row) for row in ids.tolist()])
    np.testing.assert_allclose(run(tiny, ids), expected, rtol=1e-4, atol=3e-6)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-12)


def test_the_interface_and_the_operators(make_model: MakeModel) -> None:
    folders = [make_model(folder=kind, model_type=kind) for kind in CONFIGS]
    for folder in (*folders, make_model(pooling="cls", hidden_act="gelu_new")):
        model = build_graph(read_checkpoint(folder))
        tiny = session(model.SerializeToString())
        inputs = [(i.name, i.type, i.shape) for i in tiny.get_inputs()]
        outputs = [(o.name, o.type, o.shape) for o in tiny.get_outputs()]
        assert inputs == [("input_ids", "tensor(int32)", ["batch", "length"])]
        assert outputs == [("embeddings", "tensor(float)", ["batch", 32])]
        assert {node.op_type for node in model.graph.node} <= ALLOWED


def test_building_twice_gives_the_same_bytes(make_model: MakeModel) -> None:
    checkpoint = read_checkpoint(make_model())
    first, second = (build_graph(checkpoint).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_as_many_tokens_as_there_are_positions(make_model: MakeModel) -> None:
    for kind in CONFIGS:
        # More than the distances that mpnet tells apart.
        checkpoint = read_checkpoint(make_model(folder=kind, model_type=kind, max_position_embeddings=140))
        most = checkpoint.config.max_tokens
        assert most == (140 if kind in ("bert", "distilbert") else 138)
        ids = np.random.default_rng(3).integers(0, checkpoint.config.vocab_size, (1, most), dtype=np.int32)
        rows = run(session(build_graph(checkpoint).SerializeToString()), ids)
        np.testing.assert_allclose(rows[0], reference.embed(checkpoint, ids[0].tolist()), rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e18])
def test_zero_tiny_and_huge_states_never_give_nan(make_model: MakeModel, pooling: str, size: float) -> None:
    checkpoint = read_checkpoint(make_model(pooling=pooling))
    last = "encoder.layer.1.output.LayerNorm."
    for part in ("weight", "bias"):
        checkpoint.weights[last + part][:] = size
    rows = run(session(build_graph(checkpoint).SerializeToString()), np.full((3, 5), 9, dtype=np.int32))
    assert np.isfinite(rows).all()
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert (lengths <= 1 + 1e-6).all()
    if size >= 1e-3:
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_an_id_outside_the_vocabulary_is_an_error_and_no_memory_is_read(make_model: MakeModel) -> None:
    tiny = session(build_graph(read_checkpoint(make_model())).SerializeToString())
    for bad in (-1, 10**6):
        with pytest.raises(Exception, match="input index out of range"):
            run(tiny, np.array([[2, bad, 3]], dtype=np.int32))


class Sessions:
    """A model with one and with two threads for each operator."""

    def __init__(self, graph: str | bytes, vocab_size: int) -> None:
        self.all = [session(graph, threads=1), session(graph, threads=2)]
        self.vocab_size = vocab_size

    def check(self, batch: int, length: int, row: int, seed: int) -> None:
        """One text of a random batch must have the same bits alone, in its batch, and with any threads."""
        ids = np.random.default_rng(seed).integers(0, self.vocab_size, (batch, length), dtype=np.int32)
        row %= batch
        alone = run(self.all[0], ids[row : row + 1])[0]
        for each in self.all:
            assert run(each, ids)[row].tobytes() == alone.tobytes()
            assert run(each, ids[row : row + 1])[0].tobytes() == alone.tobytes()


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> Sessions:
    return Sessions(str(bundle.graph("fp32")), bundle.vocab_size)


# Shapes of real models, in which products are split into blocks; with two layers, so that they are quick.
SHAPES: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 3,
    "max_position_embeddings": 260,
}

# xlm-roberta's graph is roberta's.
FAMILIES = [
    *((kind, "mean") for kind in CONFIGS if kind != "xlm-roberta"),
    *(("bert", pooling) for pooling in ("cls", "lasttoken")),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Sessions]:
    every = {}
    for kind, pooling in FAMILIES:
        folder = write_model(tmp_path_factory.mktemp(kind), model_type=kind, pooling=pooling, **SHAPES)
        checkpoint = read_checkpoint(folder)
        graph = build_graph(checkpoint).SerializeToString()
        every[kind, pooling] = Sessions(graph, checkpoint.config.vocab_size)
    return every


@given(st.integers(1, 32), st.integers(2, 256), st.integers(0, 31), st.integers(0, 2**32 - 1))
@example(batch=32, length=2, row=31, seed=0)
@example(batch=32, length=256, row=7, seed=1)
@example(batch=7, length=129, row=0, seed=2)
@settings(max_examples=25, deadline=None)
def test_a_text_has_the_same_bits_alone_and_in_any_batch(
    sessions: Sessions, batch: int, length: int, row: int, seed: int
) -> None:
    sessions.check(batch, length, row, seed)


@given(st.integers(1, 16), st.integers(1, 256), st.integers(0, 15), st.integers(0, 2**32 - 1))
@example(batch=16, length=256, row=15, seed=0)
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize(("kind", "pooling"), FAMILIES)
def test_so_it_is_in_every_family(
    families: dict[tuple[str, str], Sessions], kind: str, pooling: str, batch: int, length: int, row: int, seed: int
) -> None:
    families[kind, pooling].check(batch, length, row, seed)
