"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.bundle import Bundle, load_bundle
from ipc.settings import DEFAULT_MODEL
from tools.prepare import ensure_bundle

ROOT = Path(__file__).parent.parent
EXPORT = ROOT / "tests" / "export"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests that need PyTorch, unless they are asked for by name, as `make test-export` does."""
    is_asked_for = any(Path(argument).absolute().is_relative_to(EXPORT) for argument in config.args)
    return True if collection_path == EXPORT and not is_asked_for else None


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The default model's bundle, prepared once for the checkout."""
    return load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"))
