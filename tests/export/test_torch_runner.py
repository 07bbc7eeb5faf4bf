"""The PyTorch runner against ONNX Runtime on the same small random models. Needs PyTorch: see `make test-export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.lanes import Lanes
from engine.runners import open_runner
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.settings import Settings
from tests.tools.conftest import write_model
from tools.prepare import prepare


def settings_for(folder: Path, **given: object) -> Settings:
    return Settings(**{"runner": "torch", "device": "cpu", "checkpoint": str(folder), **given})  # type: ignore[arg-type]


@pytest.fixture(params=[("mean", True), ("cls", True), ("mean", False)], ids=["mean", "cls", "long"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Bundle]:
    pooling, normalize = request.param
    folder = write_model(tmp_path / "model", pooling=pooling, normalize=normalize)
    return folder, prepare(str(folder), tmp_path / "bundle", say=lambda line: None)


def test_vectors_are_those_of_onnx_runtime(model: tuple[Path, Bundle]) -> None:
    folder, bundle = model
    by_torch, by_onnx = open_runner(settings_for(folder), bundle), open_runner(Settings(device="cpu"), bundle)
    rows, expected = (np.empty((5, bundle.dim), np.float32) for _ in range(2))
    by_torch.warm_up(rows)
    for length in (2, 7, bundle.max_tokens):
        texts = list(np.random.default_rng(length).integers(0, bundle.vocab_size, (5, length), np.int32))
        by_torch.run(texts, rows)
        by_onnx.run(texts, expected)
        assert np.allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert (by_torch.device, by_torch.precision, by_torch.lanes) == ("cpu", "fp32", 1)


def test_it_writes_its_rows_and_no_others(model: tuple[Path, Bundle]) -> None:
    folder, bundle = model
    rows = np.zeros((6, bundle.dim), np.float32)
    open_runner(settings_for(folder), bundle).run([np.ones(4, np.int32)] * 2, rows[2:4])
    assert rows[2:4].any()
    assert not rows[[0, 1, 4, 5]].any()


def test_lanes_take_it_as_any_runner(model: tuple[Path, Bundle]) -> None:
    folder, bundle = model
    lanes = Lanes(open_runner(settings_for(folder, lanes=2), bundle), np.zeros((4, bundle.dim), np.float32), print)
    assert lanes.free
    lanes.close()


def test_other_weights_than_the_bundles_are_refused(model: tuple[Path, Bundle], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", intermediate_size=64)
    with pytest.raises(StartError, match="the two must be one model"):
        open_runner(settings_for(other), model[1])


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_precision_it_has_not_is_told(model: tuple[Path, Bundle], precision: str) -> None:
    with pytest.raises(StartError, match=f"has no {precision} on cpu"):
        open_runner(settings_for(model[0], precision=precision), model[1])


def test_missing_weights_are_told(model: tuple[Path, Bundle], tmp_path: Path) -> None:
    with pytest.raises(StartError, match="set EMBEDLANE_CHECKPOINT to the folder"):
        open_runner(settings_for(tmp_path / "nowhere"), model[1])


def test_a_checkpoint_that_cannot_be_loaded_is_told(model: tuple[Path, Bundle]) -> None:
    folder, bundle = model
    (folder / "config.json").write_text("{}")
    with pytest.raises(StartError, match="PyTorch cannot load"):
        open_runner(settings_for(folder), bundle)
