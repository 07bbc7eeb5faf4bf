"""The CUDA path, measured on a machine with a GPU: `python -m perf.gpu`."""
