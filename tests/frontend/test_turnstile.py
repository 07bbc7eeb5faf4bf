"""Refused by the head alone or on the way that all requests take: clients must not be able to tell."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.types import Scope

from frontend.admission import Admission
from frontend.app import ASKING, create_app
from frontend.auth import SCOPE_KEY
from frontend.dialects import tei
from frontend.drain import Server
from frontend.gate import Gate
from frontend.keys import OWN_NAME, KeyRing, digest_of
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.limiter import Limiter
from frontend.metrics import RequestMetrics
from frontend.protocol import Protocol, RawHeaders
from frontend.request_log import Facts, RequestLog
from frontend.tokenizer import Tokenizer, Tokens
from frontend.turnstile import Turnstile
from ipc.backlog import ACTIVE, FIRST, TOTAL, Backlog
from ipc.bundle import Bundle
from ipc.priority import Priority
from tests.frontend.peer import EnginePeer, eventually
from tests.frontend.served import KEY, small_bounds

pytestmark = pytest.mark.anyio

FLOW = digest_of(KEY.encode())[0]
BODY = b'{"inputs": "a", "input": "a", "input_text": "a"}'
BODIES = {"/similarity": b'{"inputs": {"source_sentence": "a", "sentences": ["b"]}}'}


@pytest.fixture
def limits() -> dict[str, int]:
    """Settings of the front end that are not the usual ones."""
    return {}


@pytest.fixture
async def address(
    run_dir: Path, bundle: Bundle, peer: EnginePeer, limits: dict[str, int]
) -> AsyncIterator[tuple[str, int]]:
    """A front end on a real socket; its engine is the peer."""
    app = create_app(msgspec.structs.replace(small_bounds(run_dir), **limits), bundle, KEY)
    server = Server(uvicorn.Config(app, http=Protocol, ws="none", lifespan="on", log_config=None), request_seconds=60)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    await peer.joined()
    await eventually(lambda: app.state.embedder.client.engine)
    yield listener.getsockname()
    server.should_exit = True
    await serving
    listener.close()


class Client:
    """One connection; headers as they come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str, *headers: str, body: bytes = BODY, key: str = KEY, method: str = "POST") -> None:
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: a",
            f"authorization: Bearer {key}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *headers,
        ]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def receive(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(60):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            return int(first.split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))


