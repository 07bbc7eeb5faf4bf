"""ONNX graphs built straight from a checkpoint's tensors: one encoder in three layouts."""
