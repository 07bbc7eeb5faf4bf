from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from frontend import raw
from frontend.drain import Server
from frontend.flight import Call, Lent
from frontend.protocol import Protocol
from frontend.raw import NPY, OCTETS, RawResponse, raw_media
from ipc.slab import FREE
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio

DIM = 256
ROWS = 4096
ME = 7


class Vectors:
    """Answers any request with all rows of a slab of its own, raw."""

    def __init__(self) -> None:
        self.rows = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
        self.expected = self.rows.tobytes()
        self.leases = np.full(ROWS, ME, np.uint32)
        self.media = OCTETS
        self.seconds = 60.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        call = Call(None, [b""] * ROWS, 0, loop.create_future(), 0)
        call.held = {n: Lent(self.rows, self.leases, n) for n in range(ROWS)}
        response = RawResponse(call, self.media, loop.time() + self.seconds, {"x-a": "b"})
        await response(scope, receive, send)

    def reuse(self) -> None:
        """What an engine does with rows that are free."""
        self.rows[self.leases == FREE] = np.nan

    def held(self) -> int:
        return int(np.count_nonzero(self.leases))


@pytest.fixture
async def app() -> Vectors:
    return Vectors()


@pytest.fixture
async def client(app: Vectors) -> AsyncIterator[socket.socket]:
    """A connection that takes in little at a time."""
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None)
    server = Server(config, request_seconds=60)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
        yield client
    server.should_exit = True
    await serving
    listener.close()


async def ask(client: socket.socket, headers: bytes = b"") -> None:
    await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nhost: a\r\n%b\r\n" % headers)


async def read_answer(client: socket.socket, data: bytes = b"") -> tuple[str, bytes]:
    """Head and body, to the length the head tells; `data` was read already."""
    loop = asyncio.get_running_loop()
    while b"\r\n\r\n" not in data:
        data += await loop.sock_recv(client, 65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        more = await loop.sock_recv(client, 1 << 20)
        assert more, "the connection ended too soon"
        body += more
    return head.decode().lower(), body


async def test_a_reader_gets_every_row_and_the_rows_come_back(app: Vectors, client: socket.socket) -> None:
    await ask(client)
    head, body = await read_answer(client)
    assert body == app.expected
    assert f"x-embedding-shape: {ROWS},{DIM}" in head
    assert f"content-type: {OCTETS}" in head
    assert "x-a: b" in head
    await eventually(lambda: not app.held())


@pytest.mark.parametrize("headers", [b"", b"connection: close\r\n"], ids=["stays", "closes"])
async def test_a_slow_reader_gets_the_right_bytes_while_the_slab_is_reused(
    app: Vectors, client: socket.socket, monkeypatch: pytest.MonkeyPatch, headers: bytes
) -> None:
    monkeypatch.setattr(raw, "PATIENCE_SECONDS", 0.01)
    await ask(client, headers)
    # What the socket has not taken stays lent; all that is behind it is copied and given back.
    await eventually(lambda: app.held() <= raw.MOST_ROWS_IN_PIECE)
    assert app.held()
    app.reuse()
    _, body = await read_answer(client)
    assert body == app.expected
    await eventually(lambda: not app.held())


async def test_a_reader_that_reads_nothing_is_cut_off_at_the_deadline(app: Vectors, client: socket.socket) -> None:
    app.seconds = 0.2
    await ask(client)
    await eventually(lambda: not app.held())
    with pytest.raises((ConnectionError, AssertionError)):
        await read_answer(client)


async def test_the_last_piece_of_a_connection_that_closes_stays_lent_until_it_is_sent(
    app: Vectors, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "MOST_ROWS_IN_PIECE", ROWS)
    await ask(client, b"connection: close\r\n")
    first = await asyncio.get_running_loop().sock_recv(client, 1)
    assert app.held() == ROWS
    app.reuse()
    _, body = await read_answer(client, first)
    assert body == app.expected
    await eventually(lambda: not app.held())


async def test_a_reader_that_leaves_gives_every_row_back(
    app: Vectors, client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    await ask(client)
    await asyncio.get_running_loop().sock_recv(client, 1)
    client.close()
    await eventually(lambda: not app.held())
    assert caplog.text == "", "it is none of our faults"


async def test_npy(app: Vectors, client: socket.socket) -> None:
    app.media = NPY
    await ask(client)
    _, body = await read_answer(client)
    assert np.array_equal(np.load(io.BytesIO(body)), np.frombuffer(app.expected, "<f4").reshape(ROWS, DIM))


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, None),
        ("*/*", None),
        ("application/json", None),
        (OCTETS, OCTETS),
        (NPY, NPY),
        ("Application/Octet-Stream;q=1, application/json", OCTETS),
        ("application/json, application/octet-stream", None),
    ],
)
def test_media(accept: str | None, media: str | None) -> None:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    assert raw_media(Request({"type": "http", "headers": headers})) == media


async def test_neighbours_go_together_and_parts_go_as_they_are() -> None:
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    leases = np.full(5, ME, np.uint32)
    call = Call(None, [b"", b"", b"12345678", b"", b""], 0, asyncio.get_running_loop().create_future(), 0)
    call.held = {index: Lent(rows, leases, number) for index, number in ((0, 2), (1, 3), (3, 4), (4, 0))}
    pieces = list(raw.pieces(call))
    assert [len(piece.lent) for piece in pieces] == [2, 0, 1, 1]
    assert b"".join(piece.data for piece in pieces) == b"".join(
        (rows[2].tobytes(), rows[3].tobytes(), b"12345678", rows[4].tobytes(), rows[0].tobytes())
    )
