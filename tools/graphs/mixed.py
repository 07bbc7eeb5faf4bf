"""The layout for the CPU: the tokens of all texts in one row; attention alone sees a row for each text.

    inputs as in engine/runners/mixing.py  →  embeddings float32 [texts, dim]

Products, norms and activations compute nothing for padding, and have as many rows as the batch has tokens, whatever the
lengths. For attention the texts lie in groups of similar lengths, padded to the longest of the group.

A text gets the same bits alone and in any company: every operator works on each row by itself, and padding adds exactly
nothing at the end of sums. Some CPUs' kernels treat the last terms of a sum differently, so texts are padded to
multiples of MIXED_STEP. docs/decisions/0013 has the measurements.
"""

import numpy as np

from ipc.bundle import MIXED_GROUPS
from tools.checkpoint import Usage, Weights
from tools.families import BertConfig
from tools.graphs.dense import unit_length
from tools.graphs.nodes import MICROSOFT, Nodes, tensor
from tools.graphs.packed import embed_row

GROUPS = range(MIXED_GROUPS)
# The group of texts of one length, which needs no mask.
PLAIN = GROUPS[-1]
# Added to the score of a key that is padding: softmax gives 0, whatever the score was.
MASKED = -1e30


class Mixed:
    """States are [tokens, hidden]."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.inputs = [tensor(name, np.int32, "tokens") for name in ("input_ids", "position_ids", "back")]
        self.inputs.append(tensor("order", np.int32, "texts"))
        for group in GROUPS:
            self.inputs.append(tensor(f"places_{group}", np.int32, f"texts_{group}", f"width_{group}"))
            self.inputs.append(tensor(f"lengths_{group}", np.int32, f"texts_{group}"))
        self.texts = "texts"
        self._biases: dict[int, str] = {}
        self._places: dict[int, tuple[str, str, str]] = {}

    def prepare(self, weights: Weights, config: BertConfig) -> Weights:
        """The weights as they are."""
        return weights

    def embed(self, words: str, positions: str, scale: str, shift: str, epsilon: float) -> str:
        """As one text of all tokens."""
        return embed_row(self.nodes, words, positions, scale, shift, epsilon)

    def longest(self) -> str:
        """The width of the widest group."""
        return self.nodes.add("Max", *(self.nodes.add("Shape", f"places_{group}", start=1, end=2) for group in GROUPS))

    def attend(self, states: str, weights: Weights, prefix: str, heads: int, bias: str) -> str:
        """One product of all tokens, and an attention for each group."""
        parts = [f"{prefix}{part}" for part in ("query", "key", "value")]
        biases = self.nodes.weight(f"{prefix}qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in parts]))
        matrix = np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)
        rows = self.nodes.once("rows", np.array([-1, len(matrix)]))
        # A query, a key and a value for each token, one below the other.
        product = self.nodes.add("Reshape", self.nodes.product(states, f"{prefix}qkv", matrix), rows)
        attended = []
        for group in GROUPS:
            padded = [self.nodes.add("Gather", product, places, axis=0) for places in self._places_of(group)]
            # Only a bias or a mask, or keys and values that somebody might read, keep ONNX Runtime from another way to
            # add up, whose bits would be others.
            is_plain = group == PLAIN
            inputs = (
                *padded,
                biases,
                "" if is_plain else f"lengths_{group}",
                self._bias_of(group, bias) if bias else "",
            )
            unused = (f"{prefix}keys", f"{prefix}values") if is_plain else ()
            each = self.nodes.add(
                "MultiHeadAttention",
                *inputs,
                unused=unused,
                domain=MICROSOFT,
                num_heads=heads,
                mask_filter_value=MASKED,
            )
            attended.append(self.nodes.add("Reshape", each, rows))
        return self.nodes.add("Gather", self.nodes.add("Concat", *attended, axis=0), "back", axis=0)

    def add_and_norm(self, product: str, residual: str, bias: str, scale: str, shift: str, epsilon: float) -> str:
        """See Nodes.sum_and_norm."""
        return self.nodes.sum_and_norm(product, residual, bias, scale, shift, epsilon)

    def pool(self, states: str, checkpoint: Usage) -> None:
        """Vectors [texts, 1, hidden] until the last node, so that products have one row."""
        pool = self._mean if checkpoint.pooling == "mean" else self._one
        joined = self.nodes.add("Concat", *(pool(states, group, checkpoint.pooling) for group in GROUPS), axis=0)
        vectors = self.nodes.add("Gather", joined, "order", axis=0)
        if checkpoint.normalize:
            vectors = unit_length(self.nodes, vectors)
        self.nodes.add("Reshape", vectors, self.nodes.constant("vectors", np.array([0, -1])))

    def _places_of(self, group: int) -> tuple[str, str, str]:
        """Where the queries, keys and values of the group's tokens are; made once for all layers."""
        if group not in self._places:
            three, one = (self.nodes.once(f"number_{n}", np.array(n, np.int32)) for n in (3, 1))
            queries = self.nodes.add("Mul", f"places_{group}", three)
            keys = self.nodes.add("Add", queries, one)
            self._places[group] = queries, keys, self.nodes.add("Add", keys, one)
        return self._places[group]

    def _bias_of(self, group: int, bias: str) -> str:
        """The part of `bias` for the group's width, [1, heads, width, width]; made once for all layers."""
        if group not in self._biases:
            first, axes = (
                self.nodes.once(name, np.array(v)) for name, v in (("bias.first", [0, 0]), ("bias.axes", [2, 3]))
            )
            width = self.nodes.add("Shape", f"places_{group}", start=1, end=2)
            self._biases[group] = self.nodes.add(
                "Slice", bias, first, self.nodes.add("Concat", width, width, axis=0), axes
            )
        return self._biases[group]

    def _mean(self, states: str, group: int, _: str) -> str:
        """The means over the texts' tokens: products of rows of 1/length, then zeros, with the padded states.

        Each row twice: ONNX Runtime adds up a product of one row four terms at a time, so that the end of a text would
        matter.
        """
        add = self.nodes.add
        padded = add("Gather", states, f"places_{group}", axis=0)
        lengths = add("Unsqueeze", f"lengths_{group}", self.nodes.once("row_axes", np.array([1, 2])))
        zero, one = (self.nodes.once(f"number_{n}", np.array(n, np.int32)) for n in (0, 1))
        width = self.nodes.cast(
            add(
                "Squeeze", add("Shape", f"places_{group}", start=1, end=2), self.nodes.once("first_axis", np.array([0]))
            ),
            np.int32,
        )
        shares = add("Reciprocal", self.nodes.cast(lengths, np.float32))
        is_token = add("Less", add("Range", zero, width, one), lengths)
        rows = add("Where", is_token, shares, self.nodes.once("nothing", np.array(0, np.float32)))
        means = add("MatMul", add("Concat", rows, rows, axis=1), padded)
        return add("Gather", means, self.nodes.once("column", np.array([0])), axis=1)

    def _one(self, states: str, group: int, pooling: str) -> str:
        """The state of the first token ("cls") or the last."""
        column = self.nodes.once("column", np.array([0]))
        token = self.nodes.add("Gather", f"places_{group}", column, axis=1)
        if pooling == "last":
            lengths = self.nodes.add("Unsqueeze", f"lengths_{group}", self.nodes.once("token_axis", np.array([1])))
            one = self.nodes.once("number_1", np.array(1, np.int32))
            token = self.nodes.add("Sub", self.nodes.add("Add", token, lengths), one)
        return self.nodes.add("Gather", states, token, axis=0)
