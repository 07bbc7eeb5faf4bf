"""The packed graph: fit for ONNX Runtime's CUDA operators, and the CPU graph's vectors, rewritten for the CPU."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from engine.runners.mixing import arrange
from ipc.errors import StartError
from tools.checkpoint import Checkpoint, read_checkpoint
from tools.families import CONFIGS
from tools.graphs.emulation import emulate, pack
from tools.graphs.encoder import build_graph

Ids = NDArray[np.int32]
Rows = NDArray[np.float32]
MakeModel = Callable[..., Path]

# All that the graphs are made of. Before you add one, look up in ONNX Runtime's docs/OperatorKernels.md that its CUDA
# provider has it for float16 or int64: one node on the CPU means two copies and a wait.
ALLOWED = {
    *("EmbedLayerNormalization", "PackedMultiHeadAttention", "SkipLayerNormalization", "BiasGelu", "FastGelu"),
    *("MatMul", "Add", "Squeeze", "Unsqueeze", "Slice", "Gather", "Shape", "Size", "Range", "Cast"),
    *("GreaterOrEqual", "Less", "And", "Where", "Sub", "Mul", "Div", "Reciprocal", "ReduceL2", "Max"),
}
LENGTHS = (3, 17, 1, 24, 9, 2, 17)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_texts(checkpoint: Checkpoint, lengths: Sequence[int] = LENGTHS) -> list[Ids]:
    chance = np.random.default_rng(5)
    return [chance.integers(0, checkpoint.config.vocab_size, n, dtype=np.int32) for n in lengths]


def one_by_one(checkpoint: Checkpoint, texts: list[Ids]) -> Rows:
    exact = session(build_graph(checkpoint))
    return np.concatenate([exact.run(None, arrange([ids]))[0] for ids in texts])


def cosines(one: Rows, other: Rows) -> Rows:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    result: Rows = (one.astype(np.float64) * other).sum(axis=1) / lengths
    return result


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_interface(make_model: MakeModel, kind: str) -> None:
    model = build_graph(read_checkpoint(make_model(model_type=kind)), "fp16")
    onnx.checker.check_model(model)
    described = [(i.name, i.type.tensor_type.elem_type, shape(i)) for i in (*model.graph.input, *model.graph.output)]
    assert described == [
        ("input_ids", TensorProto.INT32, ["tokens"]),
        ("position_ids", TensorProto.INT32, ["tokens"]),
        ("cu_seqlens", TensorProto.INT32, ["bounds"]),
        ("token_offset", TensorProto.INT32, ["texts", "longest"]),
        ("embeddings", TensorProto.FLOAT, ["texts", 32]),
    ]


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_the_operators_are_those_of_onnx_runtime(make_model: MakeModel, kind: str, pooling: str) -> None:
    """Names, numbers of inputs and attributes are held against the schemas of the ONNX Runtime that is installed."""
    schemas = {(s.domain, s.name): s for s in get_all_operator_schema()}
    model = build_graph(read_checkpoint(make_model(model_type=kind, pooling=pooling)), "fp16")
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    for node in model.graph.node:
        if node.domain:
            schema = schemas[node.domain, node.op_type]
            assert {a.name for a in node.attribute} <= schema.attributes.keys()
            required = [i for i, formal in enumerate(schema.inputs) if formal.option.name == "Single"]
            assert all(node.input[i] for i in required)
            assert len(node.input) <= len(schema.inputs)
    attention = next(n for n in model.graph.node if n.op_type == "PackedMultiHeadAttention")
    names = [i.name for i in schemas[attention.domain, attention.op_type].inputs]
    given = {name: value for name, value in zip(names, attention.input, strict=False) if value}
    assert (given["token_offset"], given["cumulative_sequence_length"]) == ("token_offset", "cu_seqlens")
    assert "bias" not in given  # with one, the flash kernel needs a transposition first
    assert ("attention_bias" in given) == (kind == "mpnet")


def test_states_are_half_precision_and_types_fit(make_model: MakeModel, kind: str) -> None:
    checkpoint = read_checkpoint(make_model(model_type=kind))
    model = build_graph(checkpoint, "fp16")
    floats = [t for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    assert [t.name for t in floats if t.data_type == TensorProto.FLOAT] == ["shortest"]
    # ONNX Runtime refuses a graph where float16 meets float32. Only the CPU provider is here, which lacks the packed
    # attention: an addition of queries and keys has the same types and shape.
    for node in model.graph.node:
        if node.op_type == "PackedMultiHeadAttention":
            node.CopyFrom(helper.make_node("Add", node.input[:2], node.output))
    assert session(model).run(None, pack(random_texts(checkpoint)))[0].shape == (len(LENGTHS), 32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_vectors_are_those_of_the_cpu_graph(make_model: MakeModel, kind: str, pooling: str, normalize: bool) -> None:
    checkpoint = read_checkpoint(make_model(model_type=kind, pooling=pooling, normalize=normalize))
    texts = random_texts(checkpoint)
    expected = one_by_one(checkpoint, texts)
    rows = session(emulate(build_graph(checkpoint, "fp16"))).run(None, pack(texts))[0]
    assert rows.dtype == np.float32
    assert cosines(rows, expected).min() > 1 - 3e-6
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-6 if normalize else 1e-3
    )


def test_order_and_company_change_next_to_nothing(make_model: MakeModel, kind: str) -> None:
    checkpoint = read_checkpoint(make_model(model_type=kind))
    texts = random_texts(checkpoint)
    emulated = session(emulate(build_graph(checkpoint, "fp16")))
    alone = np.concatenate([emulated.run(None, pack([ids]))[0] for ids in texts])
    backwards = emulated.run(None, pack(texts[::-1]))[0][::-1]
    assert cosines(alone, backwards).min() > 1 - 1e-6


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_texts_without_tokens_change_no_other(make_model: MakeModel, pooling: str, normalize: bool) -> None:
    """As a batch has that is filled up to a fixed number of texts."""
    checkpoint = read_checkpoint(make_model(pooling=pooling, normalize=normalize))
    texts = random_texts(checkpoint)
    emulated = session(emulate(build_graph(checkpoint, "fp16")))
    nothing = np.array([], np.int32)
    filled = emulated.run(None, pack([*texts[:-1], nothing, nothing, texts[-1]]))[0]
    assert len(filled) == len(texts) + 2
    np.testing.assert_array_equal(np.delete(filled, [-3, -2], axis=0), emulated.run(None, pack(texts))[0])


def test_a_wrong_input_shows(make_model: MakeModel, kind: str) -> None:
    """That the tests above see what they are to see: each input has a part in every family's vectors."""
    checkpoint = read_checkpoint(make_model(model_type=kind))
    texts = random_texts(checkpoint)
    emulated = session(emulate(build_graph(checkpoint, "fp16")))
    batch = pack(texts)
    right = emulated.run(None, batch)[0]
    for name in ("input_ids", "position_ids", "cu_seqlens"):
        wrong = {**batch, name: batch[name].copy()}
        wrong[name][1] += 1
        assert cosines(right, emulated.run(None, wrong)[0]).min() < 1 - 5e-6, name


