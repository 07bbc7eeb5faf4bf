"""Products with weights in int8, about twice as fast on a CPU, and still batch invariant.

ONNX Runtime's own dynamic quantization has one scale for all activations of a batch, so a text's vector would depend on
its company. Here each token has its own scale, which costs a few percent of the speed and is nearer to float32 as well:
docs/decisions/0011 has the measurements. Sums are int32 and so exact in any order.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tools.graphs.nodes import MICROSOFT, Nodes

# Seven bits: on CPUs with AVX2 and no VNNI, two products of an activation and a larger weight overflow 16 bits.
LARGEST_WEIGHT = 64
LARGEST_STATE = 127
# Activations are stored as value + 128, as the fastest kernels want them.
ZERO = 128
# The scale of a token whose states are all zero.
SMALLEST_SCALE = 1e-30


class Int8Nodes(Nodes):
    """A graph whose products with weights are in int8, and all else in float32."""

    def __init__(self) -> None:
        super().__init__()
        self._quantized: dict[str, tuple[str, str]] = {}

    def product(self, states: str, name: str, matrix: NDArray[np.float32]) -> str:
        """states [..., in] · matrix [in, out], with a scale for each token and one for each column of the matrix."""
        quantized, scale = self._quantize(states)
        largest = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny * LARGEST_WEIGHT)
        columns = (largest / LARGEST_WEIGHT).astype(np.float32)
        weights = self.constant(f"{name}.int8", np.round(matrix / columns).astype(np.int8))
        product = self.add(
            "MatMulIntegerToFloat",
            quantized,
            weights,
            self.once("int8.one", np.array(1, np.float32)),  # a token's scale follows: the operator takes none
            self.constant(f"{name}.columns", columns),
            self.once("int8.zero", np.array(ZERO, np.uint8)),
            domain=MICROSOFT,
        )
        return self.add("Mul", product, scale)

    def _quantize(self, states: str) -> tuple[str, str]:
        """States as uint8, and each token's scale [..., 1]; made once for all products with the same states."""
        if states not in self._quantized:
            largest = self.add("ReduceMax", self.add("Abs", states), axes=[-1], keepdims=1)
            step = self.once("int8.step", np.array(1 / LARGEST_STATE, np.float32))
            smallest = self.once("int8.smallest", np.array(SMALLEST_SCALE, np.float32))
            scale = self.add("Max", self.add("Mul", largest, step), smallest)
            # The operator takes a scale for each row of a matrix, and none for the tokens of a batch.
            rows = self.add("Reshape", scale, self.once("int8.flat", np.array([-1])))
            matrix = self.add("Flatten", states, axis=-1)
            fill = helper.make_tensor("fill", TensorProto.UINT8, [1], [ZERO])
            zeros = self.add("ConstantOfShape", self.add("Shape", rows), value=fill)
            quantized = self.add("QuantizeLinear", matrix, rows, zeros, axis=0)
            self._quantized[states] = self.add("Reshape", quantized, self.add("Shape", states)), scale
        return self._quantized[states]
