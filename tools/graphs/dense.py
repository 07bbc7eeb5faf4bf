"""The layout for int8, and for graphs that others made: all texts of a batch have the same length.

    input_ids int32 [batch, length]  →  embeddings float32 [batch, dim]

So the graph has no mask and computes nothing for padding. It is batch invariant: a text gets the same bits alone and in
any batch. Every operator here therefore works on each row by itself; sums over a text are batched matrix products with
one row, because ONNX Runtime's reductions add up in another order when the batch axis is 1. docs/decisions/0002 has the
measurements.
"""

import numpy as np
from onnx import TensorProto, helper

from tools.checkpoint import Usage, Weights
from tools.families import BertConfig
from tools.graphs.nodes import MICROSOFT, Nodes, tensor

# Below this length a vector is left short instead of being blown up; the same limit as PyTorch's `normalize`.
SHORTEST = 1e-12


class Dense:
    """States are [batch, length, hidden]."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.inputs = [tensor("input_ids", np.int32, "batch", "length")]
        self.texts = "batch"

    def prepare(self, weights: Weights, config: BertConfig) -> Weights:
        """The weights as they are."""
        return weights

    def embed(self, words: str, positions: str, scale: str, shift: str, epsilon: float) -> str:
        """One operator, which counts the positions itself."""
        return self.nodes.add(
            "EmbedLayerNormalization",
            "input_ids",
            "",  # token types
            words,
            positions,
            "",  # token type vectors
            scale,
            shift,
            unused=("mask_index",),
            domain=MICROSOFT,
            epsilon=epsilon,
        )

    def longest(self) -> str:
        """The length of every text."""
        return self.nodes.add("Shape", "input_ids", start=1, end=2)

    def attend(self, states: str, weights: Weights, prefix: str, heads: int, bias: str) -> str:
        """Three products, and one operator that adds their biases and attends.

        ONNX Runtime's operator for both does not take int8 weights with a scale for each token, and its own int8 form
        has no input for `bias`.
        """
        parts = [f"{prefix}{part}" for part in ("query", "key", "value")]
        biases = self.nodes.weight(f"{prefix}qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in parts]))
        products = [self.nodes.product(states, part, weights[f"{part}.weight"].T) for part in parts]
        inputs = (*products, biases, "", bias)  # no mask
        return self.nodes.add("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=heads)

    def add_and_norm(self, product: str, residual: str, bias: str, scale: str, shift: str, epsilon: float) -> str:
        """See Nodes.sum_and_norm."""
        return self.nodes.sum_and_norm(product, residual, bias, scale, shift, epsilon)

    def pool(self, states: str, checkpoint: Usage) -> None:
        """Vectors [batch, 1, hidden] until the last node, so that products have one row.

        Only operators whose form is the same in every opset from 11 on: graphs that others made have all of them.
        """
        pooled = self._mean(states) if checkpoint.pooling == "mean" else self._one(states, checkpoint.pooling)
        vectors = unit_length(self.nodes, pooled) if checkpoint.normalize else pooled
        self.nodes.add("Reshape", vectors, self.nodes.constant("rows", np.array([0, -1])))

    def _mean(self, states: str) -> str:
        """The mean over a text's tokens: the product of the row 1/length, … with the states."""
        axis = self.nodes.constant("length_axis", np.array([1]))
        length = self.nodes.add("Gather", self.nodes.add("Shape", "input_ids"), axis)
        one_row = self.nodes.add("Concat", self.nodes.constant("one", np.array([1])), length, axis=0)
        fill = helper.make_tensor("fill", TensorProto.FLOAT, [1], [1.0])
        ones = self.nodes.add("ConstantOfShape", one_row, value=fill)
        row = self.nodes.add("Div", ones, self.nodes.cast(length, np.float32))
        return self.nodes.add("MatMul", row, states)

    def _one(self, states: str, pooling: str) -> str:
        """The state of the first token ("cls") or the last."""
        token = np.array([0 if pooling == "cls" else -1])
        return self.nodes.add("Gather", states, self.nodes.constant("token", token), axis=1)


def unit_length(nodes: Nodes, vectors: str) -> str:
    """Vectors [texts, 1, hidden] divided by their lengths; a zero vector stays zero and is never NaN."""
    squares = nodes.add("MatMul", vectors, nodes.add("Transpose", vectors, perm=[0, 2, 1]))
    shortest = nodes.constant("shortest", np.array(SHORTEST, dtype=np.float32))
    return nodes.add("Div", vectors, nodes.add("Max", nodes.add("Sqrt", squares), shortest))
