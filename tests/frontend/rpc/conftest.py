"""gRPC's own threads, once for all tests."""

from __future__ import annotations

import grpc
import pytest

_kept: list[grpc.aio.Channel] = []


@pytest.fixture(scope="session")
async def poller() -> None:
    """What gRPC shares among servers and channels stays until this process ends: it leaves two sockets unclosed."""
    _kept.append(grpc.aio.insecure_channel("127.0.0.1:1"))
