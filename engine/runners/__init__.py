"""What runs a batch: a small protocol, so that anything that gains from batching can be served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

from ipc.bundle import Bundle
from ipc.errors import StartError
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

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """Write the vector of texts[i] (int32 [length], of one length unless mixed) into rows[i], float32 [n, dim].

        Gives the number of tokens that were computed besides those of the texts, to fill up a shape.
        """


@runtime_checkable
class WideRunner(Runner, Protocol):
    """A runner that is faster when it has every core of the machine to itself."""

    def run_alone(self, texts: Sequence[Ids], rows: Rows) -> int:
        """As `run`, to the bit; called where no other batch runs and no text waits."""


def open_runner(settings: Settings, bundle: Bundle) -> Runner:
    """The runner that the settings name. Its libraries are imported here, so that only those that are used are needed.

    Raises StartError where it cannot be had or cannot be started.
    """
    if settings.runner == "onnx":
        return _open_onnx(settings, bundle)
    if settings.runner == "torch":
        from engine.runners.torch import TorchRunner  # noqa: PLC0415

        return TorchRunner(settings, bundle)
    module, _, function = settings.runner.partition(":")
    try:
        make: Callable[[Settings, Bundle], Runner] = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StartError(
            f"EMBEDLANE_RUNNER={settings.runner} cannot be imported ({error}): check the name, and PYTHONPATH."
        ) from error
    return make(settings, bundle)


def _open_onnx(settings: Settings, bundle: Bundle) -> Runner:
    """On a GPU the packed graph, where the bundle has one and nothing else is asked for."""
    from engine.runners.onnx import OnnxRunner, choose_device, choose_precision  # noqa: PLC0415

    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device, bundle)
    if precision == "int8" and device == "cuda":
        raise StartError("EMBEDLANE_PRECISION=int8 is for the CPU alone: choose fp16, or set EMBEDLANE_DEVICE=cpu.")
    if bundle.layout(precision) != "packed":
        return OnnxRunner(bundle, device, settings.lanes, precision)
    if device != "cuda":
        raise StartError(
            f"EMBEDLANE_PRECISION={precision} is for CUDA alone, and the device is the CPU: choose fp32 or int8."
        )
    from engine.runners.cuda import open_cuda_runner  # noqa: PLC0415

    return open_cuda_runner(settings, bundle)
