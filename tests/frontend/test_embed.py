from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from frontend.app import create_app
from frontend.keys import digest_of
from frontend.protocol import CONNECTION_LOST
from ipc.backlog import FLOWS
from ipc.bundle import Bundle
from ipc.messages import Status
from ipc.priority import Priority
from tests.frontend.peer import COMPUTE_NS, WAIT_NS, EnginePeer, eventually
from tests.frontend.served import KEY, Wire, post_scope, serving, small_bounds, whole_body

pytestmark = pytest.mark.anyio

BODY = {"inputs": ["one", "two"]}
FLOW = digest_of(KEY.encode())[0]
TIMES = ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time")


def ask(
    asked: httpx.AsyncClient, headers: dict[str, str] | None = None, path: str = "/embed"
) -> asyncio.Task[httpx.Response]:
    body = {"/embed": BODY, "/v1/embeddings": {"input": ["one", "two"]}, "/v1/embed": {"input_text": "one"}}[path]
    return asyncio.ensure_future(asked.post(path, json=body, headers=headers))


async def test_times_come_from_whoever_measured_them(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    answer = ask(asked)
    peer.answer(*await peer.received(2))
    headers = (await answer).headers
    total, tokenize, queue, inference = (float(headers[name]) for name in TIMES)
    assert (queue, inference) == (WAIT_NS / 1e6, COMPUTE_NS / 1e6)
    assert 0 < tokenize < total
    assert "x-truncated-texts" not in headers


@pytest.mark.parametrize(
    ("given", "priority"),
    [(None, Priority.INTERACTIVE), ("interactive", Priority.INTERACTIVE), ("bulk", Priority.BULK), ("BULK", 1)],
)
async def test_priority(asked: httpx.AsyncClient, peer: EnginePeer, given: str | None, priority: int) -> None:
    answer = ask(asked, {"x-priority": given} if given else None)
    texts = await peer.received(2)
    assert {text.priority for text in texts} == {priority}
    peer.answer(*texts)
    assert (await answer).status_code == 200


@pytest.mark.parametrize(
    ("given", "most_ms"), [(None, 30_000), ("20000", 20_000), ("30001", 30_000), ("999999999", 30_000)]
)
async def test_the_deadline_is_the_lesser_of_asked_and_set(
    asked: httpx.AsyncClient, peer: EnginePeer, given: str | None, most_ms: int
) -> None:
    before = time.monotonic_ns()
    answer = ask(asked, {"x-request-timeout-ms": given} if given else None)
    texts = await peer.received(2)
    assert before <= texts[0].deadline - most_ms * 1_000_000 <= time.monotonic_ns()
    peer.answer(*texts)
    assert (await answer).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-request-timeout-ms", value) for value in ("", "0", "-1", "1.5", "soon", "1" * 10, "1e3", "²", "٣", "+5")]
    + [("x-priority", value) for value in ("", "urgent", "bulk,bulk")],
)
async def test_bad_headers_are_told(http: httpx.AsyncClient, name: str, value: str) -> None:
    response = await http.post("/embed", json=BODY, headers=[(name.encode(), value.encode())])
    assert response.status_code == 422
    assert name in response.json()["error"].lower()


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v1/embed"])
@pytest.mark.parametrize(
    ("status", "code"), [(Status.REFUSED, 429), (Status.EXPIRED, 504), (Status.FAILED, 500), (Status.INVALID, 500)]
)
async def test_what_the_engine_says_becomes_a_status(
    asked: httpx.AsyncClient, peer: EnginePeer, path: str, status: Status, code: int
) -> None:
    answer = ask(asked, path=path)
    peer.answer((await peer.received(1))[0], status=status)
    response = await answer
    assert response.status_code == code
    assert ("retry-after" in response.headers) == (code == 429)
    assert ("retry-after-ms" in response.headers) == (code == 429)


