"""Third stage of prepare: build the ONNX graph straight from the checkpoint's tensors.

The encoder is here, once: embeddings, then layers of attention and feed-forward network. How texts lie in tensors, and
so embedding, attention and pooling, is a layout's part: `mixed` for the CPU, `dense` for int8 there, `packed` for CUDA.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from onnx import ModelProto, ValueInfoProto

from ipc.bundle import GRAPHS, MIXED_STEP, Precision
from ipc.errors import StartError
from tools.checkpoint import Checkpoint, Weights
from tools.families import GELU_ERF, RELATIVE_BIAS, BertConfig, relative_bucket
from tools.graphs.dense import Dense
from tools.graphs.int8 import Int8Nodes
from tools.graphs.mixed import Mixed
from tools.graphs.nodes import MICROSOFT, Nodes, tensor
from tools.graphs.packed import Packed

# Protobuf's limit for one file.
MAX_BYTES = 2**31 - 1


class Layout(Protocol):
    """How the texts of a batch lie in tensors. `states` have the hidden size as their last axis."""

    inputs: list[ValueInfoProto]
    texts: str
    nodes: Nodes

    def prepare(self, weights: Weights, config: BertConfig) -> Weights:
        """The weights as this layout computes with them; the vectors are the same."""

    def embed(self, words: str, positions: str, scale: str, shift: str, epsilon: float) -> str:
        """The states before the first layer: words and positions looked up, added and normalized."""

    def longest(self) -> str:
        """The widest that attention is in this batch, int64 [1]."""

    def attend(self, states: str, weights: Weights, prefix: str, heads: int, bias: str) -> str:
        """Self-attention within each text. `bias` [1, heads, longest, longest] is added to the scores; "" for none."""

    def add_and_norm(self, product: str, residual: str, bias: str, scale: str, shift: str, epsilon: float) -> str:
        """The layer norm of product + bias + residual."""

    def pool(self, states: str, checkpoint: Checkpoint) -> None:
        """End with a node that gives each text's vector, float32 [texts, hidden], normalized if the model says so."""


def build_graph(checkpoint: Checkpoint, precision: Precision = "fp32") -> ModelProto:
    """The whole model, from token ids to pooled and (if the model says so) normalized float32 vectors.

    Raises StartError for weights that float16 cannot hold.
    """
    places: dict[Precision, Callable[[], Layout]] = {
        "fp32": lambda: Mixed(Nodes()),
        "int8": lambda: Dense(Int8Nodes()),
        "fp16": Packed,
    }
    return build_in(places[precision](), checkpoint)


def build_in(place: Layout, checkpoint: Checkpoint) -> ModelProto:
    """The whole model in one layout."""
    config = checkpoint.config
    weights = place.prepare(checkpoint.weights, config)
    states = _embed(place, config, weights)
    bias = _relative_bias(place, config, weights) if config.relative_buckets else ""
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layer.{layer}."
        attended = place.attend(states, weights, f"{prefix}attention.self.", config.num_attention_heads, bias)
        product = _multiply(place.nodes, weights, f"{prefix}attention.output.dense", attended)
        states = _add_and_norm(place, config, weights, f"{prefix}attention.output.", product, states)
        product = _feed_forward(place.nodes, config, weights, prefix, states)
        states = _add_and_norm(place, config, weights, f"{prefix}output.", product, states)
    place.pool(states, checkpoint)
    return place.nodes.model(place.inputs, tensor("embeddings", np.float32, place.texts, config.hidden_size))


def write_graph(checkpoint: Checkpoint, precision: Precision, folder: Path) -> None:
    """Write the graph under its name into `folder`. Raises StartError if it cannot be had."""
    model = build_graph(checkpoint, precision)
    if model.ByteSize() > MAX_BYTES:
        raise StartError(f"The model has more than 2 GB of {precision} weights, which one ONNX file cannot hold.")
    (folder / GRAPHS[precision]).write_bytes(model.SerializeToString(deterministic=True))


def _embed(place: Layout, config: BertConfig, weights: Weights) -> str:
    # The first row is that of a text's first token, so that no layout has to know where a family's positions begin.
    positions = weights["embeddings.position_embeddings.weight"][config.first_position :]
    if config.type_vocab_size:
        # Every token is of type 0: its vector is added to each position's here, once, instead of at every run.
        positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    return place.embed(
        place.nodes.weight("words", weights["embeddings.word_embeddings.weight"]),
        place.nodes.weight("positions", positions),
        place.nodes.weight("embeddings.scale", weights["embeddings.LayerNorm.weight"]),
        place.nodes.weight("embeddings.shift", weights["embeddings.LayerNorm.bias"]),
        config.layer_norm_eps,
    )


def _relative_bias(place: Layout, config: BertConfig, weights: Weights) -> str:
    """What a key's place relative to the query's adds to the scores, [1, heads, longest, longest]."""
    nodes, most = place.nodes, -(-config.max_tokens // MIXED_STEP) * MIXED_STEP
    buckets = relative_bucket(np.arange(1 - most, most), config.relative_buckets)
    by_distance = nodes.weight("relative_bias", weights[RELATIVE_BIAS][buckets].T[None])
    longest, first = place.longest(), nodes.constant("first", np.array([0]))
    keys = nodes.constant("keys", np.arange(most, dtype=np.int32)[None])
    queries = nodes.constant("queries", np.arange(most - 1, -1, -1, dtype=np.int32)[:, None])
    keys = nodes.add("Slice", keys, first, longest, nodes.constant("key_axis", np.array([1])))
    queries = nodes.add("Slice", queries, first, longest, nodes.constant("query_axis", np.array([0])))
    return nodes.add("Gather", by_distance, nodes.add("Add", keys, queries), axis=2)


def _feed_forward(nodes: Nodes, config: BertConfig, weights: Weights, prefix: str, states: str) -> str:
    """The two linear layers and the activation between them, without the second one's bias."""
    inner = _multiply(nodes, weights, f"{prefix}intermediate.dense", states)
    activated = nodes.add(
        "BiasGelu" if config.hidden_act in GELU_ERF else "FastGelu",
        inner,
        nodes.weight(f"{prefix}intermediate.bias", weights[f"{prefix}intermediate.dense.bias"]),
        domain=MICROSOFT,
    )
    return _multiply(nodes, weights, f"{prefix}output.dense", activated)


def _multiply(nodes: Nodes, weights: Weights, name: str, states: str) -> str:
    """A linear layer without its bias, which the operator after it adds."""
    return nodes.product(states, name, weights[f"{name}.weight"].T)


def _add_and_norm(place: Layout, config: BertConfig, weights: Weights, prefix: str, product: str, residual: str) -> str:
    return place.add_and_norm(
        product,
        residual,
        place.nodes.weight(f"{prefix}bias", weights[f"{prefix}dense.bias"]),
        place.nodes.weight(f"{prefix}scale", weights[f"{prefix}LayerNorm.weight"]),
        place.nodes.weight(f"{prefix}shift", weights[f"{prefix}LayerNorm.bias"]),
        config.layer_norm_eps,
    )
