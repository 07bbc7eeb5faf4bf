"""What the CUDA runner needs of a GPU, so small that memory can stand in for one in tests.

Addresses, streams and events are integers, as the CUDA runtime hands them out. Work on a stream runs in order, maybe
long after the call has returned; between streams, and between a stream and the host, only an event says what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.runners.buckets import Bucket

Host = NDArray[Any]


class DeviceError(RuntimeError):
    """The GPU or its driver refused a call."""


class Device(Protocol):
    """Memory, copies and order. Everything raises DeviceError."""

    def stream(self) -> int:
        """A new stream."""

    def event(self) -> int:
        """A new event, which counts as reached until it is recorded."""

    def memory(self, size: int) -> int:
        """The address of `size` new bytes on the device, kept for good."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """New page-locked host memory [size], kept for good."""

    def register(self, memory: Host) -> None:
        """Page-lock host memory that is there already, so that copies from and to it need no detour."""

    def upload(self, target: int, source: Host, stream: int) -> None:
        """Copy host memory to the device. `source` must keep its content until it is done."""

    def download(self, target: Host, source: int, stream: int) -> None:
        """Copy from the device to host memory. `target` has no defined content until it is done."""

    def record(self, event: int, stream: int) -> None:
        """Reach the event once all work that is on the stream now is done."""

    def wait(self, stream: int, event: int) -> None:
        """Let work that is put on the stream from now on begin after the event; the host goes on."""

    def synchronize(self, event: int) -> None:
        """Return once the event is reached. Other threads run meanwhile."""


class Session(Protocol):
    """A packed graph on one stream."""

    def bind(self, bucket: Bucket, inputs: Sequence[int], output: int, graph: int) -> Callable[[], None]:
        """A call that puts one run of the bucket's sizes on the stream, from and to these addresses on the device.

        `graph` is this call's own number if its run is to be captured, which the third call does; EAGER if not.
        """


EAGER = -1
