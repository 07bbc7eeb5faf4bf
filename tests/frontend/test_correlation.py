from __future__ import annotations

import re

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.correlation import Correlation
from frontend.request_log import RequestLog
from ipc.log import correlation_id
from tests.frontend.served import Wire, new_metrics, post_scope

pytestmark = pytest.mark.anyio

MADE = re.compile(r"[0-9a-f]{32}")


async def ask(headers: dict[str, str]) -> tuple[str, str | None, str]:
    """The id as the application, the log and the client get it."""
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend((scope["correlation_id"], correlation_id.get()))
        await Response("ok", headers={"x-other": "kept"})(scope, receive, send)

    start, _ = await Wire().ask(Correlation(app, RequestLog(), new_metrics()), post_scope(headers=headers))
    sent = dict(start["headers"])
    assert sent[b"x-other"] == b"kept"
    assert seen[0] is not None
    return seen[0], seen[1], sent[b"x-correlation-id"].decode()


@pytest.mark.parametrize("name", ["x-correlation-id", "x-request-id"])
@pytest.mark.parametrize("given", ["a", "0123-abc_DEF.:/+=@", "x" * 128])
async def test_a_sane_id_is_taken(name: str, given: str) -> None:
    assert await ask({name: given}) == (given, given, given)


@pytest.mark.parametrize(
    "given", ["", " ", "x" * 129, "a b", "a\nb", 'a"b', "{}", "ü", "a\x00", "<b>", "a;b", "a\\b", "a\n"], ids=repr
)
async def test_another_is_replaced(given: str) -> None:
    in_scope, in_log, sent = await ask({"x-correlation-id": given})
    assert MADE.fullmatch(sent)
    assert in_scope == in_log == sent


async def test_a_made_id_is_new_each_time() -> None:
    assert (await ask({}))[2] != (await ask({}))[2]


async def test_the_first_sane_one_counts() -> None:
    assert (await ask({"x-correlation-id": "not sane", "x-request-id": "sane"}))[2] == "sane"
    assert (await ask({"x-request-id": "one", "x-correlation-id": "two"}))[2] == "one"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/embed", 422),
        ("POST", "/nowhere", 404),
        ("DELETE", "/embed", 405),
        ("POST", "/v1/embed", 422),
    ],
)
async def test_every_answer_has_it(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    response = await http.request(method, path, json={}, headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers.get_list("x-correlation-id")) == (status, ["mine"])
