"""Whatever is sent gets a defined answer in its dialect's own shape, never a 5xx, and the next request works."""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from perf.stack import KEY, Stack
from tests.system.wire import AUTHORIZED, Answer, Connection, ConnectionLost

pytestmark = pytest.mark.system

# No measure of speed: far above what a refusal takes on a busy machine, far below any timeout of the server's.
QUICK_SECONDS = 5


@dataclass(frozen=True)
class Dialect:
    """A route, the name of its text field, the status of invalid input, and how its errors read."""

    path: str
    field: str
    invalid: int
    message: Callable[[Answer], str]


def openai_message(answer: Answer) -> str:
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["code"], str)
    return str(error["message"])


def tei_message(answer: Answer) -> str:
    assert answer.json().keys() == {"error", "error_type"}
    if answer.status in {413, 422}:
        assert answer.json()["error_type"] == "Validation"
    return str(answer.json()["error"])


def original_message(answer: Answer) -> str:
    assert answer.json().keys() == {"error", "detail", "code", "correlation_id"}
    assert answer.json()["correlation_id"] == answer.headers["x-correlation-id"]
    return str(answer.json()["detail"])


OPENAI = Dialect("/v1/embeddings", "input", 400, openai_message)
TEI = Dialect("/embed", "inputs", 422, tei_message)
ORIGINAL = Dialect("/v1/embed", "input_text", 422, original_message)
DIALECTS = {"openai": OPENAI, "tei": TEI, "original": ORIGINAL}
INVALID = 0
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """A body (with FIELD for the dialect's text field) and headers; INVALID is the dialect's own status for it."""

    body: bytes
    says: str
    status: int = INVALID
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"

    def sent_to(self, dialect: Dialect) -> bytes:
        return self.body.replace(b"FIELD", dialect.field.encode())


def value(fragment: bytes, says: str) -> Case:
    """The text field has this JSON value."""
    return Case(b'{"FIELD": ' + fragment + b"}", says)


def header(name: str, given: str, says: str) -> Case:
    return Case(b'{"FIELD": "text"}', says, headers={name: given})


TIMEOUT_SAYS = "X-Request-Timeout-Ms must be a whole number of milliseconds"
FINE = Case(b'{"FIELD": "text"}', "", 200)

EVERYWHERE = {
    "empty body": Case(b"", "not valid JSON"),
    "cut off": Case(b'{"FIELD": "te', "not valid JSON"),
    "not JSON": Case(b"FIELD=text", "not valid JSON"),
    "trailing garbage": Case(b'{"FIELD": "text"} x', "not valid JSON"),
    "single quotes": Case(b"{'FIELD': 'text'}", "not valid JSON"),
    "NaN": value(b"NaN", "not valid JSON"),
    "Infinity": value(b"-Infinity", "not valid JSON"),
    "bad UTF-8": value(b'"a\xff\xfeb"', "not valid JSON"),
    "bad UTF-8 outside a string": Case(b'{"FIELD": \xff}', "not valid JSON"),
    "truncated UTF-8": value(b'"\xe2\x82"', "not valid JSON"),
    "UTF-16": Case('{"FIELD": "text"}'.encode("utf-16"), "not valid JSON"),
    "byte order mark": Case(b'\xef\xbb\xbf{"FIELD": "text"}', "not valid JSON"),
    "raw control character": value(b'"a\nb"', "not valid JSON"),
    "lone surrogate": value(rb'"a\ud800b"', "not valid JSON"),
    "surrogates in the wrong order": value(rb'"\udc00\ud800"', "not valid JSON"),
    "deep nesting": value(b"[" * 100_000, "nested too deeply|not valid JSON|expected"),
    "deep nesting elsewhere": Case(
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "FIELD": "text"}', "nested too deeply"
    ),
    "a list": Case(b'["text"]', "[Ee]xpected `object`"),
    "a string": Case(b'"text"', "[Ee]xpected `object`"),
    "null body": Case(b"null", "[Ee]xpected `object`"),
    "no text field": Case(b'{"model": "any"}', "required field `(input|inputs|input_text)`"),
    "null text": value(b"null", "`(input|inputs|input_text)`: expected"),
    "a number": value(b"7", "`(input|inputs|input_text)`: expected"),
    "true": value(b"true", "`(input|inputs|input_text)`: expected"),
    "an object": value(b'{"text": "x"}', "`(input|inputs|input_text)`: expected"),
    "empty text": value(b'""', "is empty|1 to 1024"),
    "form": Case(b"FIELD=text", "Content-Type: application/json", 415, {"Content-Type": "text/plain"}),
    "gzip": Case(gzip.compress(b'{"FIELD": "text"}'), "compressed", 415, {"Content-Encoding": "gzip"}),
    "timeout of 0": header("X-Request-Timeout-Ms", "0", TIMEOUT_SAYS),
    "negative timeout": header("X-Request-Timeout-Ms", "-5", TIMEOUT_SAYS),
    "timeout with decimals": header("X-Request-Timeout-Ms", "1.5", TIMEOUT_SAYS),
    "timeout in words": header("X-Request-Timeout-Ms", "soon", TIMEOUT_SAYS),
    "empty timeout": header("X-Request-Timeout-Ms", "", TIMEOUT_SAYS),
    "superscript timeout": header("X-Request-Timeout-Ms", "\xb2", TIMEOUT_SAYS),
    "endless timeout": header("X-Request-Timeout-Ms", "9" * 40, TIMEOUT_SAYS),
    "unknown priority": header("X-Priority", "urgent", "X-Priority must be `interactive` or `bulk`"),
    "empty priority": header("X-Priority", "", "X-Priority must be"),
    "wrong method": Case(b"", "does not take GET: use POST", 405, method="GET"),
    "another wrong method": Case(b"", "does not take DELETE: use POST", 405, method="DELETE"),
}

