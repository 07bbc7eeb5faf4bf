"""The dozen functions of the CUDA runtime that the runner needs, through ctypes: ONNX Runtime hands out no events.

The library is the one that ONNX Runtime loaded, so no package of its own is needed. A ctypes call lets other threads
run. Everything is on device 0.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.runners.device import DeviceError, Host
from ipc.errors import StartError

MAJORS = ("13", "12")
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
STREAM_NON_BLOCKING = 1
# A thread that waits for an event sleeps; the default spins and takes a core from the front ends. No timing either.
EVENT_FLAGS = 1 | 2
HOST_DEFAULT = 0
SIGNATURES = {
    "cudaSetDevice": (c_int,),
    "cudaStreamCreateWithFlags": (c_void_p, c_uint),
    "cudaEventCreateWithFlags": (c_void_p, c_uint),
    "cudaMalloc": (c_void_p, c_size_t),
    "cudaHostAlloc": (c_void_p, c_size_t, c_uint),
    "cudaHostRegister": (c_void_p, c_size_t, c_uint),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cudaEventSynchronize": (c_void_p,),
    "cudaMemGetInfo": (c_void_p, c_void_p),
}


class CudaDevice:
    """A Device on a real GPU. Raises StartError where there is none, or no CUDA runtime."""

    def __init__(self) -> None:
        self._library = load_library()
        try:
            self._call("cudaSetDevice", 0)
        except DeviceError as error:
            raise StartError(
                f"CUDA cannot be used ({error}): check the driver with nvidia-smi, or set EMBEDLANE_DEVICE=cpu."
            ) from error

    def stream(self) -> int:
        """See Device; independent of the legacy default stream."""
        return self._new("cudaStreamCreateWithFlags", STREAM_NON_BLOCKING)

    def event(self) -> int:
        """See Device."""
        return self._new("cudaEventCreateWithFlags", EVENT_FLAGS)

    def memory(self, size: int) -> int:
        """See Device."""
        return self._new("cudaMalloc", size)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """See Device."""
        address = self._new("cudaHostAlloc", size, HOST_DEFAULT)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def register(self, memory: Host) -> None:
        """See Device."""
        self._call("cudaHostRegister", memory.ctypes.data, memory.nbytes, HOST_DEFAULT)

    def upload(self, target: int, source: Host, stream: int) -> None:
        """See Device."""
        self._call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, HOST_TO_DEVICE, stream)

    def download(self, target: Host, source: int, stream: int) -> None:
        """See Device."""
        self._call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, DEVICE_TO_HOST, stream)

    def record(self, event: int, stream: int) -> None:
        """See Device."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """See Device."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: int) -> None:
        """See Device."""
        self._call("cudaEventSynchronize", event)

    def used(self) -> int:
        """Bytes of the device's memory that are taken, by all programs."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def _new(self, function: str, *arguments: int) -> int:
        made = c_void_p()
        self._call(function, ctypes.byref(made), *arguments)
        assert made.value is not None, "this is a bug: CUDA reported success and made nothing"
        return made.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            # Also takes the error back, which the next call of anybody would report once more.
            self._library.cudaGetLastError()
            reason = self._library.cudaGetErrorString(code).decode()
            raise DeviceError(f"{function}: {reason}")


def load_library() -> ctypes.CDLL:
    """The CUDA runtime. Raises StartError where no version is found that ONNX Runtime could use."""
    ort.preload_dlls()
    # By its bare name the loader finds the copy that is loaded already.
    major = str(getattr(ort, "cuda_version", "")).partition(".")[0]
    for version in (major, *MAJORS):
        try:
            library = ctypes.CDLL(f"libcudart.so.{version}")
        except OSError:
            continue
        for name, arguments in SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        library.cudaGetErrorString.argtypes = (c_int,)
        library.cudaGetErrorString.restype = c_char_p
        return library
    raise StartError(
        "The CUDA runtime (libcudart) cannot be found: install onnxruntime-gpu[cuda,cudnn], "
        "or set EMBEDLANE_DEVICE=cpu."
    )
