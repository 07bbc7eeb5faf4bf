"""The packed graph rewritten so that the CPU runs it, to see what it gives where there is no GPU.

ONNX Runtime's CPU provider has no packed attention, and computes half-precision graphs in float32 throughout. So here
every float16 result is a float32 that has been rounded to float16, infinity where it is out of range, and attention is
over all tokens at once, with a mask between texts. Slow, and its memory grows with the square of the tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tools.graphs.nodes import MICROSOFT, Nodes

# Softmax of a score so low is exactly 0 in float32.
MASKED = -1e9


def pack(texts: Sequence[NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    """The packed graph's inputs for these texts' ids."""
    lengths = np.array([len(ids) for ids in texts])
    columns = np.arange(lengths.max())
    is_token = (columns < lengths[:, None]).ravel()
    return {
        "input_ids": np.concatenate(texts),
        "position_ids": np.concatenate([columns[:length] for length in lengths]).astype(np.int32),
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
        # The tokens' places in row order, then the padding's.
        "token_offset": np.argsort(~is_token, kind="stable").astype(np.int32).reshape(len(texts), -1),
    }


def emulate(packed: ModelProto) -> ModelProto:
    """A float32 model of the packed one's inputs and output, whose results are rounded where those are float16."""
    nodes = Nodes(prefix="emulated_")
    halves = set()
    for stored in packed.graph.initializer:
        value = numpy_helper.to_array(stored)
        if value.dtype == np.float16:
            halves.add(stored.name)
        nodes.constant(stored.name, value.astype(np.float32) if value.dtype == np.float16 else value)
    mask = _mask(nodes)
    for node in packed.graph.node:
        exact = f"{node.output[0]}_exact"
        # All operators of the packed graph but Cast give the type of their states or weights.
        is_half = _target(node) == TensorProto.FLOAT16 if node.op_type == "Cast" else bool(halves & {*node.input})
        if node.op_type == "PackedMultiHeadAttention":
            _attend(nodes, node, mask, exact)
        else:
            copy = NodeProto()
            copy.CopyFrom(node)
            if is_half:
                copy.name = copy.output[0] = exact
            if is_half and node.op_type == "Cast":
                copy.attribute[0].i = TensorProto.FLOAT
            nodes.nodes.append(copy)
        if is_half:
            halves.add(node.output[0])
            nodes.add("Cast", nodes.cast(exact, np.float16), output=node.output[0], to=TensorProto.FLOAT)
    (output,) = packed.graph.output
    return nodes.model(list(packed.graph.input), output)


def _target(node: NodeProto) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")


def _mask(nodes: Nodes) -> str:
    """0 between tokens of one text, MASKED between texts, [1, 1, tokens, tokens]."""
    add = nodes.add
    zero, one = (nodes.constant(f"emulated_{n}", np.array(n, dtype=np.int32)) for n in (0, 1))
    tokens = add("Range", zero, add("Cast", add("Size", "input_ids"), to=TensorProto.INT32), one)
    axes = nodes.constant("emulated_axes", np.array([1]))
    is_behind = add("GreaterOrEqual", add("Unsqueeze", tokens, axes), "cu_seqlens")
    text = add("ReduceSum", nodes.cast(is_behind, np.int32), axes, keepdims=0)
    row, column = (
        add("Unsqueeze", text, nodes.constant(f"emulated_{name}_axes", np.array(axes)))
        for name, axes in (("row", [0, 1, 2]), ("column", [0, 1, 3]))
    )
    far = nodes.constant("emulated_far", np.array(MASKED, np.float32))
    near = nodes.constant("emulated_near", np.array(0, np.float32))
    return add("Where", add("Equal", row, column), near, far)


def _attend(nodes: Nodes, packed: NodeProto, mask: str, output: str) -> None:
    """Attention over all tokens as one text, with `mask` and, where there is one, the bias of each two tokens."""
    add = nodes.add
    *states, no_bias, _, _ = packed.input[:6]
    batch = nodes.constant(f"{output}_batch", np.array([0]))
    query, key, value = (add("Unsqueeze", state, batch) for state in states)
    if len(packed.input) > 6:
        by_query = add("Gather", packed.input[6], "position_ids", axis=2)
        mask = add("Add", mask, add("Gather", by_query, "position_ids", axis=3))
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in packed.attribute}
    attended = add("MultiHeadAttention", query, key, value, no_bias, "", mask, domain=MICROSOFT, **attributes)
    add("Squeeze", attended, batch, output=output)
