"""A user's own ONNX file becomes a bundle that gives the vectors it should."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine.runners.onnx import OnnxRunner
from ipc.bundle import Bundle, load_bundle
from tests.tools.conftest import VOCABULARY
from tests.tools.own_graph import build, own_graph, pooled, states_of, write_own_graph
from tools.prepare import ensure_bundle

IDS = [[2, 7, 30, 9, 3], [2, 11, 12, 40, 3]]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_own_graph, tmp_path)


def vectors(bundle: Bundle) -> NDArray[Any]:
    """The vectors of IDS, as the engine's runner makes them."""
    rows = np.zeros((len(IDS), bundle.dim), np.float32)
    OnnxRunner(bundle, "cpu", 1).run([np.array(ids, np.int32) for ids in IDS], rows)
    return rows


@pytest.mark.parametrize("output", ["last_hidden_state", "token_embeddings"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_states_are_pooled_as_the_files_say(write: Write, output: str, pooling: str, normalize: bool) -> None:
    bundle, lines = build(write(outputs=(output, "pooler_output"), pooling=pooling, normalize=normalize))
    mode = pooling.removesuffix("token")
    expected = [pooled(states_of(ids), mode, normalize) for ids in IDS]
    np.testing.assert_allclose(vectors(bundle), expected, rtol=1e-5, atol=1e-6)
    assert (bundle.architecture, bundle.dim, bundle.max_tokens, bundle.vocab_size) == ("onnx", 16, 24, len(VOCABULARY))
    assert (bundle.pooling, bundle.normalize) == (mode, normalize)
    assert bundle.parity.reference == "the user's own file (no independent reference)"
    assert [line.split()[0] for line in lines] == ["wrapping", "verifying", "a", "done"]
    assert "a text has the same bits alone and in a batch" in lines[2]


@pytest.mark.parametrize("opset", [11, 13, 15, 18, 21])
def test_opsets_old_and_new(write: Write, opset: int) -> None:
    bundle, _ = build(write(opset=opset))
    np.testing.assert_allclose(vectors(bundle), [pooled(states_of(ids), "mean", True) for ids in IDS], rtol=1e-5)


@pytest.mark.parametrize("inputs", [("input_ids",), ("input_ids", "attention_mask"), ("input_ids", "token_type_ids")])
@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
def test_inputs_that_a_file_may_lack_and_their_types(write: Write, inputs: tuple[str, ...], kind: int) -> None:
    bundle, _ = build(write(inputs=inputs, kind=kind, pooling="cls", normalize=False))
    expected = [states_of(ids, types="token_type_ids" in inputs)[0] for ids in IDS]
    np.testing.assert_allclose(vectors(bundle), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("has_unit_length", [True, False])
def test_a_sentence_vector_is_taken_as_it_is(write: Write, has_unit_length: bool) -> None:
    last = ("LpNormalization",) if has_unit_length else ()
    bundle, lines = build(write(outputs=("token_embeddings", "sentence_embedding"), modules=False, last=last))
    expected = [pooled(states_of(ids), "cls", has_unit_length) for ids in IDS]
    np.testing.assert_allclose(vectors(bundle), expected, rtol=1e-5, atol=1e-6)
    assert (bundle.pooling, bundle.normalize) == ("own", has_unit_length)
    assert not any("assumed" in line for line in lines)


def test_without_modules_the_assumption_is_said(write: Write) -> None:
    bundle, lines = build(write(modules=False))
    assert (bundle.pooling, bundle.normalize) == ("mean", True)
    assert lines[0] == "note       no modules.json: mean pooling and normalization are assumed"


def test_the_server_finds_its_bundle_by_file_and_by_folder(write: Write, tmp_path: Path) -> None:
    for file in ("beside/model.onnx", "below/onnx/model.onnx", "named/encoder.onnx"):
        path = write(file=file)
        folder = tmp_path / file.split("/")[0]
        sources = [path] if path.name == "encoder.onnx" else [path, folder]
        made = {ensure_bundle(str(source), tmp_path / "data") for source in sources}
        assert len(made) == 1
        assert (bundle := load_bundle(made.pop())).id == folder.name
        path.write_bytes(own_graph(inputs=("input_ids",)).SerializeToString())
        assert ensure_bundle(str(path), tmp_path / "data") != bundle.folder


def test_weights_in_a_second_file(write: Write) -> None:
    path = write()
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=1000)
    bundle, _ = build(path)
    np.testing.assert_allclose(vectors(bundle), [pooled(states_of(ids), "mean", True) for ids in IDS], rtol=1e-5)
    assert sorted(bundle.files) == ["model.fp32.onnx", "tokenizer.json"]
    data = path.with_name("model.onnx_data")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert build(path)[0].revision != bundle.revision


def test_quantization_at_run_time_is_let_through_and_told(write: Write) -> None:
    path = write()
    model = onnx.load(path)
    states = model.graph.node[-1].input[0]
    model.graph.node[-1].input[0] = "rounded"
    nodes = [
        helper.make_node("DynamicQuantizeLinear", [states], ["eight_bits", "scale", "zero_point"]),
        helper.make_node("DequantizeLinear", ["eight_bits", "scale", "zero_point"], ["rounded"]),
    ]
    model.graph.node.extend([*nodes, model.graph.node.pop()])
    onnx.save(model, path)
    bundle, lines = build(path)
    assert any(line.startswith("note       a text alone and in a batch has vectors that differ") for line in lines)
    expected = np.array([pooled(states_of(ids), "mean", True) for ids in IDS])
    assert ((vectors(bundle) * expected).sum(axis=1) > 0.999).all()


def test_half_precision_inside(write: Write) -> None:
    path = write(normalize=False)
    model = onnx.load(path)
    model.graph.node[-1].CopyFrom(
        helper.make_node("Cast", model.graph.node[-1].input[:1], ["last_hidden_state"], to=TensorProto.FLOAT16)
    )
    onnx.save(model, path)
    bundle, _ = build(path)
    session = ort.InferenceSession(bundle.graph("fp32"), providers=["CPUExecutionProvider"])
    assert [(o.name, o.type) for o in session.get_outputs()] == [("embeddings", "tensor(float)")]
    expected = [pooled(states_of(ids), "mean", False) for ids in IDS]
    np.testing.assert_allclose(vectors(bundle), expected, rtol=1e-2, atol=1e-3)
