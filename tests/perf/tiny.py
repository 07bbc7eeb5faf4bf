"""Tiny HTTP servers that embed the reference's texts rightly, or misbehave as told; each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

from perf.peers.answers import references

DIM = 384
KNOWN: dict[str, list[float]] = {each.text: each.vector.tolist() for each in references()}
# As many numbers as any other vector has.
UNKNOWN = [0.5] * DIM

Embed = Callable[[int, str], list[float]]


def rightly(_: int, text: str) -> list[float]:
    """The reference's vector."""
    return KNOWN.get(text, UNKNOWN)


class Tiny(asyncio.Protocol):
    """Answers request n of all with what `embed(n, text)` gives for each text (nothing: status 429), after a delay."""

    def __init__(self, embed: Embed, delay: float, seen: list[bytes]) -> None:
        self._embed = embed
        self._delay = delay
        self._seen = seen
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._to = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if not end or len(body) < length:
            return
        self._received = b""
        answer = self._answer(len(self._seen), orjson.loads(body)["input"])
        self._seen.append(head)
        asyncio.get_running_loop().call_later(self._delay, self._to.write, answer)

    def _answer(self, number: int, texts: str | list[str]) -> bytes:
        vectors = [self._embed(number, text) for text in ([texts] if isinstance(texts, str) else texts)]
        body = orjson.dumps({"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors) if vector]})
        status = b"200 OK" if any(vectors) else b"429 Too Many Requests"
        return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def tiny_server(embed: Embed = rightly, delay: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """Gives its URL and the heads of the requests that it has seen."""
    loop = asyncio.new_event_loop()
    seen: list[bytes] = []
    server = loop.run_until_complete(loop.create_server(lambda: Tiny(embed, delay, seen), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
