"""What runs a batch: a small protocol, so that anything that gains from batching can be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ipc.bundle import Bundle
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows


class Runner(Protocol):
    """A loaded model.

    `lanes` is how many threads may call `run` at once; `device` and `precision` are names for people. `mixes_lengths`
    says whether the texts of a batch may have different lengths.
    """

    device: str
    precision: str
    lanes: int
    mixes_lengths: bool

    def warm_up(self, rows: Rows) -> None:
        """Run what must not be slow later, with `rows` (float32 [n, dim]), a part of the slab, as scratch."""

    def run(self, texts: Sequence[Ids], rows: Rows) -> None:
        """Write the vector of texts[i] (int32 [length], of one length unless mixed) into rows[i], float32 [n, dim]."""


def open_runner(settings: Settings, bundle: Bundle) -> Runner:
    """The runner for the settings and the bundle: on CUDA the packed graph where the bundle has one.

    Raises StartError where it cannot be started.
    """
    from engine.runners.onnx import OnnxRunner, choose_device  # noqa: PLC0415

    if choose_device(settings.device) == "cuda" and "fp16" in bundle.precisions:
        from engine.runners.cuda import open_cuda_runner  # noqa: PLC0415

        return open_cuda_runner(settings, bundle)
    return OnnxRunner(bundle, settings.device, settings.lanes)
