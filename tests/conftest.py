"""Fixtures every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.bundle import Bundle, load_bundle
from ipc.settings import DEFAULT_MODEL
from tools.prepare import ensure_bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The default model's bundle, prepared once for the checkout."""
    return load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"))