@pytest.fixture
async def client(address: tuple[str, int]) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*address)
    yield Client(reader, writer)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What was answered because the head had been refused before; None where that was not known."""
    answers: list[bytes | None] = []
    ask = Turnstile.again

    def noted(turnstile: Turnstile, whole: bytes, always: RawHeaders) -> bytes | None:
        answers.append(ask(turnstile, whole, always))
        return answers[-1]

    monkeypatch.setattr(Turnstile, "again", noted)
    return answers


@pytest.mark.parametrize("path", ASKING)
async def test_both_ways_say_the_same(client: Client, peer: EnginePeer, path: str) -> None:
    peer.pile_up(3000, FLOW)
    answers = []
    for url in (path, f"{path}?the-long-way"):
        client.send(url, "x-correlation-id: mine", body=BODIES.get(path, BODY))
        status, headers, body = await client.receive()
        del headers["date"]
        answers.append((status, headers, body))
    assert answers[0] == answers[1]
    assert answers[0][0] == 429
    assert (answers[0][1]["retry-after"], answers[0][1]["x-correlation-id"]) == ("2", "mine")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("x-request-timeout-ms: 20000", "x-priority: bulk"), 429),
        (("x-request-timeout-ms: soon",), 422),
        (("x-priority: urgent",), 422),
    ],
)
async def test_what_the_headers_ask_for_is_read(
    client: Client, peer: EnginePeer, headers: tuple[str, ...], status: int
) -> None:
    peer.pile_up(3000, FLOW)
    client.send("/embed", *headers)
    assert (await client.receive())[0] == status


async def test_the_connection_goes_on(client: Client, peer: EnginePeer) -> None:
    for _ in range(3):
        peer.pile_up(3000, FLOW)
        client.send("/embed")
        assert (await client.receive())[0] == 429
        peer.pile_up(0, FLOW)
        before = len(peer.texts)
        client.send("/embed")
        peer.answer((await peer.received(before + 1))[before])
        assert (await client.receive())[0] == 200


@pytest.mark.parametrize("path", ASKING)
async def test_what_is_refused_again_hears_the_same(
    client: Client, peer: EnginePeer, again: list[bytes | None], path: str
) -> None:
    peer.pile_up(3000, FLOW)
    answers = []
    for url in (path, path, path, f"{path}?the-long-way"):
        client.send(url, body=BODIES.get(path, BODY))
        status, headers, body = await client.receive()
        del headers["date"]
        identity = headers.pop("x-correlation-id")
        answers.append((status, headers, body.replace(identity.encode(), b"its id")))
    assert answers == answers[:1] * 4
    # The first was read, and the last.
    assert [answer is not None for answer in again] == [True, True, False]


async def test_a_head_with_an_id_of_its_own_is_not_kept(
    client: Client, peer: EnginePeer, again: list[bytes | None]
) -> None:
    peer.pile_up(3000, FLOW)
    for _ in range(2):
        client.send("/embed", "x-request-id: mine")
        assert (await client.receive())[1]["x-correlation-id"] == "mine"
    assert again == [None]


async def test_each_refusal_has_an_id_of_its_own(client: Client, peer: EnginePeer, again: list[bytes | None]) -> None:
    peer.pile_up(3000, FLOW)
    identities = set()
    for _ in range(4):
        client.send("/embed")
        identities.add((await client.receive())[1]["x-correlation-id"])
    assert len(identities) == 4
    assert None not in again


async def test_heads_that_were_refused_are_served_when_there_is_room(
    client: Client, peer: EnginePeer, again: list[bytes | None]
) -> None:
    for number in range(3):
        peer.pile_up(3000, FLOW)
        for _ in range(3):
            client.send("/embed")
            assert (await client.receive())[0] == 429
        peer.pile_up(0, FLOW)
        client.send("/embed")
        peer.answer((await peer.received(number + 1))[number])
        assert (await client.receive())[0] == 200
    assert any(again)


async def test_a_key_that_is_withdrawn_is_looked_up(
    client: Client, peer: EnginePeer, again: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.pile_up(3000, FLOW)
    for _ in range(2):
        client.send("/embed")
        assert (await client.receive())[0] == 429
    monkeypatch.setattr(KeyRing, "find", lambda *_: None)
    monkeypatch.setattr(KeyRing, "holds", lambda *_: False)
    client.send("/embed")
    assert (await client.receive())[0] == 401
    assert [answer is not None for answer in again] == [True, False]


async def test_a_body_that_comes_later_is_not_taken_for_a_request(client: Client, peer: EnginePeer) -> None:
    peer.pile_up(3000, FLOW)
    client.send("/embed", body=b"")
    assert (await client.receive())[0] == 429
    large = b"[" + b"1," * 100_000 + b"1]"
    client.writer.write(
        b"POST /embed HTTP/1.1\r\nhost: a\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
        % (KEY.encode(), len(large))
    )
    assert (await client.receive())[0] == 429
    client.writer.write(large)
    client.send("/embed")
    assert (await client.receive())[0] == 429


async def test_requests_that_come_together_are_answered_in_order(client: Client, peer: EnginePeer) -> None:
    client.send("/embed")
    (text,) = await peer.received(1)
    peer.pile_up(3000, FLOW)
    client.send("/embed", "x-correlation-id: second")
    client.send("/info", method="GET", body=b"")
    peer.answer(text)
    assert [(await client.receive())[0] for _ in range(3)] == [200, 429, 200]


@pytest.mark.parametrize(
    ("path", "method", "key", "status"),
    [
        ("/embed", "POST", "wrong", 401),
        ("/info", "GET", KEY, 200),
        ("/embed", "GET", KEY, 405),
        ("/tokenize", "POST", KEY, 200),
        ("/nowhere", "POST", KEY, 404),
    ],
)
async def test_what_does_not_ask_the_engine_is_not_refused(
    client: Client, peer: EnginePeer, path: str, method: str, key: str, status: int
) -> None:
    peer.pile_up(3000, FLOW)
    client.send(path, key=key, method=method)
    assert (await client.receive())[0] == status


async def test_a_flood_of_bulk_is_refused_by_the_head(client: Client, peer: EnginePeer) -> None:
    peer.pile_up(3000, FLOW, Priority.BULK)
    # Without its body.
    client.writer.write(
        b"POST /embed HTTP/1.1\r\nhost: a\r\nx-priority: bulk\r\nauthorization: Bearer %b\r\ncontent-length: 9\r\n\r\n"
        % KEY.encode()
    )
    assert (await client.receive())[0] == 429


async def test_http_1_0_is_answered_and_hung_up_on(client: Client, peer: EnginePeer) -> None:
    peer.pile_up(3000, FLOW)
    client.writer.write(
        b"POST /embed HTTP/1.0\r\nconnection: keep-alive\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (KEY.encode(), len(BODY), BODY)
    )
    assert (await client.receive())[0] == 429
    assert await asyncio.wait_for(client.reader.read(), 60) == b""


@pytest.mark.parametrize("limits", [{"limit_rpm": 1}])
async def test_who_has_used_up_a_limit_is_told_that(client: Client, peer: EnginePeer) -> None:
    client.send("/embed")
    peer.answer((await peer.received(1))[0])
    assert (await client.receive())[0] == 200
    client.send("/embed")
    status, headers, _ = await client.receive()
    assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")
    peer.pile_up(3000, FLOW)
    client.send("/embed")
    status, headers, _ = await client.receive()
    assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")


@pytest.mark.parametrize("limits", [{"limit_rpm": 1}])
async def test_who_has_used_up_a_limit_is_told_that_after_refusals_too(
    client: Client, peer: EnginePeer, address: tuple[str, int], again: list[bytes | None]
) -> None:
    peer.pile_up(3000, FLOW)
    for _ in range(2):
        client.send("/embed")
        assert "x-ratelimit-remaining-requests" not in (await client.receive())[1]
    peer.pile_up(0, FLOW)
    other = Client(*await asyncio.open_connection(*address))
    other.send("/embed")
    peer.answer((await peer.received(1))[0])
    assert (await other.receive())[0] == 200
    other.send("/embed")
    assert (await other.receive())[0] == 429
    other.writer.close()
    peer.pile_up(3000, FLOW)
    client.send("/embed")
    status, headers, _ = await client.receive()
    assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")
    assert [answer is not None for answer in again] == [True, False]


@pytest.mark.parametrize("limits", [{"limit_rpm": 2}])
async def test_what_is_refused_once_its_texts_are_read_costs_nothing(
    client: Client, peer: EnginePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Tokenizer.encode

    async def while_others_come(tokenizer: Tokenizer, texts: Sequence[str], **options: Any) -> Tokens:
        peer.pile_up(3000, FLOW)
        return await encode(tokenizer, texts, **options)

    with monkeypatch.context() as changed:
        changed.setattr(Tokenizer, "encode", while_others_come)
        client.send("/embed")
        assert (await client.receive())[0] == 429
    peer.pile_up(0, FLOW)
    client.send("/embed")
    peer.answer((await peer.received(1))[0])
    status, headers, _ = await client.receive()
    assert (status, headers["x-ratelimit-remaining-requests"]) == (200, "1")


def test_refusals_are_counted_and_have_their_line(tmp_path: Path) -> None:
    noted: list[tuple[Scope, Facts]] = []

    class Notes(RequestLog, RequestMetrics):
        def __init__(self) -> None:
            """Neither's."""

        def note(self, scope: Scope, facts: Facts) -> None:
            noted.append((scope, facts))

    backlog = Backlog.private()
    backlog.rate = 1
    part = backlog.part(Priority.INTERACTIVE)
    part[TOTAL], part[ACTIVE], part[FIRST + FLOW] = 2, 1, 2
    gate, notes = Gate(1.0, lambda: backlog), Notes()
    limiter = Limiter(EmbeddedWindows(tmp_path), None)
    admission, keys = Admission(limiter, small_bounds(tmp_path)), KeyRing(KEY, tmp_path / "keys.json")
    turnstile = Turnstile(gate, admission, keys, {"/embed": tei}, notes, notes, 30_000)
    answer = turnstile.refusal(b"/embed", [(b"x-api-key", KEY.encode())], [])
    assert answer is not None
    (scope, facts), counted = noted
    assert counted == (scope, facts)
    assert (facts.status, facts.error) == (429, "OVERLOADED")
    assert scope[SCOPE_KEY].name == OWN_NAME
    assert scope["correlation_id"].encode() in answer