LISTS = {
    "empty list": value(b"[]", "is empty: send at least one text"),
    "empty text in a list": value(b'["a", ""]', "Text 1 of `inputs?` is empty"),
    "null in a list": value(b'["a", null]', "expected"),
    "true in a list": value(b'["a", true]', "expected"),
    "nested texts": value(b'[["a"], ["b"]]', "expected|token ids"),
    "list of objects": value(b'[{"a": 1}]', "expected"),
    "10,000 texts": value(b"[" + b",".join([b'"a"'] * 10_000) + b"]", "has 10000 texts, the most is 2048"),
    "a megabyte": value(b'"' + b"word " * 200_000 + b'"', "1000000 characters, the most is 65536"),
    "over-long text": value(b'"' + b"word " * 300 + b'"', "302 tokens, the model takes 256"),
    "dimensions of 0": Case(b'{"FIELD": "a", "dimensions": 0}', "`dimensions`: expected `int` >= 1"),
    "negative dimensions": Case(b'{"FIELD": "a", "dimensions": -1}', "`dimensions`: expected `int` >= 1"),
    "too many dimensions": Case(b'{"FIELD": "a", "dimensions": 385}', "`dimensions` is 385, the model has 384"),
    "dimensions as text": Case(b'{"FIELD": "a", "dimensions": "64"}', "`dimensions`: expected `int"),
    "half a dimension": Case(b'{"FIELD": "a", "dimensions": 1.5}', "`dimensions`: expected `int"),
    "dimensions beyond 64 bits": Case(b'{"FIELD": "a", "dimensions": 1' + b"0" * 30 + b"}", "`dimensions`|number"),
    "truncate as text": Case(b'{"FIELD": "a", "truncate": "yes"}', "`truncate`: expected `bool"),
}

ONLY_OPENAI = {
    "token ids": value(b"[1, 2, 3]", "check_embedding_ctx_length=False"),
    "lists of token ids": value(b"[[1, 2], [3]]", "check_embedding_ctx_length=False"),
    "texts and token ids": value(b'["a", 7]', "check_embedding_ctx_length=False"),
    "unknown format": Case(b'{"input": "a", "encoding_format": "hex"}', "encoding_format"),
    "format as number": Case(b'{"input": "a", "encoding_format": 1}', "encoding_format"),
    "model as number": Case(b'{"input": "a", "model": 7}', "`model`: expected `str"),
}

ONLY_TEI = {
    "numbers": value(b"[1, 2]", "expected `str`"),
    "another truncation": Case(b'{"inputs": "a", "truncation_direction": "top"}', "must be `left` or `right`"),
    "no normalization": Case(b'{"inputs": "a", "normalize": false}', "`normalize` must be true or left out"),
    "a prompt": Case(b'{"inputs": "a", "prompt_name": "query"}', "the model has none"),
}

