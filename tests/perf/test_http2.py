from __future__ import annotations

import asyncio
import struct
from typing import cast

import pytest

from frontend.rpc.protos.embedlane_pb2 import EmbedRequest
from perf.http import BROKEN
from perf.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RESET,
    SETTINGS,
    WINDOW,
    WINDOW_UPDATE,
    GrpcConnection,
    build_call,
    frame,
    literals,
    remembered,
)

MESSAGE = struct.pack(">BI", 0, 5) + b"hello"
HEADS = frame(HEADERS, END_HEADERS, 1, b"\x88")
TRAILERS = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00")


class Wire:
    """A transport that keeps what is written, and a connection on it that has sent a call."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.answers: list[tuple[int, bytes]] = []
        self.connection = GrpcConnection(lambda c: self.answers.append((c.status, c.body)))
        self.connection.connection_made(cast(asyncio.BaseTransport, self))
        self.connection.send(build_call(["a"]), 0)
        self.written.clear()

    def get_extra_info(self, name: str) -> object:
        return {"sockname": ("127.0.0.1", 4711)}[name]

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.connection.connection_lost(None)


def test_a_frame_has_nine_bytes_before_it() -> None:
    assert frame(PING, ACK, 0, b"12345678") == b"\0\0\x08\x06\x01\0\0\0\0" + b"12345678"


def test_a_call_is_its_message_with_its_length() -> None:
    call = build_call(["one", "two"])
    assert call[:5] == struct.pack(">BI", 0, len(call) - 5)
    assert list(EmbedRequest.FromString(call[5:]).texts) == ["one", "two"]


def test_headers_are_sent_in_full_once_and_by_their_places_afterwards() -> None:
    assert literals([(":path", "/a")]) == b"\x83\x86\x40\x05:path\x02/a"
    assert remembered(3) == b"\x83\x86\xc0\xbf\xbe"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_may_come_in_any_pieces(size: int) -> None:
    wire = Wire()
    whole = HEADS + frame(DATA, 0, 1, MESSAGE[:7]) + frame(DATA, 0, 1, MESSAGE[7:]) + TRAILERS
    for at in range(0, len(whole), size):
        assert not wire.answers
        wire.connection.data_received(whole[at : at + size])
    assert wire.answers == [(200, b"hello")]


@pytest.mark.parametrize(
    "frames", [TRAILERS, HEADS + frame(DATA, 0, 1, MESSAGE[:-1]) + TRAILERS, frame(RESET, 0, 1, b"\0\0\0\0")]
)
def test_an_answer_without_a_whole_message_is_an_error(frames: bytes) -> None:
    wire = Wire()
    wire.connection.data_received(frames)
    assert [status for status, _ in wire.answers] == [500]


def test_the_servers_settings_and_pings_are_answered_and_its_goodbye_ends_the_connection() -> None:
    wire = Wire()
    wire.connection.data_received(
        frame(SETTINGS, 0, 0, b"") + frame(SETTINGS, ACK, 0, b"") + frame(PING, 0, 0, b"8" * 8)
    )
    assert wire.written == [frame(SETTINGS, ACK, 0, b""), frame(PING, ACK, 0, b"8" * 8)]
    wire.connection.data_received(frame(GOAWAY, 0, 0, b"\0" * 8))
    assert wire.answers == [(BROKEN, b"")]


def test_the_window_is_opened_again_before_it_is_used_up() -> None:
    wire = Wire()
    part = frame(DATA, 0, 1, bytes((1 << 24) - 1))
    for _ in range(WINDOW // 2 // len(part) + 2):
        wire.connection.data_received(part)
    (opened,) = wire.written
    assert opened[3] == WINDOW_UPDATE
    assert struct.unpack(">I", opened[9:])[0] > WINDOW // 2
