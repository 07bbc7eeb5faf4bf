"""Third stage of prepare: build the ONNX graph straight from the checkpoint's tensors.

    input_ids int32 [batch, length]  →  embeddings float32 [batch, dim]

All texts of a batch have the same length, so the graph has no mask and computes nothing for padding. It is batch
invariant: a text gets the same bits alone and in any batch. Every operator here therefore works on each row by
itself; sums over a text are batched matrix products with one row, because ONNX Runtime's reductions add up in
another order when the batch axis is 1. docs/decisions/0002 has the measurements.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tools.bert import GELU_ERF, BertConfig
from tools.checkpoint import Checkpoint, Usage, Weights

# Old on purpose, so that any ONNX Runtime of the last years loads the graph. The operators are meant to have kernels in
# its CUDA provider too; this has not been tried on a GPU yet.
OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"
# Below this length a vector is left short instead of being blown up; the same limit as PyTorch's `normalize`.
SHORTEST = 1e-12


class Nodes:
    """A graph under construction: each call adds one node and gives the name of its output.

    `prefix` begins the names of outputs that get none.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(
        self, operator: str, *inputs: str, output: str = "", unused: tuple[str, ...] = (), **attributes: Any
    ) -> str:
        """Add a node. An input named "" is left out; `unused` names outputs that must be there, and nobody reads.

        ONNX Runtime's own operators are told by `domain=MICROSOFT` among the attributes.
        """
        output = output or f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output, *unused], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant under a name of its own."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def build_graph(checkpoint: Checkpoint) -> ModelProto:
    """The whole model, from token ids to pooled and (if the model says so) normalized vectors."""
    nodes = Nodes()
    hidden = ENCODERS[checkpoint.config.model_type](nodes, checkpoint.config, checkpoint.weights)
    add_head(nodes, hidden, checkpoint)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "length"])
    rows = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", checkpoint.config.hidden_size])
    return helper.make_model(
        helper.make_graph(nodes.nodes, "embedlane", [ids], [rows], nodes.constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=IR_VERSION,
        producer_name="embedlane",
    )


def add_head(nodes: Nodes, hidden: str, usage: Usage) -> None:
    """Pooling and normalization, from the states [batch, length, dim] to `embeddings` [batch, dim].

    Only operators whose form is the same in every opset from 11 on: graphs that others made have all of them.
    """
    pooled = _mean(nodes, hidden) if usage.pooling == "mean" else _one(nodes, hidden, usage.pooling)
    vectors = _unit_length(nodes, pooled) if usage.normalize else pooled
    nodes.add("Reshape", vectors, nodes.constant("rows", np.array([0, -1])), output="embeddings")


def _encode_bert(nodes: Nodes, config: BertConfig, weights: Weights) -> str:
    """BERT's encoder: the last layer's states, [batch, length, hidden]."""
    positions = weights["embeddings.position_embeddings.weight"]
    # Every token is of type 0: its vector is added to each position's here, once, instead of at every run.
    positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    hidden = nodes.add(
        "EmbedLayerNormalization",
        "input_ids",
        "",  # token types
        nodes.constant("words", weights["embeddings.word_embeddings.weight"]),
        nodes.constant("positions", positions),
        "",  # token type vectors
        nodes.constant("embeddings.scale", weights["embeddings.LayerNorm.weight"]),
        nodes.constant("embeddings.shift", weights["embeddings.LayerNorm.bias"]),
        unused=("mask_index",),
        domain=MICROSOFT,
        epsilon=config.layer_norm_eps,
    )
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layer.{layer}."
        hidden = _attend(nodes, config, weights, prefix, hidden)
        hidden = _feed_forward(nodes, config, weights, prefix, hidden)
    return hidden


def _attend(nodes: Nodes, config: BertConfig, weights: Weights, prefix: str, hidden: str) -> str:
    """Self-attention with its residual connection."""
    parts = [f"{prefix}attention.self.{part}" for part in ("query", "key", "value")]
    attended = nodes.add(
        "Attention",
        hidden,
        nodes.constant(f"{prefix}qkv", np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)),
        nodes.constant(f"{prefix}qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in parts])),
        domain=MICROSOFT,
        num_heads=config.num_attention_heads,
    )
    product = _multiply(nodes, weights, f"{prefix}attention.output.dense", attended)
    return _add_and_norm(nodes, config, weights, f"{prefix}attention.output.", product, hidden)


def _feed_forward(nodes: Nodes, config: BertConfig, weights: Weights, prefix: str, hidden: str) -> str:
    """The two linear layers and the activation between them, with their residual connection."""
    inner = _multiply(nodes, weights, f"{prefix}intermediate.dense", hidden)
    activated = nodes.add(
        "BiasGelu" if config.hidden_act in GELU_ERF else "FastGelu",
        inner,
        nodes.constant(f"{prefix}intermediate.bias", weights[f"{prefix}intermediate.dense.bias"]),
        domain=MICROSOFT,
    )
    product = _multiply(nodes, weights, f"{prefix}output.dense", activated)
    return _add_and_norm(nodes, config, weights, f"{prefix}output.", product, hidden)


def _multiply(nodes: Nodes, weights: Weights, name: str, states: str) -> str:
    """A linear layer without its bias, which the operator after it adds."""
    return nodes.add("MatMul", states, nodes.constant(name, weights[f"{name}.weight"].T))


def _add_and_norm(nodes: Nodes, config: BertConfig, weights: Weights, prefix: str, product: str, residual: str) -> str:
    return nodes.add(
        "SkipLayerNormalization",
        product,
        residual,
        nodes.constant(f"{prefix}scale", weights[f"{prefix}LayerNorm.weight"]),
        nodes.constant(f"{prefix}shift", weights[f"{prefix}LayerNorm.bias"]),
        nodes.constant(f"{prefix}bias", weights[f"{prefix}dense.bias"]),
        domain=MICROSOFT,
        epsilon=config.layer_norm_eps,
    )


def _mean(nodes: Nodes, hidden: str) -> str:
    """The mean over a text's tokens, [batch, 1, hidden]: the product of the row 1/length, … with the states."""
    shape = nodes.add("Gather", nodes.add("Shape", "input_ids"), nodes.constant("length_axis", np.array([1])))
    one_row = nodes.add("Concat", nodes.constant("one", np.array([1])), shape, axis=0)
    ones = nodes.add("ConstantOfShape", one_row, value=helper.make_tensor("fill", TensorProto.FLOAT, [1], [1.0]))
    row = nodes.add("Div", ones, nodes.add("Cast", shape, to=TensorProto.FLOAT))
    return nodes.add("MatMul", row, hidden)


def _one(nodes: Nodes, hidden: str, pooling: str) -> str:
    """The state of the first token ("cls") or the last, [batch, 1, hidden]."""
    token = np.array([0 if pooling == "cls" else -1])
    return nodes.add("Gather", hidden, nodes.constant("token", token), axis=1)


def _unit_length(nodes: Nodes, vectors: str) -> str:
    """Vectors [batch, 1, hidden] divided by their lengths; a zero vector stays zero and is never NaN."""
    squares = nodes.add("MatMul", vectors, nodes.add("Transpose", vectors, perm=[0, 2, 1]))
    shortest = nodes.constant("shortest", np.array(SHORTEST, dtype=np.float32))
    return nodes.add("Div", vectors, nodes.add("Max", nodes.add("Sqrt", squares), shortest))


# One entry per architecture that tools.checkpoint reads.
ENCODERS: dict[str, Callable[[Nodes, BertConfig, Weights], str]] = {"bert": _encode_bert}
