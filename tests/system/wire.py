"""A small HTTP/1.1 client, one connection an object, that hides nothing: no pool, no retries, no reconnects."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from perf.stack import KEY

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
# Far above what any request of these tests takes: a request that is still open then hangs.
HANGS_SECONDS = 60


class ConnectionLost(Exception):
    """The server ended the connection before the answer was whole."""


@dataclass(frozen=True)
class Answer:
    """What came back: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """One TCP connection, used for one request after another; `async with Connection.open(port) as connection`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._said_close = False

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to the server under test."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 26))

    @property
    def local_port(self) -> int:
        """Our end's port: it tells this connection from all others."""
        return int(self._writer.get_extra_info("sockname")[1])

    @property
    def is_over(self) -> bool:
        """Whether the server has ended it: clients look before they use a connection again."""
        return self._said_close or self._reader.at_eof() or self._writer.transport.is_closing()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, in order where nothing is under way."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Hang up at once, in the middle of whatever goes on."""
        self._writer.transport.abort()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = AUTHORIZED
    ) -> Answer:
        """Send and wait for the whole answer. Raises ConnectionLost, or TimeoutError where it hangs."""
        await self.send(method, path, body, headers)
        return await self.receive()

    async def post(self, path: str, content: object, **headers: str) -> Answer:
        """POST JSON with the key; header names are given with underscores."""
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", path, json.dumps(content).encode(), AUTHORIZED | extra)

    async def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = AUTHORIZED) -> None:
        """Send a request whose answer is read later, or never."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise ConnectionLost(str(error)) from error

    async def receive(self) -> Answer:
        """Read one answer. Raises ConnectionLost, or TimeoutError where it hangs."""
        async with asyncio.timeout(HANGS_SECONDS):
            try:
                return await self._receive()
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                raise ConnectionLost(str(error)) from error

    async def ends(self) -> bool:
        """Whether the server has nothing more to say and closes the connection; waits for it."""
        async with asyncio.timeout(HANGS_SECONDS):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True

    async def _receive(self) -> Answer:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._said_close = headers.get("connection") == "close"
        if headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(status.split()[1]), headers, body)

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)


def openai_body(texts: str | Sequence[str]) -> dict[str, object]:
    """A request for the exact bits of each text's vector."""
    return {"input": texts, "encoding_format": "base64", "truncate": True}


def openai_bits(answer: Answer) -> list[bytes]:
    """Each vector's float32 bits out of an answer to `openai_body`."""
    assert answer.status == 200, answer
    return [base64.b64decode(entry["embedding"]) for entry in answer.json()["data"]]


async def fetch_bits(connection: Connection, text: str) -> bytes:
    """The bits of one text's vector, asked for alone."""
    return openai_bits(await connection.post("/v1/embeddings", openai_body(text)))[0]