def test_packing() -> None:
    batch = pack([np.array([7, 8], np.int32), np.array([9], np.int32), np.array([4, 5, 6], np.int32)])
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [7, 8, 9, 4, 5, 6],
        "position_ids": [0, 1, 0, 0, 1, 2],
        "cu_seqlens": [0, 2, 3, 6],
        "token_offset": [[0, 1, 3], [6, 7, 8], [2, 4, 5]],
    }
    assert all(array.dtype == np.int32 for array in batch.values())


def test_weights_that_float16_cannot_hold_are_refused(make_model: MakeModel) -> None:
    checkpoint = read_checkpoint(make_model())
    name = "encoder.layer.1.output.dense.weight"
    checkpoint.weights[name][0, 0] = 65504
    build_graph(checkpoint, "fp16")
    checkpoint.weights[name][0, 0] = -70000
    with pytest.raises(StartError, match=r"float16: encoder.layer.1.output.dense holds 70000, .* 65504; use fp32"):
        build_graph(checkpoint, "fp16")
    build_graph(checkpoint)


def test_states_that_float16_cannot_hold_are_infinite(make_model: MakeModel) -> None:
    """As on a GPU, so that whoever compares vectors sees it; float32 would hide it."""
    checkpoint = read_checkpoint(make_model())
    checkpoint.weights["encoder.layer.1.intermediate.dense.weight"][:] = 60000
    checkpoint.weights["encoder.layer.1.output.dense.weight"][:] = 60000
    texts = random_texts(checkpoint)
    assert np.isfinite(one_by_one(checkpoint, texts)).all()
    rows = session(emulate(build_graph(checkpoint, "fp16"))).run(None, pack(texts))[0]
    assert not np.isfinite(rows).all()
