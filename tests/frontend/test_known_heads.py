"""However a connection's bytes are cut, each request gets what it would get if no head were known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from frontend.admission import Admission
from frontend.dialects import tei
from frontend.drain import Connections
from frontend.gate import Gate
from frontend.heads import Heads
from frontend.keys import KeyRing, digest_of
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.limiter import Limiter
from frontend.metrics import RequestMetrics
from frontend.protocol import TURNSTILE, Protocol
from frontend.request_log import Facts, RequestLog
from frontend.turnstile import Turnstile
from ipc.backlog import ACTIVE, FIRST, TOTAL, Backlog
from ipc.priority import Priority
from tests.frontend.served import KEY, small_bounds


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    """A request that is refused; `length` where it is not that of `body`."""
    length = len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(),
        KEY.encode(),
        length,
        body,
    )


KNOWN = post("/embed", b"abc")
INFO = b"GET /info HTTP/1.1\r\n\r\n"
# The head of a request whose body is what comes next, if that is KNOWN.
OUTER = post("/predict", b"", len(KNOWN))
# What comes next is the value of its header.
BEGUN = b"POST /predict HTTP/1.1\r\nx-a: "
PIECES = [
    KNOWN,
    post("/predict", b"abc"),
    post("/embed", b"\r\n\r\n"),
    OUTER,
    BEGUN,
    INFO,
    b"\r\n",
    b"POST /embed HTTP/1.1\r\nauthorization: Bearer %b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    % KEY.encode(),
]


class Notes(RequestLog, RequestMetrics):
    """What was refused."""

    def __init__(self, said: list[tuple[str, str]]) -> None:
        self._said = said

    def note(self, scope: Scope, facts: Facts) -> None:
        """Keep the path; the log has it, and the metrics."""
        self._said.append((str(facts.status), scope["path"]))


class Transport:
    """Keeps nothing."""

    def __init__(self) -> None:
        self.is_closed = False

    def write(self, data: bytes) -> None:
        """Nothing is written to what is closed."""
        assert not self.is_closed

    def writelines(self, pieces: Any) -> None:
        assert not self.is_closed

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """There is only what was read already."""

    def resume_reading(self) -> None:
        """As above."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


class Blind(Heads[Any]):
    """Knows no head."""

    def find(self, whole: bytes) -> None:
        """Nothing."""


class Client:
    """A connection of its own; `said` is status and path of each answer. `knows` is whether heads are kept."""

    def __init__(self, folder: Path, *, knows: bool) -> None:
        self.said: list[tuple[str, str]] = []
        config = uvicorn.Config(
            self._app, http=Protocol, ws="none", lifespan="off", log_config=None, interface="asgi3", proxy_headers=False
        )
        config.load()
        self._tasks = (state := Connections(1)).tasks
        self.transport = Transport()
        self.connection = Protocol(config, state, {TURNSTILE: _turnstile(self.said, folder, knows=knows)})
        self.connection.connection_made(cast(asyncio.Transport, self.transport))

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.said.append(("200", scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(self, *reads: bytes) -> None:
        """Have the server read them one by one, and answer what it can."""
        for read in reads:
            if not self.transport.is_closed:
                self.connection.data_received(read)
            while self._tasks:
                await asyncio.wait(set(self._tasks))


async def answers(reads: list[bytes], folder: Path, *, knows: bool) -> tuple[list[tuple[str, str]], bool]:
    """Status and path of each answer to what a connection brings, in these reads, and whether it was ended."""
    client = Client(folder, knows=knows)
    await client.send(*reads)
    client.connection.connection_lost(None)
    return client.said, client.transport.is_closed


def _turnstile(said: list[tuple[str, str]], folder: Path, *, knows: bool) -> Turnstile:
    backlog = Backlog.private()
    backlog.rate = 1
    part = backlog.part(Priority.INTERACTIVE)
    part[TOTAL], part[ACTIVE], part[FIRST + digest_of(KEY.encode())[0]] = 100, 1, 100
    limiter = Limiter(EmbeddedWindows(folder), None)
    admission, keys = Admission(limiter, small_bounds(folder)), KeyRing(KEY, folder / "keys.json")
    dialects = {"/embed": tei, "/predict": tei}
    made = Turnstile(Gate(1.0, lambda: backlog), admission, keys, dialects, Notes(said), Notes([]), 30_000)
    if not knows:
        made._heads = Blind()
    return made


def cut(stream: bytes, places: set[int]) -> list[bytes]:
    """The stream in pieces that end at these places."""
    ends = sorted({place for place in places if 0 < place < len(stream)} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Requests, cut where they end or anywhere."""
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8))
    ends, at = [], 0
    for piece in pieces:
        at += len(piece)
        ends.append(at)
    places = {place for place in ends if draw(st.booleans())} | draw(st.sets(st.integers(1, at), max_size=3))
    return cut(b"".join(pieces), places)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known")


@settings(max_examples=300, deadline=None)
@given(streams())
@example([KNOWN, OUTER, KNOWN, INFO])
@example([KNOWN + BEGUN, KNOWN, INFO])
@example([KNOWN, BEGUN, KNOWN, INFO])
@example([KNOWN, b"\r\n", KNOWN, INFO])
@example([KNOWN, KNOWN[:-1], KNOWN[-1:], INFO])
def test_answers_do_not_depend_on_what_is_known(folder: Path, reads: list[bytes]) -> None:
    known, read = (asyncio.run(answers([KNOWN, *reads], folder, knows=knows)) for knows in (True, False))
    assert known == read


def test_the_second_of_two_requests_does_not_pass_for_the_first(folder: Path) -> None:
    # Its length is that of all that was read after the first's head.
    end = KNOWN.index(b"\r\n\r\n") + 4
    length = next(n for n in range(1000) if len(KNOWN + post("/predict", b"", n)) - end == n)
    second = post("/predict", b"", length)
    reads = [KNOWN, KNOWN + second, bytes(length), KNOWN + second, bytes(length), INFO]
    known, read = (asyncio.run(answers(reads, folder, knows=knows)) for knows in (True, False))
    assert known == read
    assert [path for _, path in read[0]] == ["/embed", "/embed", "/predict", "/embed", "/predict", "/info"]


def test_a_known_head_is_not_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, begin = [], Protocol.on_message_begin

    def noted(connection: Protocol) -> None:
        begun.append(connection)
        begin(connection)

    monkeypatch.setattr(Protocol, "on_message_begin", noted)
    said, _ = asyncio.run(answers([KNOWN] * 3, folder, knows=True))
    assert said == [("429", "/embed")] * 3
    assert len(begun) == 1


def test_a_server_that_leaves_makes_an_answer_the_last(folder: Path) -> None:
    async def leave() -> None:
        client = Client(folder, knows=True)
        await client.send(KNOWN, KNOWN)
        client.connection.shutdown()
        await client.send(KNOWN)
        assert client.said == [("429", "/embed")] * 2 + [("200", "/embed")]
        assert client.transport.is_closed
        client.connection.connection_lost(None)

    asyncio.run(leave())
