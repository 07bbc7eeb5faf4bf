from __future__ import annotations

import asyncio

import httpx
import pytest

from frontend import health
from ipc.bundle import Bundle
from ipc.messages import Status
from tests.frontend.peer import EnginePeer

pytestmark = pytest.mark.anyio

NO_KEY = {"authorization": ""}


@pytest.fixture
def always_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LATELY_NS", 0)


async def test_health_needs_neither_key_nor_engine(asked: httpx.AsyncClient) -> None:
    response = await asked.get("/health", headers=NO_KEY)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_names_the_model(http: httpx.AsyncClient, bundle: Bundle) -> None:
    response = await http.get("/ready", headers=NO_KEY)
    assert (response.status_code, response.json()) == (200, {"status": "ready", "model": bundle.id})


async def test_ready_sends_a_text_all_the_way(asked: httpx.AsyncClient, peer: EnginePeer, always_probe: None) -> None:
    for count in (1, 2):
        answer = asyncio.ensure_future(asked.get("/ready"))
        peer.answer((await peer.received(count))[-1])
        assert (await answer).status_code == 200
    assert not peer.leased


async def test_ready_does_not_probe_what_was_lately_seen_to_work(
    asked: httpx.AsyncClient, peer: EnginePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LATELY_NS", 10**15)
    answer = asyncio.ensure_future(asked.post("/embed", json={"inputs": "a"}))
    peer.answer(*await peer.received(1))
    assert (await answer).status_code == 200
    for _ in range(3):
        assert (await asked.get("/ready")).status_code == 200
    assert len(peer.texts) == 1


async def test_not_ready_without_an_engine(asked: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.02)
    response = await asked.get("/ready", headers=NO_KEY)
    assert response.status_code == 503
    assert response.json()["status"] == "not ready"
    assert "engine" in response.json()["reason"]


@pytest.mark.parametrize(("status", "why"), [(Status.FAILED, "could not be run"), (Status.REFUSED, "queue is full")])
async def test_not_ready_with_an_engine_that_fails(
    asked: httpx.AsyncClient, peer: EnginePeer, always_probe: None, status: Status, why: str
) -> None:
    answer = asyncio.ensure_future(asked.get("/ready"))
    peer.answer(*await peer.received(1), status=status)
    response = await answer
    assert response.status_code == 503
    assert why in response.json()["reason"]


async def test_not_ready_with_an_engine_that_hangs(
    asked: httpx.AsyncClient, peer: EnginePeer, always_probe: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asyncio.ensure_future(asked.get("/ready"))
    peer.answer(*await peer.received(1))
    assert (await answer).status_code == 200
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.02)
    response = await asked.get("/ready")
    assert response.status_code == 503
    assert "deadline" in response.json()["reason"]
