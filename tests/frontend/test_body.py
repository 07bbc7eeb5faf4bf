from __future__ import annotations

from collections.abc import Iterable

import httpx
import msgspec
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from frontend.body import read_json
from ipc.errors import BodyTooLarge, InvalidRequest, UnsupportedMedia
from tests.frontend.served import post_scope

pytestmark = pytest.mark.anyio

MOST = 100


class Body(msgspec.Struct):
    text: str
    number: int | None = None
    inner: list[dict[str, int]] = []


decoder = msgspec.json.Decoder(Body)


class Stream:
    """A body in chunks, which counts how many were asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = iter(chunks)
        self.taken = 0

    async def receive(self) -> Message:
        chunk = next(self.chunks, None)
        self.taken += 1
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}


async def read(stream: Stream, headers: dict[str, str] | None = None) -> Body:
    return await read_json(Request(post_scope(headers=headers), stream.receive), decoder, MOST)


@pytest.mark.parametrize(
    "chunks",
    [[b'{"text": "a"}'], [b'{"te', b"", b'xt": ', b'"a"}'], [b'\n {"text": "a", "unknown": [{}]} ']],
    ids=["whole", "chunked", "with more"],
)
async def test_a_body_is_read_whole(chunks: list[bytes]) -> None:
    assert (await read(Stream(chunks))).text == "a"


@pytest.mark.parametrize("size", [MOST - 1, MOST])
async def test_as_large_as_allowed(size: int) -> None:
    body = b'{"text": "a"}'.ljust(size)
    assert (await read(Stream([body]), {"content-length": str(size)})).text == "a"


@pytest.mark.parametrize("declared", [MOST + 1, 10**17, 10**30])
async def test_a_declared_length_is_refused_unread(declared: int) -> None:
    stream = Stream([b"x" * 10])
    with pytest.raises(BodyTooLarge, match=str(MOST)):
        await read(stream, {"content-length": str(declared)})
    assert stream.taken == 0


async def test_a_stream_without_end_is_stopped() -> None:
    stream = Stream(b"x" * 30 for _ in iter(int, 1))
    with pytest.raises(BodyTooLarge):
        await read(stream)
    assert stream.taken == 4


async def test_a_lie_about_the_length_is_no_way_in() -> None:
    stream = Stream([b"x" * 60, b"x" * 60, b"x"])
    with pytest.raises(BodyTooLarge):
        await read(stream, {"content-length": "60"})
    assert stream.taken == 2


async def test_a_client_that_leaves_is_no_error_of_the_body() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await read_json(Request(post_scope(), receive), decoder, MOST)


@pytest.mark.parametrize(
    "media",
    ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", "application/vnd.api+json", None],
)
async def test_media_that_are_json(media: str | None) -> None:
    scope = post_scope(headers={"content-type": media or ""})
    if media is None:
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"]
    request = Request(scope, Stream([b'{"text": "a"}']).receive)
    assert (await read_json(request, decoder, MOST)).text == "a"


@pytest.mark.parametrize(
    "headers",
    [{"content-type": media} for media in ("text/plain", "application/x-www-form-urlencoded", "json", "", "x" * 9_000)]
    + [{"content-encoding": encoding} for encoding in ("gzip", "br", "deflate, gzip")],
    ids=lambda headers: str(headers)[:40],
)
async def test_media_that_are_not(headers: dict[str, str]) -> None:
    stream = Stream([b'{"text": "a"}'])
    with pytest.raises(UnsupportedMedia) as caught:
        await read(stream, headers)
    assert len(caught.value.message) < 300
    assert stream.taken == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"text": "a"} trailing',
        b'{"text": "a"}{"text": "b"}',
        b"{'text': 'a'}",
        b'{"text": NaN}',
        b'{"text": "a", "number": NaN}',
        b'{"text": "\xff"}',
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\n"}',
        b"\xef\xbb\xbf{}",
        b"[" * MOST,
        b'{"unknown":' + b"[" * 80,
        b"\x00",
    ],
    ids=lambda body: repr(body)[:30],
)
async def test_what_is_no_json_is_told(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"not valid JSON|characters|object"):
        await read(Stream([body]))


async def test_nesting_without_end_is_told() -> None:
    deep = b'{"unknown":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        await read_json(Request(post_scope(), Stream([deep]).receive), decoder, len(deep))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{}", "text", "Object missing required field `text`."),
        (b"[]", None, "Expected `object`, got `array`."),
        (b'{"text": 5}', "text", "`text`: expected `str`, got `int`."),
        (b'{"text": "a", "number": "5"}', "number", "`number`: expected `int | null`, got `str`."),
        (b'{"text": "a", "inner": [{}, {"x": 1.5}]}', "inner", "`inner[1][...]`: expected `int`, got `float`."),
    ],
)
async def test_a_field_at_fault_is_named(body: bytes, param: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read(Stream([body]))
    assert (caught.value.param, caught.value.message) == (param, message)


@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 400), ("/embed", 422), ("/v1/embed", 422)], ids=str)
async def test_every_dialect_has_a_status_for_each(http: httpx.AsyncClient, path: str, status: int) -> None:
    async def post(content: bytes, media: str = "application/json") -> int:
        return (await http.post(path, content=content, headers={"content-type": media})).status_code

    assert await post(b"{") == status
    assert await post(b'"\xff"') == status
    assert await post(b"{}", "text/plain") == 415
    assert await post(b"x" * 100_001) == 413