ONLY_ORIGINAL = {
    "white space": value(rb'" \t\n "', "must have 1 to 1024 characters, and has 0"),
    "1,025 characters": value(b'"' + b"a" * 1025 + b'"', "must have 1 to 1024 characters, and has 1025"),
    "texts": value(b'["a"]', "`input_text`: expected `str`"),
    "a megabyte": value(b'"' + b"a" * 1_000_000 + b'"', "and has 1000000"),
}

TABLE = [
    *((name, case, dialect) for dialect in DIALECTS for name, case in EVERYWHERE.items()),
    *((name, case, dialect) for dialect in ("openai", "tei") for name, case in LISTS.items()),
    *((name, case, "openai") for name, case in ONLY_OPENAI.items()),
    *((name, case, "tei") for name, case in ONLY_TEI.items()),
    *((name, case, "original") for name, case in ONLY_ORIGINAL.items()),
]

ACCEPTED = {
    "unknown fields": Case(b'{"FIELD": "text", "color": "blue", "user": 7, "x": [null]}', "", 200),
    "a field given twice": Case(b'{"FIELD": "first", "FIELD": "text"}', "", 200),
    "no Content-Type": FINE,
    "Content-Type with charset": Case(FINE.body, "", 200, {"Content-Type": "Application/JSON; charset=utf-8"}),
    "a JSON dialect": Case(FINE.body, "", 200, {"Content-Type": "application/vnd.api+json"}),
    "identity encoding": Case(FINE.body, "", 200, {"Content-Encoding": "identity"}),
    "white space around": Case(b' \r\n\t{ "FIELD" : "text" } \n', "", 200),
    "escapes": Case(rb'{"FIELD": "t\u0065xt"}', "", 200),
    "a pair of surrogates": Case(rb'{"FIELD": "\ud83d\ude42"}', "", 200),
    "a zero character": Case(rb'{"FIELD": "a\u0000b"}', "", 200),
    "least timeout that is enough": Case(FINE.body, "", 200, {"X-Request-Timeout-Ms": "20000"}),
    "timeout beyond the server's": Case(FINE.body, "", 200, {"X-Request-Timeout-Ms": "999999999"}),
    "bulk": Case(FINE.body, "", 200, {"X-Priority": "Bulk"}),
}
ACCEPTED_BY_OPENAI = {
    "no format": Case(b'{"input": "text", "encoding_format": null, "dimensions": null, "user": "u"}', "", 200),
}
ACCEPTED_BY_TEI = {
    "truncation to the left": Case(b'{"inputs": "text", "truncation_direction": "LEFT"}', "", 200),
    "truncation to the right": Case(b'{"inputs": "text", "truncation_direction": "Right"}', "", 200),
    "nothing but nulls": Case(b'{"inputs": "text", "truncate": null, "normalize": null, "prompt_name": null}', "", 200),
}
ACCEPTED_AS_LISTS = {
    "a megabyte, truncated": Case(b'{"FIELD": "' + b"word " * 200_000 + b'", "truncate": true}', "", 200),
    "as many texts as there may be": Case(b'{"FIELD": [' + b",".join([b'"a"'] * 2048) + b"]}", "", 200),
}
TABLE_OF_ACCEPTED = [
    *((name, case, dialect) for dialect in DIALECTS for name, case in ACCEPTED.items()),
    *((name, case, dialect) for dialect in ("openai", "tei") for name, case in ACCEPTED_AS_LISTS.items()),
    *((name, case, "openai") for name, case in ACCEPTED_BY_OPENAI.items()),
    *((name, case, "tei") for name, case in ACCEPTED_BY_TEI.items()),
]


async def works(connection: Connection) -> bool:
    answer = await connection.post("/embed", {"inputs": "still here?"})
    return answer.status == 200 and len(answer.json()[0]) == 384


def ask(server: Stack, send: Callable[[Connection], Awaitable[Answer]]) -> Answer:
    """The answer, which must come soon; the next request must work on the same connection and on a new one."""

    async def run() -> Answer:
        async with await Connection.open(server.port) as connection, await Connection.open(server.port) as another:
            began = time.monotonic()
            answer = await send(connection)
            assert time.monotonic() - began < QUICK_SECONDS
            assert await works(connection)
            assert await works(another)
        return answer

    return asyncio.run(run())


