"""ONNX Runtime with IO binding, the same code on the CPU and on CUDA.

Session options, lanes and the wide session: measured in docs/decisions/0003-lanes-of-one-thread.md and
0009-all-cores-for-what-is-alone.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.runners.mixing import arrange
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.messages import Ids
from ipc.settings import cores
from ipc.slab import Rows

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "sdpa_kernel": "3"}
SPIN_MICROSECONDS = "20"
# What ONNX Runtime would make of a sum and its norm on the CPU takes longer than the two: docs/decisions/0002.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
# The threads that share one run; measured with two cores only.
MOST_THREADS = 8
# A first run of a shape is slow, mostly for its memory: the longest text grows the arena once. Sixteen texts of the
# second are as many tokens as a batch has by default.
WARM_UP_LENGTHS = (16, 32)


class OnnxRunner:
    """One session; `run` may be called from `lanes` threads at once.

    Raises StartError where the device is not to be had, or the bundle lacks the precision.
    """

    def __init__(
        self, bundle: Bundle, device: Literal["auto", "cpu", "cuda"], lanes: int, precision: str = "auto"
    ) -> None:
        self.device: str = choose_device(device)
        self.precision = choose_precision(precision, self.device, bundle)
        self.lanes = lanes or (cores() if self.device == "cpu" else 1)
        self.mixes_lengths = bundle.layout(self.precision) == "mixed"
        self._max_tokens = bundle.max_tokens
        graph = bundle.graph(self.precision)
        self._session = _open_session(graph, self.device, threads=1)
        is_wide = self.device == "cpu" and cores() > 1
        self._wide = _open_session(graph, self.device, threads=min(cores(), MOST_THREADS)) if is_wide else self._session

    def warm_up(self, rows: Rows) -> None:
        """Run the longest text first, so that the arena is grown once and not in steps; then full batches."""
        self.run([np.zeros(self._max_tokens, np.int32)], rows[:1])
        for length in WARM_UP_LENGTHS:
            text = np.zeros(min(length, self._max_tokens), np.int32)
            for count in (len(rows), 1):
                self.run([text] * count, rows[:count])
            self.run_alone([text], rows[:1])

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """On one thread, which leaves the other cores to the other lanes."""
        return self._run(self._session, texts, rows)

    def run_alone(self, texts: Sequence[Ids], rows: Rows) -> int:
        """On all cores: for one text of 16 tokens on two of them, in a good half of the time."""
        return self._run(self._wide, texts, rows)

    def _run(self, session: ort.InferenceSession, texts: Sequence[Ids], rows: Rows) -> int:
        """Bind the output to `rows` itself: ONNX Runtime writes into the slab, and nothing is copied after it."""
        if rows.shape[0] != len(texts) or not rows.flags.c_contiguous:
            raise ValueError(f"rows of shape {rows.shape} cannot take {len(texts)} vectors in one extent")
        binding = session.io_binding()
        # The binding reads these arrays in place, and keeps them alive until it is gone itself; a test holds that.
        for name, array in self._inputs(texts).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("embeddings", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        session.run_with_iobinding(binding)
        # No token is computed for a shape: in a mixed graph attention alone sees padding.
        return 0

    def _inputs(self, texts: Sequence[Ids]) -> dict[str, NDArray[np.int32]]:
        if not self.mixes_lengths:
            return {"input_ids": np.stack(texts)}
        # Whether CUDA's attention takes a group of no texts has not been tried.
        return arrange(texts, fill=self.device == "cuda")


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Resolve "auto". Raises StartError where CUDA is asked for and this ONNX Runtime has none."""
    has_cuda = PROVIDERS["cuda"] in ort.get_available_providers()
    if wanted == "cuda" and not has_cuda:
        raise StartError(
            "EMBEDLANE_DEVICE=cuda, but the ONNX Runtime installed has no CUDA provider: "
            "install onnxruntime-gpu in place of onnxruntime, or set EMBEDLANE_DEVICE=cpu."
        )
    if wanted == "auto":
        return "cuda" if has_cuda else "cpu"
    return wanted


def choose_precision(wanted: str, device: str, bundle: Bundle) -> str:
    """Resolve "auto": fp16 is for CUDA, and int8 loses too much to be chosen for anybody."""
    if wanted == "auto":
        return "fp16" if device == "cuda" and "fp16" in bundle.precisions else "fp32"
    return wanted


def _open_session(graph: Path, device: str, threads: int) -> ort.InferenceSession:
    provider = PROVIDERS[device]
    if device == "cuda":
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The gaps between the operators of a run are a few µs long. A thread that spins for longer takes the core from
    # the front ends, and one that does not spin at all is woken for each operator.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    # Plans for memory are kept for each shape, and texts have many: 40 MB less without, and no slower.
    options.enable_mem_pattern = False
    # ONNX Runtime's warnings are about its own choices; what fails is raised.
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            graph,
            options,
            providers=[(provider, CUDA_OPTIONS if device == "cuda" else {})],
            # Without this a provider that cannot be made is replaced by the CPU's, and nobody is told.
            enable_fallback=0,
            disabled_optimizers=SLOW_FUSIONS if device == "cpu" else [],
        )
    except Exception as error:
        raise StartError(f"ONNX Runtime cannot load {graph} on {device}: {error}") from error
    if session.get_providers()[0] != provider:
        raise StartError(
            f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]}: check the driver and the "
            "CUDA libraries, or set EMBEDLANE_DEVICE=cpu."
        )
    return session
