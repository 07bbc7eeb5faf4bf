"""A user's own ONNX file, small, and what it computes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ipc.bundle import Bundle
from tests.tools.conftest import VOCABULARY, tiny_tokenizer, write_json
from tools.prepare import prepare

DIM = 16
CHANCE = np.random.default_rng(5)
WORDS = CHANCE.normal(0, 1, (len(VOCABULARY), DIM)).astype(np.float32)
TYPES = CHANCE.normal(0, 1, (2, DIM)).astype(np.float32)
ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Array = NDArray[Any]


def own_graph(
    *,
    inputs: tuple[str, ...] = ALL_INPUTS,
    outputs: tuple[str, ...] = ("last_hidden_state",),
    opset: int = 17,
    kind: int = TensorProto.INT64,
    shape: tuple[str | int, ...] = ("batch", "length"),
    last: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A small encoder: words and types looked up, one attention over the unmasked tokens, and the operators `last`."""
    ids = inputs[0]
    nodes = [helper.make_node("Gather", ["words", ids], ["looked_up"])]
    states = "looked_up"

    def add(operator: str, *names: str, **attributes: Any) -> None:
        nonlocal states
        nodes.append(helper.make_node(operator, names, [f"{operator}_{len(nodes)}"], **attributes))
        states = nodes[-1].output[0]

    if "token_type_ids" in inputs:
        add("Gather", "types", "token_type_ids")
        add("Add", "looked_up", states)
    embedded = states
    if "attention_mask" in inputs:
        add("Cast", "attention_mask", to=TensorProto.FLOAT)
        add("Reshape", states, "column")
        add("Mul", embedded, states)
        embedded = states
    add("Transpose", embedded, perm=[0, 2, 1])
    add("MatMul", embedded, states)
    add("Softmax", states, axis=2)
    add("MatMul", states, embedded)
    for operator in last:
        add(operator, states)
    made = []
    for name in outputs:
        if name.startswith("sentence"):
            nodes.append(helper.make_node("Gather", [states, "first"], [name], axis=1))
        else:
            nodes.append(helper.make_node("Identity", [states], [name]))
        made.append(helper.make_empty_tensor_value_info(name))
    constants = {"words": WORDS, "types": TYPES, "column": np.array([0, 0, 1]), "first": np.array(0)}
    graph = helper.make_graph(
        nodes,
        "mine",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        made,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def states_of(ids: list[int], *, types: bool = True) -> Array:
    """What `own_graph` computes, [length, DIM]."""
    embedded = WORDS[ids].astype(np.float64) + (TYPES[0] if types else 0)
    scores = np.exp(embedded @ embedded.T)
    states: Array = scores / scores.sum(axis=1, keepdims=True) @ embedded
    return states


def pooled(states: Array, pooling: str, normalize: bool) -> Array:
    vector: Array = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]
    return vector / np.linalg.norm(vector) if normalize else vector


def write_own_graph(
    root: Path,
    *,
    file: str = "mine/model.onnx",
    pooling: str = "mean",
    normalize: bool = True,
    modules: bool = True,
    **graph: Any,
) -> Path:
    """Write a folder with an ONNX file and what belongs to it, below `root`; gives the file's path."""
    path = root / file
    folder = root / file.split("/", maxsplit=1)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(own_graph(**graph).SerializeToString())
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24})
    if modules:
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        write_json(folder / "modules.json", [{"type": f"models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)])
        write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    return path


def build(source: Path) -> tuple[Bundle, list[str]]:
    lines: list[str] = []
    return prepare(str(source), source.parent.parent / "out", force=True, say=lines.append), lines