def ask_case(server: Stack, case: Case, dialect: Dialect) -> Answer:
    headers = AUTHORIZED | JSON_TYPE | case.headers
    return ask(server, lambda c: c.request(case.method, dialect.path, case.sent_to(dialect), headers))


def rows(table: list[tuple[str, Case, str]]) -> list[object]:
    return [pytest.param(case, DIALECTS[dialect], id=f"{dialect}: {name}") for name, case, dialect in table]


@pytest.mark.parametrize(("case", "dialect"), rows(TABLE))
def test_refused(server: Stack, case: Case, dialect: Dialect) -> None:
    answer = ask_case(server, case, dialect)
    assert answer.status == (case.status or dialect.invalid), answer.body
    assert answer.headers["content-type"] == "application/json"
    assert re.search(case.says, dialect.message(answer)), answer.body


@pytest.mark.parametrize(("case", "dialect"), rows(TABLE_OF_ACCEPTED))
def test_accepted(server: Stack, case: Case, dialect: Dialect) -> None:
    answer = ask_case(server, case, dialect)
    assert answer.status == 200, answer.body
    assert b"null" not in answer.body, "a vector holds something that is no number"


OTHER_ROUTES = {
    "/": (TEI, b"FIELD"),
    "/similarity": (TEI, b'{"source_sentence": FIELD, "sentences": [FIELD]}'),
    "/tokenize": (TEI, b"FIELD"),
    "/embeddings": (OPENAI, b"FIELD"),
}
REFUSED_VALUES = {
    "NaN": (b"NaN", "not valid JSON"),
    "bad UTF-8": (b'"a\xff\xfeb"', "not valid JSON"),
    "lone surrogate": (rb'"a\ud800b"', "not valid JSON"),
    "null": (b"null", "expected"),
    "a number": (b"7", "expected"),
    "nested lists": (b'[[["a"]]]', "expected"),
    "empty text": (b'""', "is empty"),
}


@pytest.mark.parametrize("path", OTHER_ROUTES)
@pytest.mark.parametrize(("given", "says"), REFUSED_VALUES.values(), ids=REFUSED_VALUES)
def test_other_routes_refuse_the_same(server: Stack, path: str, given: bytes, says: str) -> None:
    dialect, inner = OTHER_ROUTES[path]
    body = b'{"%b": %b}' % (dialect.field.encode(), inner.replace(b"FIELD", given))
    answer = ask(server, lambda c: c.request("POST", path, body, AUTHORIZED | JSON_TYPE))
    assert answer.status == dialect.invalid, answer.body
    assert re.search(says, dialect.message(answer), re.IGNORECASE), answer.body


@pytest.mark.parametrize("path", OTHER_ROUTES)
def test_other_routes_refuse_what_is_large_or_no_json(server: Stack, path: str) -> None:
    large = ask(server, lambda c: c.request("POST", path, b" " * 10_000_000, AUTHORIZED | JSON_TYPE))
    form = ask(server, lambda c: c.request("POST", path, b"a=b", AUTHORIZED | {"Content-Type": "text/plain"}))
    assert (large.status, form.status) == (413, 415)


@pytest.mark.parametrize("path", OTHER_ROUTES)
@pytest.mark.parametrize("text", [rb"a\u0000b", rb"\ud83d\ude42", rb"\u0000", b" "])
def test_other_routes_take_any_text(server: Stack, path: str, text: bytes) -> None:
    dialect, inner = OTHER_ROUTES[path]
    given = inner.replace(b"FIELD", b'"%b"' % text)
    body = b'{"%b": %b, "unknown": [null]}' % (dialect.field.encode(), given)
    answer = ask(server, lambda c: c.request("POST", path, body, AUTHORIZED | JSON_TYPE))
    assert answer.status == 200, answer.body
    assert b"NaN" not in answer.body


def test_a_field_given_twice_has_its_last_value(server: Stack) -> None:
    once, twice = (
        ask_case(server, Case(body, ""), TEI).json() for body in (b'{"inputs": "b"}', b'{"inputs": "a", "inputs": "b"}')
    )
    assert once == twice


def test_no_content_type_means_json(server: Stack) -> None:
    answer = ask(server, lambda c: c.request("POST", TEI.path, b'{"inputs": "text"}', AUTHORIZED))
    assert answer.status == 200


# Bodies too large


