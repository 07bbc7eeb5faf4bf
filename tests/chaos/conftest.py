"""A server of its own for each test, and what every text's vector is when nothing goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from perf.stack import Stack
from tests.system.reference import load_references
from tests.system.wire import Connection, fetch_bits


@pytest.fixture
def stack() -> Iterator[Stack]:
    """Two front ends and an engine, to be maltreated."""
    with Stack(frontends=2) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


@pytest.fixture(scope="session")
def bits() -> dict[str, bytes]:
    """The bits of each reference text's vector, from a server that nothing happened to."""

    async def ask(port: int) -> dict[str, bytes]:
        async with await Connection.open(port) as connection:
            return {r.text: await fetch_bits(connection, r.text) for r in load_references() if r.text}

    with Stack(frontends=1) as quiet:
        return asyncio.run(ask(quiet.port))
