"""The packed half-precision graph on a GPU: mixed lengths, no padding to speak of, nothing copied twice.

    lane threads   pack → upload ──┐ copy stream     ... → wait for `finished` → reply
    GPU thread                     └─▶ run → download ─┘ compute stream

Each lane has a Staging of its own, so the next batch is packed and uploaded while the GPU works on this one, and its
run is on the stream before this one's ends. All that touches the session happens on one thread: ONNX Runtime keeps
captured graphs and scratch memory for each thread, and grew and raced with several. docs/decisions has the reasons.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import onnxruntime as ort

from engine.runners.buckets import Bucket, Buckets
from engine.runners.cudart import CudaDevice
from engine.runners.device import Device, DeviceError, Host, Session
from engine.runners.packing import shapes
from engine.runners.staging import Staging
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows

log = logging.getLogger(__name__)

PROVIDER = "CUDAExecutionProvider"
# One batch on the GPU and the next behind it; a third would only wait longer.
LANES = 2
# Two runs allocate what the graph needs, the third is captured.
RUNS_UNTIL_CAPTURED = 3
# At once, without a word to anybody: whatever waits is asked for again.
END_PROCESS = partial(os._exit, 1)


class CudaRunner:
    """Runs packed batches.

    `open_session` is called on the GPU thread, with the stream that the session has to work on. `end` is called when
    the device fails in a run: CUDA's errors stay, so only another process can go on. What it was about to answer is
    asked for again there, as after any other death of an engine.
    """

    device = "cuda"
    precision = "fp16"
    mixes_lengths = True

    def __init__(
        self,
        device: Device,
        open_session: Callable[[int], Session],
        buckets: Buckets,
        dim: int,
        lanes: int = LANES,
        end: Callable[[], None] = END_PROCESS,
    ) -> None:
        self.lanes = lanes
        self._end = end
        self._device = device
        self._buckets = buckets
        self._copies = device.stream()
        self._compute = device.stream()
        self._gpu = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._stagings = self._gpu.submit(self._open, open_session, dim).result()
        self._free: SimpleQueue[Staging] = SimpleQueue()
        for staging in self._stagings:
            self._free.put(staging)

    def warm_up(self, rows: Rows) -> None:
        """Page-lock the slab and run every bucket, the largest first, so that the arena is grown once.

        Small buckets are captured, for each staging: a graph has fixed addresses. `rows` is a view of the whole slab.
        """
        try:
            self._device.register(whole(rows))
        except DeviceError as error:
            log.warning(
                "the slab is not page-locked: vectors are copied through a buffer of the driver's, more slowly",
                extra={"reason": str(error)},
            )
        for bucket in self._buckets:
            text = np.zeros(min(bucket.longest, bucket.tokens), np.int32)
            for staging in self._stagings if bucket.is_captured else self._stagings[:1]:
                for _ in range(RUNS_UNTIL_CAPTURED if bucket.is_captured else 1):
                    self._run(staging, bucket, [text], rows[:1])

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """See Runner; the texts may have any lengths."""
        if rows.shape[0] != len(texts) or not rows.flags.c_contiguous:
            raise ValueError(f"rows of shape {rows.shape} cannot take {len(texts)} vectors in one extent")
        lengths = [len(text) for text in texts]
        real = sum(lengths)
        bucket = self._buckets.choose(len(texts), real, max(lengths))
        staging = self._free.get()
        try:
            self._run(staging, bucket, texts, rows)
        except DeviceError as error:
            log.critical("the GPU failed, so the engine ends and is started anew", extra={"reason": str(error)})
            self._end()
            raise
        finally:
            self._free.put(staging)
        return bucket.tokens - real

    def close(self) -> None:
        """End the GPU thread."""
        self._gpu.shutdown()

    def _open(self, open_session: Callable[[int], Session], dim: int) -> list[Staging]:
        session, buckets = open_session(self._compute), list(self._buckets)
        # A graph's number is its own among all stagings; 0 is what ONNX Runtime takes where none is given.
        return [
            Staging(self._device, session, buckets, dim, first_graph=1 + lane * len(buckets))
            for lane in range(self.lanes)
        ]

    def _run(self, staging: Staging, bucket: Bucket, texts: Sequence[Ids], rows: Rows) -> None:
        staging.stage(texts, bucket, self._copies)
        try:
            self._gpu.submit(staging.launch, bucket, rows, self._compute).result()
        finally:
            self._device.synchronize(staging.finished)


class OrtSession:
    """ONNX Runtime on a stream of the caller's.

    Raises StartError for a graph that does not run on the provider alone.
    """

    def __init__(self, graph: Path, provider: str, options: dict[str, str], dim: int) -> None:
        self._device = "cuda" if provider == PROVIDER else "cpu"
        self._dim = dim
        try:
            self._session = ort.InferenceSession(
                graph, _session_options(provider), providers=[(provider, options)], enable_fallback=0
            )
        except Exception as error:
            raise StartError(f"ONNX Runtime cannot run {graph} on {provider} alone: {error}") from error
        if self._session.get_providers()[0] != provider:
            raise StartError(
                f"ONNX Runtime fell back from {provider} to {self._session.get_providers()[0]}: check the driver and "
                "the CUDA libraries, or set EMBEDLANE_DEVICE=cpu."
            )

    def bind(self, bucket: Bucket, inputs: Sequence[int], output: int, graph: int) -> Callable[[], None]:
        """See Session."""
        binding = self._session.io_binding()
        for (name, shape), address in zip(shapes(bucket).items(), inputs, strict=True):
            binding.bind_input(name, self._device, 0, np.int32, shape, address)
        binding.bind_output("embeddings", self._device, 0, np.float32, (bucket.texts, self._dim), output)
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        # The caller waits for an event of its own, when the vectors have been copied as well.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return partial(self._session.run_with_iobinding, binding, options)


def open_cuda_runner(settings: Settings, bundle: Bundle, end: Callable[[], None] = END_PROCESS) -> CudaRunner:
    """The runner of a bundle's packed graph. Raises StartError where CUDA cannot be used."""
    device, graph = CudaDevice(), bundle.graph("fp16")
    try:
        return CudaRunner(
            device,
            lambda stream: OrtSession(graph, PROVIDER, cuda_options(stream), bundle.dim),
            Buckets(settings.max_batch_rows, settings.max_batch_tokens, bundle.max_tokens),
            bundle.dim,
            settings.lanes or LANES,
            end,
        )
    except DeviceError as error:
        raise StartError(
            f"The GPU cannot be prepared ({error}): free its memory, or lower EMBEDLANE_MAX_BATCH_TOKENS, "
            "EMBEDLANE_MAX_BATCH_ROWS or EMBEDLANE_LANES."
        ) from error


def cuda_options(stream: int) -> dict[str, str]:
    """The provider's options. With sdpa_kernel=3, flash and memory-efficient attention, cuDNN makes no plans."""
    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "enable_cuda_graph": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": "3",
    }


def _session_options(provider: str) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan for memory would be kept for each bucket.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if provider == PROVIDER:
        # A node that went to the CPU would cost a copy and a wait in every run, in silence.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def whole(rows: Rows) -> Host:
    """The memory that `rows` is a view of."""
    memory: Host = rows
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    return memory
