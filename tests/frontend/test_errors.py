from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from frontend.app import DIALECTS
from frontend.correlation import Correlation
from frontend.dialects import original
from frontend.errors import Errors
from frontend.request_log import RequestLog
from frontend.responses import STATUS
from ipc.errors import InputTooLong, MethodNotAllowed, RequestError
from tests.frontend.served import Wire, new_metrics, post_scope

pytestmark = pytest.mark.anyio

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PATHS = {"/v1/embeddings": "openai", "/embed": "tei", "/v1/embed": "original", "/nowhere": "original"}


def make(kind: type[RequestError]) -> RequestError:
    return MethodNotAllowed("what to do", "GET") if kind is MethodNotAllowed else kind("what to do")


async def answer(error: BaseException, path: str, *, begins: bool = False) -> httpx.Response | None:
    """What the client gets when the application raises `error`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send(START)
        raise error

    wrapped = Correlation(Errors(app, dialects=DIALECTS, default=original), RequestLog(), new_metrics())
    sent = await Wire().ask(wrapped, post_scope(path, {"x-request-id": "mine"}))
    if not sent:
        return None
    start, body = sent
    return httpx.Response(start["status"], headers=start["headers"], content=body["body"])


@pytest.mark.parametrize("kind", STATUS)
@pytest.mark.parametrize("path", PATHS)
async def test_every_error_in_every_dialect(kind: type[RequestError], path: str) -> None:
    response = await answer(make(kind), path)
    assert response is not None
    dialect = PATHS[path]
    is_input = kind.__name__ in {"InvalidRequest", "InputTooLong"}
    assert response.status_code == (400 if is_input and dialect == "openai" else STATUS[kind])
    body = response.json()
    match dialect:
        case "openai":
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert body["error"]["message"] == "what to do"
        case "tei":
            assert set(body) == {"error", "error_type"}
            assert body["error"] == "what to do"
        case _:
            assert set(body) == {"error", "detail", "code", "correlation_id"}
            assert (body["error"], body["detail"], body["code"]) == (kind.__name__, "what to do", kind.code)
            assert body["correlation_id"] == "mine"


@pytest.mark.parametrize("path", PATHS)
async def test_a_bug_is_500_and_tells_nothing_but_the_log(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = await answer(ZeroDivisionError("a secret"), path)
    assert response is not None
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "a secret" in caplog.text, "the traceback"


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_that_a_stop_cuts_short_is_told_to_come_again(path: str) -> None:
    response = await answer(asyncio.CancelledError(), path)
    assert response is not None
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "stopping" in response.text


async def test_an_answer_that_has_begun_is_not_answered_again(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        await answer(ZeroDivisionError(), "/embed", begins=True)


async def test_nobody_is_answered_who_has_left() -> None:
    assert await answer(ClientDisconnect(), "/embed") is None


async def test_a_field_is_named_where_the_dialect_can() -> None:
    response = await answer(InputTooLong("m", param="input"), "/v1/embeddings")
    assert response is not None
    assert response.json()["error"]["param"] == "input"
