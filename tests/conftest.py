"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.bundle import Bundle, load_bundle
from ipc.settings import DEFAULT_MODEL
from tools.prepare import ensure_bundle

ROOT = Path(__file__).parent.parent
# Tests that need PyTorch (`make test-export`), or programs of the system (`make test-programs`).
APART = [ROOT / "tests" / name for name in ("export", "monitoring", "browser", "deploy", "audit")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what a machine with Python alone cannot run, unless it is asked for by name."""
    if collection_path not in APART:
        return None
    is_asked_for = any(Path(argument).absolute().is_relative_to(collection_path) for argument in config.args)
    return None if is_asked_for else True


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The default model's bundle, prepared once for the checkout."""
    return load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"))
