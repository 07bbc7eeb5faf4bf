"""The end of a front end on real connections: which requests are answered, and which connections end when."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys

import pytest

from frontend import drain
from frontend.drain import Connections, Server, most_connections
from tests.frontend.counting import Connect, Counting, answer, app, connect, request, server
from tests.frontend.peer import eventually

pytestmark = pytest.mark.anyio
# Fixtures.
__all__ = ["app", "connect", "server"]


@pytest.fixture(autouse=True)
def long_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as any test may take, unless it says otherwise."""
    monkeypatch.setattr(drain, "LINGER_SECONDS", 60.0)
    monkeypatch.setattr(drain, "PATIENT_SECONDS", 60.0)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGUSR1])
def number(request: pytest.FixtureRequest) -> signal.Signals:
    found: signal.Signals = request.param
    return found


async def leave(server: Server, number: signal.Signals = signal.SIGUSR1) -> None:
    """Have the server take a signal as it does; return once it accepts nothing more."""
    if number == signal.SIGUSR1:
        server.restart()
    else:
        # Without the captured signal that uvicorn would raise anew.
        server.handle_exit(signal.SIGTERM, None)
        server._captured_signals.clear()
    await eventually(lambda: not server.servers[0].is_serving())


async def test_a_request_on_its_way_is_answered(connect: Connect, server: Server, number: signal.Signals) -> None:
    reader, writer = await connect()
    writer.write(request(1))
    assert await answer(reader) == (200, b"1")
    await leave(server, number)
    writer.write(request(2))
    assert b"connection: close" in await head_of(reader, 2)
    assert await reader.read() == b"", "and it is the connection's last"


async def head_of(reader: asyncio.StreamReader, size: int) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(1) == b"%d" % size
    return head


async def test_the_first_request_of_a_connection_is_answered(connect: Connect, server: Server) -> None:
    reader, writer = await connect()
    await eventually(lambda: server.server_state.connections)
    await leave(server)
    writer.write(request(2))
    assert await answer(reader) == (200, b"2")
    assert await reader.read() == b""


async def test_a_request_in_work_is_answered(
    connect: Connect, server: Server, app: Counting, number: signal.Signals
) -> None:
    reader, writer = await connect()
    app.gate.clear()
    writer.write(request(3))
    await eventually(lambda: app.begun)
    await leave(server, number)
    app.gate.set()
    assert b"connection: close" in await head_of(reader, 3)
    assert await reader.read() == b""


async def test_requests_sent_ahead_are_all_answered(connect: Connect, server: Server, app: Counting) -> None:
    """One in work and one that waits behind it when the end begins, and one that comes then: the last says close."""
    reader, writer = await connect()
    app.gate.clear()
    writer.write(request(1) + request(2))
    await eventually(lambda: app.begun)
    await leave(server)
    app.gate.set()
    assert b"connection: close" not in await head_of(reader, 1)
    assert b"connection: close" in await head_of(reader, 2)
    assert await reader.read() == b""


async def test_requests_sent_together_after_the_end_began_are_all_answered(connect: Connect, server: Server) -> None:
    reader, writer = await connect()
    await eventually(lambda: server.server_state.connections)
    await leave(server)
    writer.write(b"".join(request(size) for size in (5, 6, 7)))
    assert [b"connection: close" in await head_of(reader, size) for size in (5, 6, 7)] == [False, False, True]
    assert await reader.read() == b""


async def test_what_the_client_wants_closed_stays_so(connect: Connect, server: Server, app: Counting) -> None:
    reader, writer = await connect()
    app.gate.clear()
    writer.write(request(1).replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
    await eventually(lambda: app.begun)
    await leave(server)
    app.gate.set()
    assert b"connection: close" in await head_of(reader, 1)
    assert await reader.read() == b""


async def test_an_idle_connection_is_let_go_in_the_end(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(drain, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(drain, "PATIENT_SECONDS", 0.02)
    reader, _ = await connect()
    await eventually(lambda: server.server_state.connections)
    await leave(server, number)
    assert await reader.read() == b""


async def test_a_head_that_has_begun_is_waited_for(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "PATIENT_SECONDS", 0.0)
    reader, writer = await connect()
    idle, _ = await connect()
    data = request(4)
    writer.write(data[:30])
    await eventually(lambda: any(connection._head_bytes for connection in server.server_state.connections))  # type: ignore[union-attr]
    await leave(server)
    assert await idle.read() == b"", "idle connections are being closed"
    writer.write(data[30:])
    assert await answer(reader) == (200, b"4")


async def test_a_stop_does_not_wait_for_a_restart(
    connect: Connect, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = await connect()
    await eventually(lambda: server.server_state.connections)
    await leave(server)
    assert len(server.server_state.connections) == 1
    monkeypatch.setattr(drain, "LINGER_SECONDS", 0.0)
    server.handle_exit(signal.SIGTERM, None)
    server._captured_signals.clear()
    assert await reader.read() == b""


async def test_a_connection_that_is_too_many_is_closed_and_told_once(
    connect: Connect, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server._state._most = 2
    kept = [await connect() for _ in range(2)]
    await eventually(lambda: len(server.server_state.connections) == 2)
    for _ in range(3):
        reader, _ = await connect()
        assert await reader.read() == b""
    for reader, writer in kept:
        writer.write(request(1))
        assert await answer(reader) == (200, b"1")
    said = [record for record in caplog.records if record.message == drain.FULL]
    assert len(said) == 1
    kept[0][1].close()
    await eventually(lambda: len(server.server_state.connections) == 1)
    reader, writer = await connect()
    writer.write(request(2))
    assert await answer(reader) == (200, b"2"), "there is room again"


class Many:
    """As many connections as a test says."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def test_being_full_is_told_again_only_after_there_was_room(caplog: pytest.LogCaptureFixture) -> None:
    state = Connections(100)
    for count in (101, 100, 101, 95, 101):
        state.connections = Many(count)  # type: ignore[assignment]
        assert state.has_room() is (count <= 100)
    assert len(caplog.records) == 1
    for count in (90, 101):
        state.connections = Many(count)  # type: ignore[assignment]
        state.has_room()
    assert len(caplog.records) == 2


def test_room_is_left_for_what_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1024, 960), (10, 1), (resource.RLIM_INFINITY, sys.maxsize)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert most_connections() == most
