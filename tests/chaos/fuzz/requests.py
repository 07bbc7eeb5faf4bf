"""Requests that are almost valid: one of each route, damaged in its head, its framing, its JSON or its bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import orjson

from perf.stack import KEY

BODIES: Final[dict[str, object]] = {
    "/v1/embeddings": {"input": ["a text", "another"], "encoding_format": "base64", "dimensions": 64, "truncate": True},
    "/embeddings": {"input": "a text", "model": "any", "user": "someone"},
    "/embed": {"inputs": ["a text"], "truncate": True, "truncation_direction": "left", "normalize": True},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "parameters": {"truncate": True}},
    "/": {"inputs": "a text", "parameters": None},
    "/tokenize": {"inputs": ["a text"], "add_special_tokens": False},
    "/v1/embed": {"input_text": "a text"},
}
GETS: Final = (
    "/info", "/v1/usage", "/v1/models", "/health", "/ready", "/readiness", "/ping", "/metrics", "/openapi.json",
    "/docs", "/",
)  # fmt: skip
METHODS: Final = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "P", "PRI", "M-SEARCH")
TARGETS: Final = ("*", "//", "/%00", "/..", "/embed/", "/embed?x=1#y", "/\xff", "http://a/embed", "/" + "a" * 3000)
HEADERS: Final = (
    "Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 1, 1",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity",
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Type: ",
    "Content-Encoding: gzip", "Expect: 100-continue", "Connection: close", "Connection: upgrade", "Upgrade: h2c",
    "Upgrade: websocket", "X-Request-Timeout-Ms: 0", "X-Request-Timeout-Ms: 1", "X-Request-Timeout-Ms: NaN",
    "X-Priority: bulk", "X-Priority: \xff", "X-Correlation-ID: \x01", "X-Correlation-ID: " + "a" * 500,
    "Accept: application/octet-stream", "Accept: application/x-npy", "Accept: */*;q=\xe9", "Authorization: Bearer",
    "Authorization: Bearer \xff\xfe", "X-API-Key: " + "k" * 2000, "Cookie: " + "c" * 9000, "Range: bytes=0-1",
    "Host:", ": no name", "no colon", "If-None-Match: \"\"", "Origin: http://elsewhere", " folded: line",
)  # fmt: skip
VALUES: Final = (
    b"null", b"true", b"0", b"-0.0", b"1e999", b"-1e-999", b"9" * 400, b"1.5", b"NaN", b"Infinity", b"'a'", b"\x00",
    b'""', b'" "', b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\\x"', b'"\xf0\x9f\x99\x82" ', b'"' + b"word " * 400 + b'"', b'"' + "\u0416".encode() * 5000 + b'"',
    '"\u202e\u0301\u200d\ufeff"'.encode(), b"[]", b"{}", b"[[]]", b"[null]", b'["",1]', b"[1,2,3]", b"[1,]", b"/**/1",
    b"[" * 2000, b"[" * 700 + b"]" * 700, b'{"a":' * 500,
)  # fmt: skip


def make(chance: random.Random) -> bytes:
    """One request, damaged in one to three places; some end in the middle."""
    path = chance.choice(list(BODIES))
    body = orjson.dumps(BODIES[path])
    method = "POST"
    if chance.random() < 0.15:
        method, path, body = "GET", chance.choice(GETS), b""
    lines = [f"Host: fuzz\r\nAuthorization: Bearer {KEY}", "Content-Type: application/json"]
    is_chunked = chance.random() < 0.2
    is_damaged_late = chance.random() < 0.3
    for _ in range(0 if is_damaged_late else chance.randint(1, 3)):
        kind = chance.randrange(6)
        if kind == 0:
            method = chance.choice(METHODS)
        elif kind == 1:
            path = chance.choice(TARGETS)
        elif kind == 2:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(HEADERS))
        else:
            body = chance.choice(DAMAGES)(body, chance)
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body)
    head = f"{method} {path} HTTP/1.1\r\n".encode("latin-1") + "\r\n".join(lines).encode("latin-1")
    whole = head + b"\r\n" + framing + b"\r\n\r\n" + (_chunked(body, chance) if is_chunked else body)
    return flip(whole, chance) if is_damaged_late else whole


def flip(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, doubled, dropped or cut off, anywhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                changed[place:place] = changed[place : place + 20]
            case 2:
                del changed[place : place + chance.randint(1, 20)]
            case _:
                changed[place:place] = chance.randbytes(chance.randint(1, 8))
    return bytes(changed)


def _replace_value(body: bytes, chance: random.Random) -> bytes:
    """Another JSON value, or none at all, in the place of one."""
    begin = body.find(b":", chance.randrange(len(body) + 1)) + 1
    end = min((at for at in (body.find(b",", begin), body.find(b"}", begin)) if at > 0), default=len(body))
    return body[:begin] + chance.choice(VALUES) + body[end:]


def _whole_value(body: bytes, chance: random.Random) -> bytes:
    return chance.choice(VALUES)


def _more_fields(body: bytes, chance: random.Random) -> bytes:
    names = [b'"%d":%b' % (n, chance.choice(VALUES)) for n in range(chance.choice((1, 3, 200)))]
    return body[:-1] + b"," + b",".join(names) + b"}"


def _other_encoding(body: bytes, chance: random.Random) -> bytes:
    return body.decode("latin-1").encode(chance.choice(("utf-16", "utf-32", "utf-7", "utf-8-sig")))


DAMAGES: Final[tuple[Callable[[bytes, random.Random], bytes], ...]] = (
    _replace_value, _replace_value, _whole_value, _more_fields, _other_encoding, flip,
)  # fmt: skip


def _chunked(body: bytes, chance: random.Random) -> bytes:
    """In chunks, whose sizes are mostly right."""
    parts = []
    while body:
        size = chance.randint(1, 200)
        told = size if chance.random() < 0.95 else chance.choice((0, -1, 1 << 40, size + 1))
        parts.append(b"%x\r\n%b\r\n" % (max(told, 0), body[:size]) if told >= 0 else b"-1\r\n" + body[:size])
        body = body[size:]
    return b"".join(parts) + chance.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b""))