HUGE = 50_000_000


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_huge_body_with_its_length(server: Stack, dialect: Dialect) -> None:
    answer = ask(server, lambda c: c.request("POST", dialect.path, b" " * HUGE, AUTHORIZED | JSON_TYPE))
    assert answer.status == 413
    assert "larger than 8388608 bytes" in dialect.message(answer)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_huge_body_in_chunks(server: Stack, dialect: Dialect) -> None:
    async def send(connection: Connection) -> Answer:
        await connection.send_raw(chunked_head(dialect.path))
        chunk = b"%x\r\n%b\r\n" % (1_000_000, b" " * 1_000_000)
        for _ in range(HUGE // 1_000_000):
            await connection.send_raw(chunk)
        await connection.send_raw(b"0\r\n\r\n")
        return await connection.receive()

    answer = ask(server, send)
    assert answer.status == 413
    assert "larger than 8388608 bytes" in dialect.message(answer)


def test_chunks_are_as_good_as_a_length(server: Stack) -> None:
    async def send(connection: Connection) -> Answer:
        await connection.send_raw(chunked_head(TEI.path))
        for byte in b'{"inputs": "text"}':
            await connection.send_raw(b"1\r\n%c\r\n" % byte)
        await connection.send_raw(b"0\r\n\r\n")
        return await connection.receive()

    assert ask(server, send).status == 200


def chunked_head(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode()


def test_refused_before_it_is_sent(server: Stack) -> None:
    """A client that asks first (Expect: 100-continue, as curl does) need not send what is too large."""

    async def send(connection: Connection) -> Answer:
        head = f"POST /embed HTTP/1.1\r\nHost: t\r\nAuthorization: {KEY}\r\nExpect: 100-continue\r\n"
        await connection.send_raw(f"{head}Content-Length: {HUGE}\r\n\r\n".encode())
        answer = await connection.receive()
        await connection.send_raw(b" " * HUGE)
        return answer

    assert ask(server, send).status == 413


# Keys


def key(name: str, given: str) -> dict[str, str]:
    return {name: given}


REFUSED_KEYS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong": key("Authorization", "Bearer not-the-key"),
    "wrong and raw": key("Authorization", "not-the-key"),
    "wrong in X-API-Key": key("X-API-Key", "not-the-key"),
    "empty": key("Authorization", ""),
    "Bearer and nothing": key("Authorization", "Bearer "),
    "beginning of the key": key("Authorization", f"Bearer {KEY[:-1]}"),
    "more than the key": key("Authorization", f"Bearer {KEY}x"),
    "another case": key("Authorization", f"Bearer {KEY.upper()}"),
    "not ASCII": key("Authorization", "Bearer cl\xe9-\xff\xfe"),
    "Basic": key("Authorization", "Basic dXNlcjpwYXNz"),
    "long": key("Authorization", "Bearer " + "x" * 30_000),
    "in the wrong header": key("X-Key", KEY),
}
TAKEN_KEYS = {
    "Bearer": key("Authorization", f"Bearer {KEY}"),
    "bearer": key("authorization", f"bearer {KEY}"),
    "raw": key("Authorization", KEY),
    "X-API-Key": key("X-API-Key", KEY),
    "spaces": key("Authorization", f"Bearer   {KEY}  "),
    "one of two is right": key("Authorization", "Bearer wrong") | key("X-API-Key", KEY),
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize("headers", REFUSED_KEYS.values(), ids=REFUSED_KEYS)
def test_refused_key(server: Stack, headers: dict[str, str], dialect: Dialect) -> None:
    answer = ask(server, lambda c: c.request("POST", dialect.path, FINE.sent_to(dialect), headers))
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    given = headers.get("Authorization", headers.get("X-API-Key"))
    assert ("No API key" if given is None else "This API key is not valid") in dialect.message(answer)
    assert KEY not in answer.body.decode()


def test_refused_key_in_openai_s_words(server: Stack) -> None:
    answer = ask(server, lambda c: c.request("POST", OPENAI.path, b"{}", {}))
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("headers", TAKEN_KEYS.values(), ids=TAKEN_KEYS)
def test_taken_key(server: Stack, headers: dict[str, str]) -> None:
    assert ask(server, lambda c: c.request("POST", TEI.path, b'{"inputs": "text"}', headers)).status == 200


def test_health_needs_no_key(server: Stack) -> None:
    assert [server.status(path) for path in ("/health", "/ready", "/v1/models")] == [200, 200, 401]


# Paths, and requests that are no HTTP


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/v1/embeddings/",
        "/v1/embeddingsx",
        "/%00",
        "/../etc/passwd",
        "/" + "x" * 10_000,
    ],
)
def test_unknown_path(server: Stack, path: str) -> None:
    answer = ask(server, lambda c: c.request("GET", path))
    assert answer.status == 404
    assert "There is nothing at /" in original_message(answer)
    assert answer.json()["code"] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models"])
