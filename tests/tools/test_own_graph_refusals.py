"""A user's own ONNX file that cannot be served is refused in one sentence."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, processors

from ipc.errors import StartError
from tests.tools.conftest import write_json
from tests.tools.own_graph import WORDS, build, write_own_graph

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(write_own_graph, tmp_path)


def refusal(source: Path) -> str:
    with pytest.raises(StartError) as caught:
        build(source)
    assert not (source.parent.parent / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_in_a_file_of_any_other_name(write: Write) -> None:
    path = write()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    assert "keeps weights in weights.bin, which must lie beside it" in refusal(path)


def test_weights_that_are_away(write: Write) -> None:
    path = write()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx_data", size_threshold=1000)
    path.with_name("model.onnx_data").unlink()
    assert "keeps weights in model.onnx_data, which must lie beside it" in refusal(path)


def test_more_than_one_file_can_hold(write: Write) -> None:
    path = write()
    path.with_name("model.onnx_data").touch()
    os.truncate(path.with_name("model.onnx_data"), 2**31)  # sparse: it takes no room
    assert "has more than 2 GB of weights" in refusal(path)


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({"inputs": ("tokens", "attention_mask")}, "takes the inputs tokens, attention_mask; supported: input_ids"),
        ({"inputs": ("input_ids", "position_ids")}, "takes the inputs input_ids, position_ids; supported: input_ids"),
        ({"shape": (1, "length")}, "input_ids has the fixed shape [1, '?']; export it with dynamic axes"),
        ({"shape": ("length",)}, "input_ids is not int64 or int32 of the shape [batch, length]"),
        ({"kind": TensorProto.FLOAT}, "input_ids is not int64 or int32 of the shape [batch, length]"),
        ({"outputs": ("logits", "probabilities")}, "gives the outputs logits, probabilities; supported: sentence_emb"),
        ({"outputs": ("last_hidden_state", "token_embeddings")}, "one of last_hidden_state and token_embeddings"),
        ({"last": ("ArgMax",)}, "last_hidden_state is int64 of the shape [1, 2, 16] for one text of 2 tokens, where"),
        ({"last": ("Sqrt",)}, "has values that are not finite"),
        ({"opset": 9}, "is of ONNX opset 9; export it again with opset 11 or newer"),
        ({"opset": 99}, "ONNX Runtime cannot load"),
    ],
)
def test_a_file_that_cannot_be_served(write: Write, graph: dict[str, Any], says: str) -> None:
    assert says in refusal(write(**graph))


def test_what_is_no_onnx_model(write: Write) -> None:
    path = write()
    path.write_bytes(b"\x08\x08 these are not the weights you are looking for")
    assert "cannot be read as an ONNX model" in refusal(path)


def test_files_beside_it_that_must_be_there(write: Write) -> None:
    path = write()
    (path.parent / "sentence_bert_config.json").unlink()
    assert "does not say how many tokens a text may have" in refusal(path)
    (path.parent / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(path)


def test_a_tokenizer_that_does_not_belong_to_it(write: Write) -> None:
    path = write()
    write_json(path.parent / "config.json", {"vocab_size": 40, "max_position_embeddings": 30})
    assert "the two are not of the same model" in refusal(path)


def test_token_types_that_are_not_zero(write: Write) -> None:
    path = write()
    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path.parent / "tokenizer.json"))
    assert "gives token types other than zero" in refusal(path)


def test_texts_longer_than_the_graph_takes(write: Write) -> None:
    path = write()
    model = onnx.load(path)
    # A table of 20 positions, where the files allow 24 tokens.
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["positions"]),
        helper.make_node("Gather", ["table", "positions"], ["at"]),
        helper.make_node("Add", [model.graph.node[-1].input[0], "at"], ["moved"]),
    ]
    model.graph.node[-1].input[0] = "moved"
    model.graph.node.extend([*nodes, model.graph.node.pop()])
    constants = {"one": np.array(1), "zero": np.array(0), "table": WORDS[:20]}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, path)
    assert "fails on a text of 24 tokens" in refusal(path)
    write_json(path.parent / "sentence_bert_config.json", {"max_seq_length": 20})
    assert build(path)[0].max_tokens == 20


def test_texts_of_a_batch_that_change_each_other(write: Write) -> None:
    path = write()
    model = onnx.load(path)
    states = model.graph.node[-1].input[0]
    model.graph.node[-1].input[0] = "mixed"
    mix = helper.make_node("ReduceMean", [states], ["of_all"], axes=[0], keepdims=1)
    model.graph.node.extend([mix, helper.make_node("Add", [states, "of_all"], ["mixed"]), model.graph.node.pop()])
    onnx.save(model, path)
    assert "so the texts of a batch change each other; no bundle was written" in refusal(path)