async def test_no_engine_is_503_and_when_to_come_back(asked: httpx.AsyncClient) -> None:
    response = await ask(asked, {"x-request-timeout-ms": "20"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_a_full_front_end_is_429(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    fill = [asyncio.ensure_future(asked.post("/embed", json={"inputs": ["x"] * 50})) for _ in range(4)]
    texts = await peer.received(200)
    response = await ask(asked)
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    for begin in range(0, 200, 50):
        peer.answer(*texts[begin : begin + 50])
        await eventually(lambda: not peer.leased)
    assert [answer.status_code for answer in await asyncio.gather(*fill)] == [200] * 4


async def test_what_would_wait_too_long_is_429_at_once(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    await peer.joined()
    await answered(asked, peer)
    peer.pile_up(3000, FLOW)
    response = await ask(asked)
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "2000")
    assert len(peer.texts) == 2, "none of its texts was sent"
    peer.pile_up(0, FLOW)
    await answered(asked, peer)


async def test_neither_what_is_interactive_waits_for_bulk_nor_another_key(
    asked: httpx.AsyncClient, peer: EnginePeer
) -> None:
    await peer.joined()
    await answered(asked, peer)
    peer.pile_up(3000, FLOW, Priority.BULK)
    assert (await ask(asked, {"x-priority": "bulk"})).status_code == 429
    await answered(asked, peer)
    peer.pile_up(6000, (FLOW + 1) % FLOWS)
    await answered(asked, peer)


async def test_a_near_deadline_leaves_less_time_to_wait(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    await peer.joined()
    await answered(asked, peer)
    peer.pile_up(400, FLOW)
    await answered(asked, peer)
    assert (await ask(asked, {"x-request-timeout-ms": "500"})).status_code == 429


async def test_texts_go_with_their_keys_flow(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    await answered(asked, peer)
    assert {text.flow for text in peer.texts} == {FLOW}


async def test_what_cannot_be_done_by_its_deadline_is_504_at_once(asked: httpx.AsyncClient, peer: EnginePeer) -> None:
    await peer.joined()
    await answered(asked, peer)
    peer.pile_up(0, FLOW)
    peer.slab.backlog.rate = 1
    response = await ask(asked, {"x-request-timeout-ms": "1000"})
    assert response.status_code == 504
    assert "past its deadline" in response.json()["error"]
    assert len(peer.texts) == 2


async def answered(asked: httpx.AsyncClient, peer: EnginePeer, headers: dict[str, str] | None = None) -> None:
    """A request goes through."""
    before = len(peer.texts)
    answer = ask(asked, headers)
    peer.answer(*(await peer.received(before + 2))[before:])
    assert (await answer).status_code == 200


# the client hangs up


async def test_a_disconnect_takes_the_texts_back(run_dir: Path, bundle: Bundle, peer: EnginePeer) -> None:
    app = create_app(small_bounds(run_dir), bundle, KEY)
    async with serving(app):
        wire = Wire(whole_body(b'{"inputs": ["one", "two"]}'))
        lost = asyncio.get_running_loop().create_future()
        scope = post_scope("/embed")
        scope["extensions"] = {CONNECTION_LOST: {"future": lost}}
        asking = asyncio.ensure_future(wire.ask(app, scope))
        texts = list(await peer.received(2))
        lost.set_result(None)
        assert await asking == [], "nobody listens any more"
        await eventually(lambda: peer.cancelled == [text.sequence for text in texts])
        peer.answer(*texts)
        await eventually(lambda: not peer.leased)


@pytest.mark.parametrize("first", [b"", b'{"inp'])
async def test_a_disconnect_within_the_body_asks_nothing(
    run_dir: Path, bundle: Bundle, peer: EnginePeer, first: bytes
) -> None:
    app = create_app(small_bounds(run_dir), bundle, KEY)
    async with serving(app):
        part: Message = {"type": "http.request", "body": first, "more_body": True}
        wire = Wire(part)
        wire.hang_up.set()
        assert await wire.ask(app, post_scope("/embed")) == []
    assert not peer.texts


async def test_a_request_that_is_cancelled_takes_the_texts_back(
    run_dir: Path, bundle: Bundle, peer: EnginePeer
) -> None:
    app = create_app(small_bounds(run_dir), bundle, KEY)
    async with serving(app):
        wire = Wire(whole_body(b'{"inputs": "one"}'))
        asking = asyncio.ensure_future(wire.ask(app, post_scope("/embed")))
        (text,) = await peer.received(1)
        asking.cancel()
        assert (await asking)[0]["status"] == 503
        await eventually(lambda: peer.cancelled == [text.sequence])
