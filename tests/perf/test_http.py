from __future__ import annotations

import asyncio
from typing import cast

import orjson
import pytest

from perf.http import BROKEN, Connection, Target, build_request

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 5\r\nx-compute-tokens: 3\r\n\r\nhello"


PORT = 4711


class Wire:
    """A transport that keeps what is written, and a connection on it that has sent a request."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.answers: list[tuple[int, bytes]] = []
        self.is_aborted = False
        self.connection = Connection(lambda c: self.answers.append((c.status, c.body)))
        self.connection.connection_made(cast(asyncio.BaseTransport, self))
        self.connection.send(b"GET", 0)

    def get_extra_info(self, name: str) -> object:
        return {"sockname": ("127.0.0.1", PORT)}[name]

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.connection.connection_lost(None)

    def abort(self) -> None:
        self.is_aborted = True
        self.connection.connection_lost(None)


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
def test_an_answer_may_come_in_any_two_pieces(cut: int) -> None:
    wire = Wire()
    wire.connection.data_received(ANSWER[:cut])
    assert not wire.answers
    wire.connection.data_received(ANSWER[cut:])
    assert wire.answers == [(200, b"hello")]


def test_an_answer_may_come_byte_by_byte() -> None:
    wire = Wire()
    for byte in ANSWER:
        wire.connection.data_received(bytes([byte]))
    assert wire.answers == [(200, b"hello")]


def test_a_connection_is_used_again() -> None:
    wire = Wire()
    wire.connection.data_received(ANSWER)
    wire.connection.send(b"GET", 1)
    wire.connection.data_received(ANSWER.replace(b"200", b"429"))
    assert wire.answers == [(200, b"hello"), (429, b"hello")]


def test_an_empty_body_is_an_answer() -> None:
    wire = Wire()
    wire.connection.data_received(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")
    assert wire.answers == [(204, b"")]


@pytest.mark.parametrize(
    "data",
    [
        ANSWER + b"more than was announced",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_what_is_no_answer_breaks_the_connection(data: bytes) -> None:
    wire = Wire()
    wire.connection.data_received(data)
    assert wire.is_aborted
    assert wire.answers == [(BROKEN, b"")]


def test_a_lost_connection_is_an_answer_that_never_came() -> None:
    wire = Wire()
    wire.connection.connection_lost(None)
    assert wire.answers == [(BROKEN, b"")]


def test_hanging_up_reports_nothing() -> None:
    wire = Wire()
    wire.connection.close()
    assert not wire.answers


@pytest.mark.parametrize(("texts", "field"), [(["one"], "one"), (["one", "two"], ["one", "two"])])
def test_a_request_is_whole(texts: list[str], field: object) -> None:
    target = Target("127.0.0.1", 8000, "secret", "/embed", "inputs")
    head, _, body = build_request(target, texts, truncate=True).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /embed HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert orjson.loads(body) == {"inputs": field, "truncate": True}


def test_a_connection_knows_its_port() -> None:
    assert Wire().connection.local_port == PORT
