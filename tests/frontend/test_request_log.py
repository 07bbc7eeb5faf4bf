from __future__ import annotations

import json
import logging
import select
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from frontend import request_log
from frontend.auth import SCOPE_KEY
from frontend.correlation import Correlation
from frontend.keys import Key
from frontend.request_log import FACTS, MOST_PATH, NAME, RequestLog
from tests.frontend.peer import eventually
from tests.frontend.served import Wire, new_metrics, post_scope

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_info() -> Iterator[None]:
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)


def lines(text: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [record for record in records if record["logger"] == NAME]


async def one_line(
    capsys: pytest.CaptureFixture[str], path: str = "/embed", status: int | None = 201
) -> dict[str, Any]:
    """What is written of one request, to an application that knows everything of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        facts = scope[FACTS]
        scope[SCOPE_KEY] = Key("one", "0" * 64, "")
        facts.texts, facts.tokens, facts.cache = 2, 30, "miss"
        facts.wait_ns, facts.compute_ns = 1_234_567, 2_000_000
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})

    log = RequestLog()
    await Wire().ask(Correlation(app, log, new_metrics()), post_scope(path, {"x-request-id": "mine"}))
    assert capsys.readouterr().err == "", "lines are written together, later"
    log.close()
    (line,) = lines(capsys.readouterr().err)
    return line


async def test_a_line_has_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    line = await one_line(capsys)
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line.pop("total_ms") > 0
    assert line == {
        "level": "INFO",
        "logger": NAME,
        "message": "request",
        "process": "frontend",
        "correlation_id": "mine",
        "method": "POST",
        "path": "/embed",
        "status": 201,
        "key": "one",
        "texts": 2,
        "tokens": 30,
        "queue_ms": 1.235,
        "inference_ms": 2.0,
        "cache": "miss",
        "error": None,
    }


async def test_a_client_that_left_has_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert (await one_line(capsys, status=None))["status"] == 499


@pytest.mark.parametrize("path", ['/"quoted"\n', "/" + "x" * 10_000, "/\x00"], ids=["quotes", "long", "nul"])
async def test_any_path_makes_one_valid_line(capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert len((await one_line(capsys, path))["path"]) <= MOST_PATH + 10


async def test_lines_are_written_by_themselves_soon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "FLUSH_SECONDS", 0.001)
    log = RequestLog()
    written = ""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def has_come() -> bool:
        nonlocal written
        written += capsys.readouterr().err
        return len(lines(written)) == 2

    for _ in range(2):
        await Wire().ask(Correlation(app, log, new_metrics()), post_scope())
    await eventually(has_come)


async def test_no_write_is_more_than_a_pipe_takes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(sys.stderr, "write", writes.append)
    log = RequestLog()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for number in range(50):
        await Wire().ask(Correlation(app, log, new_metrics()), post_scope("/" + "é" * number))
    log.close()
    assert all(0 < len(some.encode()) <= select.PIPE_BUF and some.endswith("\n") for some in writes)
    assert len(writes) < 10, "lines go together"
    assert len(lines("".join(writes))) == 50


async def test_above_info_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger(NAME).setLevel(logging.WARNING)
    log = RequestLog()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await Wire().ask(Correlation(app, log, new_metrics()), post_scope())
    log.close()
    assert lines(capsys.readouterr().err) == []
