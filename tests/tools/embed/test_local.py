from __future__ import annotations

import pytest

from ipc.settings import Settings
from tools.embed.local import CPU_ROWS, with_bulk_batches


@pytest.mark.parametrize(
    ("settings", "device", "rows"),
    [
        (Settings(), "cpu", CPU_ROWS),
        (Settings(max_batch_rows=100), "cpu", 100),
        (Settings(), "cuda", 16),
        (Settings(runner="a:b"), "cpu", 16),
    ],
)
def test_only_onnx_runtime_on_a_cpu_gets_larger_batches(settings: Settings, device: str, rows: int) -> None:
    assert with_bulk_batches(settings, device).max_batch_rows == rows
