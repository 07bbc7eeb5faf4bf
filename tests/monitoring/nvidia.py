"""NVIDIA's driver for a machine that has none, made by the machine's C compiler, and a runner that says it is on CUDA.

The server under test reads it as it would the real one: by the package nvidia-ml-py, in the engine's process.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.runners.onnx import OnnxRunner
from ipc.bundle import Bundle
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows

SOURCE = Path(__file__).with_name("nvidia.c")
LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")


def make_driver(folder: Path) -> dict[str, str]:
    """Compile it; gives the environment in which a process finds it, and has its second GPU.

    Raises RuntimeError with what to do where there is no compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("There is no C compiler here: on Debian and Ubuntu, apt-get install gcc libc6-dev.")
    made = folder / LIBRARIES[0]
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", made, SOURCE], check=True)
    for name in LIBRARIES[1:]:
        shutil.copy(made, folder / name)
    return {"LD_LIBRARY_PATH": str(folder), "CUDA_VISIBLE_DEVICES": "1"}


class OnCuda:
    """A runner of the CPU, by another name."""

    device = "cuda"

    def __init__(self, runner: OnnxRunner) -> None:
        self._runner = runner
        self.precision, self.lanes, self.mixes_lengths = runner.precision, runner.lanes, runner.mixes_lengths

    def warm_up(self, rows: Rows) -> None:
        """See Runner."""
        self._runner.warm_up(rows)

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """See Runner."""
        return self._runner.run(texts, rows)


def make(settings: Settings, bundle: Bundle) -> OnCuda:
    """For EMBEDLANE_RUNNER."""
    return OnCuda(OnnxRunner(bundle, "cpu", settings.lanes, "fp32"))
