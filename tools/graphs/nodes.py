"""A graph under construction, and the operators' versions."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ipc.errors import StartError

# Old on purpose, so that any ONNX Runtime of the last years loads the graph.
OPSET = 17
IR_VERSION = 8
MICROSOFT = "com.microsoft"


class Nodes:
    """A graph under construction: each call adds one node and gives the name of its output.

    `precision` is the type in which weights are stored, and so the type of all states. `prefix` begins the names of
    outputs that get none.
    """

    def __init__(self, precision: DTypeLike = np.float32, prefix: str = "") -> None:
        self.precision = np.dtype(precision)
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
        """Add a constant under a name of its own, in the type it has."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def once(self, name: str, value: NDArray[Any]) -> str:
        """A constant that several nodes share: added by the first of them."""
        return name if any(constant.name == name for constant in self.constants) else self.constant(name, value)

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Add a part of the model, in the graph's precision. Raises StartError for a value that has no place in it."""
        largest = float(np.finfo(self.precision).max)
        if not np.abs(value).max() <= largest:
            raise StartError(
                f"The model cannot be had in {self.precision}: {name} holds {np.abs(value).max():.0f}, and the largest "
                f"number is {largest:.0f}; use fp32."
            )
        return self.constant(name, value.astype(self.precision, copy=False))

    def product(self, states: str, name: str, matrix: NDArray[np.float32]) -> str:
        """states [..., in] · matrix [in, out]; the matrix is a part of the model called `name`."""
        return self.add("MatMul", states, self.weight(name, matrix))

    def sum_and_norm(self, product: str, residual: str, bias: str, scale: str, shift: str, epsilon: float) -> str:
        """The layer norm of product + bias + residual, in three operators.

        The one that does all of it takes twice as long on a CPU, an eighth of the whole run.
        """
        total = self.add("Add", self.add("Add", product, bias), residual)
        return self.add("LayerNormalization", total, scale, shift, axis=-1, epsilon=epsilon)

    def cast(self, value: str, kind: DTypeLike) -> str:
        """Convert a tensor to another type."""
        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def model(self, inputs: list[ValueInfoProto], output: ValueInfoProto) -> ModelProto:
        """The finished model, whose output is the last node's."""
        self.nodes[-1].output[0] = output.name
        return helper.make_model(
            helper.make_graph(self.nodes, "embedlane", inputs, [output], self.constants),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="embedlane",
        )


def tensor(name: str, kind: DTypeLike, *shape: str | int) -> ValueInfoProto:
    """An input or output, with names for the sizes that may vary."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
