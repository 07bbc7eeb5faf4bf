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

    `lanes` is how many threads may call `run` at once; `device` and `precision` are names for people.
    """

    device: str
    precision: str
    lanes: int

    def warm_up(self, rows: Rows) -> None:
        """Run what must not be slow later, with `rows` (float32 [n, dim]) as scratch."""

    def run(self, texts: Sequence[Ids], rows: Rows) -> None:
        """Write the vector of texts[i] (int32 [length], all of one length) into rows[i], float32 [n, dim]."""


@runtime_checkable
class WideRunner(Runner, Protocol):
    """A runner that is faster when it has every core of the machine to itself."""

    def run_alone(self, texts: Sequence[Ids], rows: Rows) -> None:
        """As `run`, to the bit; called where no other batch runs and no text waits."""


def open_runner(settings: Settings, bundle: Bundle) -> Runner:
    """The runner that the settings name. Its libraries are imported here, so that only those that are used are needed.

    Raises StartError where it cannot be had or cannot be started.
    """
    if settings.runner == "onnx":
        from engine.runners.onnx import OnnxRunner  # noqa: PLC0415

        return OnnxRunner(bundle, settings.device, settings.lanes, settings.precision)
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