def test_wrong_method(server: Stack, path: str) -> None:
    answer = ask(server, lambda c: c.request("POST", path, b"{}"))
    assert answer.status == 405
    assert re.search(f"{path} does not take POST: use (GET|HEAD)", answer.body.decode())


NO_HTTP = {
    "garbage": b"\x00\xffGARBAGE\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "negative length": b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
    "length in words": b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: ten\r\n\r\n",
    "length with a sign": b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: +5\r\n\r\n",
    "two lengths": b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "length beyond 64 bits": b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    "path that is not ASCII": "GET /é HTTP/1.1\r\nHost: t\r\n\r\n".encode("latin-1"),
    "header without a colon": b"GET /health HTTP/1.1\r\nHost t\r\n\r\n",
    "bad chunk": b"POST /embed HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_no_http(server: Stack, sent: bytes) -> None:
    """400 (or the 401 that the head alone deserves), and the connection ends: where it went wrong is unknown."""

    async def run() -> int:
        async with await Connection.open(server.port) as connection, await Connection.open(server.port) as another:
            await connection.send_raw(sent)
            status = (await connection.receive()).status
            assert await connection.ends()
            assert await works(another)
        return status

    assert asyncio.run(run()) in {400, 401}


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_large_header_is_taken(server: Stack, size: int) -> None:
    answer = ask(server, lambda c: c.request("GET", "/health", headers={"X-Long": "x" * size}))
    assert answer.status == 200


def test_endless_header_is_cut_off(server: Stack) -> None:
    """Or one connection, without a key, could take all memory."""

    async def run() -> None:
        async with await Connection.open(server.port) as connection, await Connection.open(server.port) as another:
            await connection.send_raw(b"GET /health HTTP/1.1\r\nX-Endless: ")
            with pytest.raises(ConnectionLost):
                for _ in range(64):
                    await connection.send_raw(b"x" * 1_000_000)
            assert await works(another)

    asyncio.run(run())


# Correlation ids


SANE = ["a", "req-1", "A.b_c:d/e+f=g@h", "x" * 128, "0" * 32]
NOT_SANE = ["", "x" * 129, "two words", "semi;colon", 'quote"d', "<script>", "caf\xe9", "a,b", "{}"]
ERROR_AND_NOT = [("/embed", b'{"inputs": "text"}', 200), ("/embed", b"{", 422), ("/nothing", b"", 404)]


@pytest.mark.parametrize(("path", "body", "status"), ERROR_AND_NOT)
@pytest.mark.parametrize("name", ["X-Correlation-ID", "X-Request-ID"])
def test_sane_correlation_id_is_kept(server: Stack, name: str, path: str, body: bytes, status: int) -> None:
    for given in SANE:
        answer = ask_with(server, path, body, {name: given})
        assert (answer.status, answer.headers["x-correlation-id"]) == (status, given)


@pytest.mark.parametrize(("path", "body", "status"), ERROR_AND_NOT)
def test_other_correlation_id_is_replaced(server: Stack, path: str, body: bytes, status: int) -> None:
    made = set()
    for given in NOT_SANE:
        answer = ask_with(server, path, body, {"X-Correlation-ID": given})
        assert answer.status == status
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-correlation-id"])
        made.add(answer.headers["x-correlation-id"])
    assert len(made) == len(NOT_SANE)


def test_refused_key_has_a_correlation_id_too(server: Stack) -> None:
    answer = ask(server, lambda c: c.request("POST", ORIGINAL.path, b"{}", {"X-Correlation-ID": "mine"}))
    assert (answer.status, answer.headers["x-correlation-id"]) == (401, "mine")


def ask_with(server: Stack, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    return ask(server, lambda c: c.request("POST", path, body, AUTHORIZED | headers))
