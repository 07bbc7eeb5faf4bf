"""Every architecture that tools builds itself gives the vectors of transformers."""

from pathlib import Path

import pytest

from tests.export.models import BUILT, POOLINGS, assert_same, ours, save_model, save_usage, theirs
from tools.families import CONFIGS
from tools.prepare import prepare


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_vectors_are_those_of_transformers(tmp_path: Path, architecture: str, pooling: str) -> None:
    folder = save_model(tmp_path / "model", architecture, BUILT[architecture])
    normalize = pooling != "cls"
    save_usage(folder, pooling, normalize=normalize)
    said: list[str] = []
    bundle = prepare(str(folder), tmp_path / "bundle", say=said.append)
    assert said[0].startswith("building")
    assert bundle.parity.reference == "numpy float64"
    assert_same(ours(bundle), theirs(folder, bundle, pooling, normalize=normalize))
