from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from collections.abc import Iterable, Iterator
from typing import cast

import pytest
import uvicorn

from frontend import protocol
from frontend.protocol import CONTINUE, MOST_HEAD_BYTES, OneWrite
from tests.frontend.counting import HEAD, Connect, Counting, answer, app, connect, request, server
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio
# Fixtures.
__all__ = ["app", "connect", "server"]


@pytest.mark.parametrize("size", [0, 1000, MOST_HEAD_BYTES + 1, 100_000, 200_000, 1_000_000])
async def test_a_large_body_is_no_long_head(connect: Connect, size: int) -> None:
    reader, writer = await connect()
    for _ in range(3):
        writer.write(request(size))
        assert await answer(reader) == (200, b"%d" % size)


async def test_heads_below_the_bound_are_counted_one_by_one(connect: Connect) -> None:
    reader, writer = await connect()
    for _ in range(4):
        writer.write(request(10, header=MOST_HEAD_BYTES // 2))
        assert await answer(reader) == (200, b"10")


async def test_requests_that_come_together_are_answered_in_order(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(b"".join(request(size) for size in (5, 70_000, 7)))
    assert [await answer(reader) for _ in range(3)] == [(200, b"5"), (200, b"70000"), (200, b"7")]


async def test_a_head_without_end_is_ended(connect: Connect, app: Counting) -> None:
    reader, writer = await connect()
    # To the byte, so that nothing is unread when the server closes, and the answer is not lost in a reset.
    head = HEAD + b"x-more: " + b"h" * MOST_HEAD_BYTES
    writer.write(head[: MOST_HEAD_BYTES + 1])
    assert await answer(reader) == (431, b"")
    assert await reader.read() == b""
    assert app.begun == 0


async def test_a_request_learns_that_its_client_hung_up(connect: Connect, app: Counting) -> None:
    _, writer = await connect()
    app.gate.clear()
    writer.write(request(3))
    await eventually(lambda: app.begun)
    assert app.lost is not None
    assert not app.lost.done()
    writer.transport.abort()
    await asyncio.wait_for(app.lost, 20)


class Writes:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.written.append(b"".join(pieces))

    def close(self) -> None:
        self.written.append(b"closed")


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ([b"head", b"body"], [b"headbody"]),
        ([b"head", b""], [b"head"]),
        ([b"head", b"one", b"two"], [b"headone", b"two"]),
        ([CONTINUE + b"Continue", b"head", b"body"], [CONTINUE + b"Continue", b"headbody"]),
    ],
)
def test_a_head_leaves_with_the_first_piece_of_its_body(pieces: list[bytes], written: list[bytes]) -> None:
    transport = Writes()
    joined = OneWrite(cast(asyncio.Transport, transport))
    for piece in pieces:
        joined.write(piece)
    assert transport.written == written


def test_a_head_without_a_body_leaves_before_the_end() -> None:
    transport = Writes()
    joined = OneWrite(cast(asyncio.Transport, transport))
    joined.write(b"head")
    joined.close()
    assert transport.written == [b"head", b"closed"]


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert await answer(reader) == (200, b"3")


async def test_the_answer_to_head_has_no_body_and_is_sent(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(request(0).replace(b"POST", b"HEAD", 1))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(request(1))
    assert await answer(reader) == (200, b"1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATROL_SECONDS", 0.01)
    for name in ("FIRST_SECONDS", "HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(protocol, name, 0.05)


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, b"\r\n", HEAD + b"content-length: 5\r\n\r\nab"],
    ids=["nothing", "half a head", "an empty line", "half a body"],
)
async def test_a_client_that_never_ends_its_request_is_not_waited_for(
    connect: Connect, impatient: None, sent: bytes
) -> None:
    reader, writer = await connect()
    writer.write(sent)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ") if sent else answer == b""


async def test_nor_is_one_that_never_ends_its_second(connect: Connect, impatient: None) -> None:
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    assert await answer(reader) == (200, b"0")
    writer.write(HEAD)
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_an_answer_that_takes_long_is_no_fault_of_the_client(
    connect: Connect, app: Counting, impatient: None
) -> None:
    app.gate.clear()
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 2\r\n\r\nab" + HEAD)
    await eventually(lambda: app.begun)
    # The half of a second head is late by then, and waits for the first answer all the same.
    await asyncio.sleep(0.2)
    app.gate.set()
    assert await answer(reader) == (200, b"2")


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_nothing_is_kept_of_a_connection_that_has_ended(
    server: uvicorn.Server, is_reset: bool, without_collector: None
) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, server.servers[0].sockets[0].getsockname())
        await loop.sock_sendall(client, HEAD + b"content-length: 0\r\n\r\n")
        assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200 ")
        [connection] = server.server_state.connections
        left = weakref.ref(connection)
        del connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_reset, 0))
    await eventually(lambda: not server.server_state.connections)
    # A timer of uvicorn's would let go of it in time, and so would the collector.
    await asyncio.sleep(0)
    assert left() is None
