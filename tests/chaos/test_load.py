"""The load itself: a connection that ends while it is being made is made again."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.chaos.load import Load
from tests.system.wire import Connection


@pytest.mark.parametrize(("error", "refused"), [(ConnectionRefusedError(), 1), (ConnectionResetError(), 0)])
def test_connects_again(monkeypatch: pytest.MonkeyPatch, error: OSError, refused: int) -> None:
    opened = Connection.open
    errors = [error]

    async def fails_once(port: int) -> Connection:
        if errors:
            raise errors.pop()
        return await opened(port)

    async def connect(load: Load) -> int:
        connection = await load._open()
        await connection.close()
        return connection.local_port

    monkeypatch.setattr(Connection, "open", fails_once)
    with socket.create_server(("127.0.0.1", 0)) as server:
        load = Load(server.getsockname()[1], {})
        port = asyncio.run(connect(load))
    assert not errors
    assert load.ports == {port}
    assert load.refused == refused
