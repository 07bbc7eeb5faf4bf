"""The layout for CUDA: the tokens of all texts in one row, without padding, in float16.

    input_ids     int32 [tokens]          all texts' ids, one text after the other
    position_ids  int32 [tokens]          each token's place in its text, from 0
    cu_seqlens    int32 [texts + 1]       where each text begins, and the number of tokens
    token_offset  int32 [texts, longest]  each token's place in a padded batch, row · longest + column; then those of
                                          the padding, in any order
       →
    embeddings    float32 [texts, dim]

PackedMultiHeadAttention, without a bias for queries, keys and values, goes straight to the flash kernel; with relative
positions there is none that takes their bias, and it multiplies padded matrices. It exists for CUDA alone.

Every token must belong to a text: one behind the last text has no defined state, and the mean would spread it. Who pads
a batch to a fixed size adds texts, not tokens. A text without tokens is allowed except as first and as last; its vector
means nothing and changes no other. Ids are not checked by the CUDA kernel.
"""

import numpy as np

from tools.checkpoint import Checkpoint, Weights
from tools.families import BertConfig
from tools.graphs.dense import SHORTEST
from tools.graphs.nodes import MICROSOFT, Nodes, tensor


class Packed:
    """States are float16 [tokens, hidden]; pooled vectors float32 [texts, hidden]."""

    def __init__(self) -> None:
        self.nodes = Nodes(np.float16)
        self.inputs = [
            tensor("input_ids", np.int32, "tokens"),
            tensor("position_ids", np.int32, "tokens"),
            tensor("cu_seqlens", np.int32, "bounds"),
            tensor("token_offset", np.int32, "texts", "longest"),
        ]
        self.texts = "texts"

    def prepare(self, weights: Weights, config: BertConfig) -> Weights:
        """Leave only the queries' bias, two nodes less a layer.

        The keys' adds the same to all scores of a query, which softmax takes away. The values' passes through, as the
        scores add up to 1: it becomes a part of the output's.
        """
        changed = dict(weights)
        for layer in range(config.num_hidden_layers):
            prefix = f"encoder.layer.{layer}.attention."
            output = weights[f"{prefix}output.dense.weight"].astype(np.float64)
            passed = output @ weights[f"{prefix}self.value.bias"].astype(np.float64)
            name = f"{prefix}output.dense.bias"
            changed[name] = (weights[name] + passed).astype(np.float32)
        return changed

    def embed(self, words: str, positions: str, scale: str, shift: str, epsilon: float) -> str:
        """As one text of all tokens."""
        return embed_row(self.nodes, words, positions, scale, shift, epsilon)

    def longest(self) -> str:
        """What the host says of the batch."""
        return self.nodes.add("Shape", "token_offset", start=1, end=2)

    def attend(self, states: str, weights: Weights, prefix: str, heads: int, bias: str) -> str:
        """Three products and the attention; see `prepare` for the biases."""
        query, key, value = (
            self.nodes.product(states, f"{prefix}{part}", weights[f"{prefix}{part}.weight"].T)
            for part in ("query", "key", "value")
        )
        query = self.nodes.add("Add", query, self.nodes.weight(f"{prefix}bias", weights[f"{prefix}query.bias"]))
        return self.nodes.add(
            "PackedMultiHeadAttention",
            query,
            key,
            value,
            "",  # bias
            "token_offset",
            "cu_seqlens",
            *([bias] if bias else ()),
            domain=MICROSOFT,
            num_heads=heads,
        )

    def add_and_norm(self, product: str, residual: str, bias: str, scale: str, shift: str, epsilon: float) -> str:
        """One operator, and one kernel to launch."""
        inputs = (product, residual, scale, shift, bias)
        return self.nodes.add("SkipLayerNormalization", *inputs, domain=MICROSOFT, epsilon=epsilon)

    def pool(self, states: str, checkpoint: Checkpoint) -> None:
        """In float32 from the pooled vector on."""
        axis = self.nodes.constant("text_axis", np.array([0]))
        # int64, which all of CUDA's comparisons and conversions here take.
        bounds = self.nodes.cast("cu_seqlens", np.int64)
        zero, one = self.nodes.constant("zero", np.array([0])), self.nodes.constant("one", np.array([1]))
        last, end = self.nodes.constant("last", np.array([-1])), self.nodes.constant("end", np.array([2**31 - 1]))
        starts = self.nodes.add("Slice", bounds, zero, last, axis)
        ends = self.nodes.add("Slice", bounds, one, end, axis)
        if checkpoint.pooling == "mean":
            vectors = self._mean(states, starts, ends, is_exact=not checkpoint.normalize)
        else:
            token = starts if checkpoint.pooling == "cls" else self.nodes.add("Sub", ends, one)
            vectors = self.nodes.cast(self.nodes.add("Gather", states, token, axis=0), np.float32)
        if checkpoint.normalize:
            self._unit_length(vectors)

    def _mean(self, states: str, starts: str, ends: str, *, is_exact: bool) -> str:
        """The means over the texts' tokens: a matrix [texts, tokens] of 1/length and zeros, times the states.

        Rounded to float16, 1/length is off by up to 1/4096, the same for all of a vector; with `is_exact` that is put
        right. Sums would be right at once, but of a long text they could be out of float16's range.
        """
        add = self.nodes.add
        token_axis = self.nodes.constant("token_axis", np.array([1]))
        starts, ends = add("Unsqueeze", starts, token_axis), add("Unsqueeze", ends, token_axis)
        tokens = add(
            "Range",
            self.nodes.constant("first_token", np.array(0)),
            add("Size", "input_ids"),
            self.nodes.constant("step", np.array(1)),
        )
        is_inside = add("And", add("GreaterOrEqual", tokens, starts), add("Less", tokens, ends))
        length = self.nodes.cast(add("Sub", ends, starts), np.float32)
        share = self.nodes.cast(add("Reciprocal", length), np.float16)
        nothing = self.nodes.constant("nothing", np.array(0, np.float16))
        means = self.nodes.cast(add("MatMul", add("Where", is_inside, share, nothing), states), np.float32)
        if is_exact:
            means = add("Div", means, add("Mul", self.nodes.cast(share, np.float32), length))
        return means

    def _unit_length(self, vectors: str) -> None:
        """Vectors divided by their lengths. Not by a product: CUDA rounds those of float32 to ten bits (TF32)."""
        lengths = self.nodes.add("ReduceL2", vectors, axes=[1], keepdims=1)
        shortest = self.nodes.constant("shortest", np.array(SHORTEST, dtype=np.float32))
        self.nodes.add("Div", vectors, self.nodes.add("Max", lengths, shortest))


def embed_row(nodes: Nodes, words: str, positions: str, scale: str, shift: str, epsilon: float) -> str:
    """The states [tokens, hidden] of `input_ids` at `position_ids`: as one text, for the operator takes texts alone."""
    batch_axis = nodes.constant("batch_axis", np.array([0]))
    embedded = nodes.add(
        "EmbedLayerNormalization",
        nodes.add("Unsqueeze", "input_ids", batch_axis),
        "",  # token types
        words,
        positions,
        "",  # token type vectors
        scale,
        shift,
        "",  # mask
        nodes.add("Unsqueeze", "position_ids", batch_axis),
        unused=("mask_index",),
        domain=MICROSOFT,
        epsilon=epsilon,
    )
    return nodes.add("Squeeze", embedded, batch_axis)
