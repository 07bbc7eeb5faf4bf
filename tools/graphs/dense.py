"""Pooling for graphs that others made: all texts of a batch have the same length, and there is no mask.

    input_ids int32 [batch, length]  →  embeddings float32 [batch, dim]

It is batch invariant: sums over a text are batched matrix products with one row, because ONNX Runtime's reductions add
up in another order when the batch axis is 1. docs/decisions/0002 has the measurements.

Only operators whose form is the same in every opset from 11 on: the graphs have all of them.
"""

import numpy as np
from onnx import TensorProto, helper

from tools.checkpoint import Usage
from tools.graphs.nodes import Nodes

# Below this length a vector is left short instead of being blown up; the same limit as PyTorch's `normalize`.
SHORTEST = 1e-12


def pool(nodes: Nodes, states: str, usage: Usage) -> None:
    """End the graph with the vectors of states [batch, length, hidden]; [batch, 1, hidden] until the last node."""
    pooled = _mean(nodes, states) if usage.pooling == "mean" else _one(nodes, states, usage.pooling)
    vectors = unit_length(nodes, pooled) if usage.normalize else pooled
    nodes.add("Reshape", vectors, nodes.constant("rows", np.array([0, -1])))


def unit_length(nodes: Nodes, vectors: str) -> str:
    """Vectors [texts, 1, hidden] divided by their lengths; a zero vector stays zero and is never NaN."""
    squares = nodes.add("MatMul", vectors, nodes.add("Transpose", vectors, perm=[0, 2, 1]))
    shortest = nodes.constant("shortest", np.array(SHORTEST, dtype=np.float32))
    return nodes.add("Div", vectors, nodes.add("Max", nodes.add("Sqrt", squares), shortest))


def _mean(nodes: Nodes, states: str) -> str:
    """The mean over a text's tokens: the product of the row 1/length, … with the states."""
    axis = nodes.constant("length_axis", np.array([1]))
    length = nodes.add("Gather", nodes.add("Shape", "input_ids"), axis)
    one_row = nodes.add("Concat", nodes.constant("one", np.array([1])), length, axis=0)
    fill = helper.make_tensor("fill", TensorProto.FLOAT, [1], [1.0])
    ones = nodes.add("ConstantOfShape", one_row, value=fill)
    row = nodes.add("Div", ones, nodes.cast(length, np.float32))
    return nodes.add("MatMul", row, states)


def _one(nodes: Nodes, states: str, pooling: str) -> str:
    """The state of the first token ("cls") or the last."""
    token = np.array([0 if pooling == "cls" else -1])
    return nodes.add("Gather", states, nodes.constant("token", token), axis=1)
