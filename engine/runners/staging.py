"""One batch's place on the host and on the device, used again and again; no two batches are in one at a time.

The four arrays lie behind one another in one block, so that they go to the device in one copy. Where each lies depends
on the bucket, and is fixed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.runners.buckets import Bucket
from engine.runners.device import EAGER, Device, Host, Session
from engine.runners.packing import Packed, pack, shapes
from ipc.messages import Ids

# CUDA's own allocations begin at such addresses, and kernels may count on it.
ALIGNMENT = 256


class Staging:
    """Page-locked host memory, device memory, two events, and what a session needs to run each bucket from here.

    `uploaded` is reached when the inputs are on the device, `finished` when the vectors are on the host.
    """

    def __init__(self, device: Device, session: Session, buckets: Sequence[Bucket], dim: int, first_graph: int) -> None:
        self._device = device
        self._host = device.pinned(max(map(block_size, buckets)))
        self._inputs = device.memory(len(self._host))
        self.output = device.memory(max(bucket.texts for bucket in buckets) * dim * np.dtype(np.float32).itemsize)
        self.uploaded = device.event()
        self.finished = device.event()
        self._arrays = {bucket: _arrays(self._host, bucket) for bucket in buckets}
        self._runs = {
            bucket: self._bind(session, bucket, first_graph + number if bucket.is_captured else EAGER)
            for number, bucket in enumerate(buckets)
        }

    def stage(self, texts: Sequence[Ids], bucket: Bucket, stream: int) -> None:
        """Pack the texts and put their copy to the device on the stream."""
        pack(texts, bucket, self._arrays[bucket])
        self._device.upload(self._inputs, self._host[: block_size(bucket)], stream)
        self._device.record(self.uploaded, stream)

    def launch(self, bucket: Bucket, rows: Host, stream: int) -> None:
        """Put the run and the copy of its first vectors into `rows` on the stream, behind the upload."""
        try:
            self._device.wait(stream, self.uploaded)
            self._runs[bucket]()
            self._device.download(rows, self.output, stream)
        finally:
            # Also where the run failed: this place is free again only when all that was put on the stream is done.
            self._device.record(self.finished, stream)

    def _bind(self, session: Session, bucket: Bucket, graph: int) -> Callable[[], None]:
        addresses = [self._inputs + begin for begin, _ in _extents(bucket)]
        return session.bind(bucket, addresses, self.output, graph)


def block_size(bucket: Bucket) -> int:
    """Bytes of the four arrays, gaps for alignment included."""
    return _extents(bucket)[-1][1]


def _extents(bucket: Bucket) -> list[tuple[int, int]]:
    """Begin and end of each array in the block."""
    extents, begin = [], 0
    for shape in shapes(bucket).values():
        end = begin + math.prod(shape) * np.dtype(np.int32).itemsize
        extents.append((begin, end))
        begin = -(-end // ALIGNMENT) * ALIGNMENT
    return extents


def _arrays(block: NDArray[np.uint8], bucket: Bucket) -> Packed:
    parts = zip(_extents(bucket), shapes(bucket).values(), strict=True)
    return Packed(*(block[begin:end].view(np.int32).reshape(shape) for (begin, end), shape in parts))
