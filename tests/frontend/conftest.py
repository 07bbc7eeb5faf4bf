"""A run directory, engines and clients of the test's own event loop, and all of them ended with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from frontend.app import create_app
from frontend.client import EngineClient
from ipc.bundle import Bundle
from tests.frontend.peer import DIGEST, EnginePeer, StartClient, StartPeer, refuse
from tests.frontend.served import KEY, drawn_engine, serving, small_bounds

BOUNDS = {"most_flights": 1000, "most_held": 1000, "most_queue_s": 30.0, "grace_s": 30.0, "stall_s": 30.0}


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that front ends run on. What a callback of it raises fails the test."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
async def start_peer(run_dir: Path) -> AsyncIterator[StartPeer]:
    peers: list[EnginePeer] = []

    def start(**options: Any) -> EnginePeer:
        peers.append(EnginePeer(run_dir, **options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.die()


@pytest.fixture
async def start_client(run_dir: Path) -> AsyncIterator[StartClient]:
    clients: list[EngineClient] = []

    def start(**options: Any) -> EngineClient:
        given: dict[str, Any] = {"digest": DIGEST, "adopt": refuse, **BOUNDS, **options}
        clients.append(EngineClient(run_dir, **given))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="session")
async def http(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """The application with an engine that answers, for tests that change nothing about either."""
    run_dir = tmp_path_factory.mktemp("run")
    with drawn_engine(run_dir, bundle):
        async with serving(create_app(small_bounds(run_dir), bundle, KEY)) as client:
            yield client


@pytest.fixture
async def peer(start_peer: StartPeer, bundle: Bundle) -> EnginePeer:
    """An engine for the real bundle that answers only what a test tells it to."""
    return start_peer(digest=bundle.digest, dim=bundle.dim)


@pytest.fixture
async def asked(run_dir: Path, bundle: Bundle) -> AsyncIterator[httpx.AsyncClient]:
    """An application of the test's own in `run_dir`, where `peer` is its engine."""
    async with serving(create_app(small_bounds(run_dir), bundle, KEY)) as client:
        yield client
