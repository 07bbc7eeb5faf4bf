"""A server of our protocol on a real socket, and an application that shows what it was asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from frontend.drain import Server
from frontend.protocol import CONNECTION_LOST, Protocol
from tests.frontend.peer import eventually

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Counting:
    """Answers each request with the length of its body, once `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0
        self.lost: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.lost = scope["extensions"][CONNECTION_LOST]["future"]
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.begun += 1
        await self.gate.wait()
        body = b"%d" % size
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def app() -> Counting:
    return Counting()


@pytest.fixture
async def server(app: Counting) -> AsyncIterator[Server]:
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None)
    server = Server(config, request_seconds=60)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    yield server
    app.gate.set()
    server.should_exit = True
    await serving
    listener.close()


@pytest.fixture
async def connect(server: Server) -> AsyncIterator[Connect]:
    writers: list[asyncio.StreamWriter] = []
    address = server.servers[0].sockets[0].getsockname()

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    return int(head.split()[1]), await reader.readexactly(length)


def request(size: int = 0, header: int = 0) -> bytes:
    return HEAD + b"x-long: %b\r\ncontent-length: %d\r\n\r\n" % (b"h" * header, size) + b"b" * size
