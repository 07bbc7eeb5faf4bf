"""A runner (docs/runners.md) that never returns from a batch with the token id $HANGING_ID."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from engine.runners.onnx import OnnxRunner
from ipc.bundle import Bundle
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows


class HangingRunner:
    """ONNX Runtime on the CPU, and one text that it does not survive."""

    device = "cpu"
    precision = "fp32"

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self._runner = OnnxRunner(bundle, "cpu", settings.lanes, "fp32")
        self._hanging = int(os.environ["HANGING_ID"])
        self.lanes = self._runner.lanes
        self.mixes_lengths = self._runner.mixes_lengths

    def warm_up(self, rows: Rows) -> None:
        """As ONNX Runtime."""
        self._runner.warm_up(rows)

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """As ONNX Runtime, or never."""
        if any(self._hanging in ids for ids in texts):
            threading.Event().wait()
        return self._runner.run(texts, rows)
