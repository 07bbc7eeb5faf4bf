"""One whole server for all tests that change nothing about it; those that do start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perf.stack import Stack
from tests.system.reference import Reference, load_references


@pytest.fixture(scope="session")
def server() -> Iterator[Stack]:
    """Two front ends and an engine. Only for tests that leave it as it was."""
    with Stack(frontends=2) as stack:
        yield stack


@pytest.fixture(scope="session")
def references() -> list[Reference]:
    """The stored texts with the vectors they must get."""
    return load_references()
