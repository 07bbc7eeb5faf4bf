"""One backend for all tests: to load the tokenizer takes longer than most of them."""

from __future__ import annotations

import pytest

from ipc.bundle import Bundle
from tests.tools.embed.words import local
from tools.embed.local import Local


@pytest.fixture(scope="session")
def backend(bundle: Bundle) -> Local:
    """The real one, around a runner that adds up ids."""
    return local(bundle)[0]
