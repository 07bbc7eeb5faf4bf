"""Raw vectors over HTTP: the bits of every other form, sent from shared memory that is used again all around them."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.raw import MOST_ROWS_IN_PIECE
from perf.stack import Stack
from tests.system.processes import clients_of, lease_holders, log_records, unread_bytes, wait_for
from tests.system.wire import AUTHORIZED, Answer, Connection, openai_bits, openai_body
from tests.tools.conftest import write_model

pytestmark = pytest.mark.system

DIM = 384
OCTETS = "application/octet-stream"
NPY = "application/x-npy"
# The least there may be for one front end and batches of four: a share of 32 rows, of which 8 may be held.
SLAB_ROWS, BATCH_ROWS = 64, 4
# A model whose vectors are wide, so that fewer texts make an answer that no socket's buffers hold (4 MiB).
WIDE_DIM = 1024
MANY = 900
ROUTES: dict[str, Callable[[Sequence[str]], dict[str, object]]] = {
    "/v1/embeddings": lambda texts: {"input": texts},
    "/embeddings": lambda texts: {"input": texts, "encoding_format": "base64"},
    "/embed": lambda texts: {"inputs": texts},
    "/": lambda texts: {"inputs": texts},
    "/v1/embed": lambda texts: {"input_text": texts[0]},
}


@pytest.fixture(scope="module")
def small() -> Iterator[Stack]:
    """A slab that a few requests fill, and a cache."""
    with Stack(frontends=1, slab_rows=SLAB_ROWS, max_batch_rows=BATCH_ROWS, cache_mb=32) as stack:
        yield stack
        # pytest shows this where a test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("wide"), hidden_size=WIDE_DIM, num_hidden_layers=1)


def wide_stack(model: Path, **settings: object) -> Stack:
    return Stack(model, frontends=1, **({"slab_rows": SLAB_ROWS, "max_batch_rows": BATCH_ROWS} | settings))


@pytest.fixture(scope="module")
def wide(wide_model: Path) -> Iterator[Stack]:
    """As small a slab, and no cache: every vector comes from it."""
    with wide_stack(wide_model) as stack:
        yield stack
        print(stack.log.read_text(errors="replace")[-20_000:])


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


def vectors(answer: Answer, rows: int, dim: int = DIM) -> bytes:
    """The bits of a raw answer of either kind, once its shape is what it should be."""
    assert answer.status == 200, answer
    assert answer.headers["x-embedding-shape"] == f"{rows},{dim}"
    if answer.headers["content-type"] == OCTETS:
        assert len(answer.body) == rows * dim * 4
        return answer.body
    assert answer.headers["content-type"] == NPY
    table = np.load(io.BytesIO(answer.body))
    assert (table.shape, table.dtype) == ((rows, dim), np.dtype("<f4"))
    return bytes(table.tobytes())


async def raw(connection: Connection, path: str, content: object, accept: str = OCTETS, **headers: str) -> Answer:
    return await connection.post(path, content, Accept=accept, **headers)


async def as_base64(connection: Connection, texts: Sequence[str], **fields: object) -> bytes:
    return b"".join(openai_bits(await connection.post("/v1/embeddings", openai_body(texts) | fields)))


def on_a_connection(stack: Stack, work: Callable[[Connection], Any]) -> Any:
    async def run() -> Any:
        async with await Connection.open(stack.port) as connection:
            return await work(connection)

    return asyncio.run(run())


def nothing_is_held(stack: Stack) -> None:
    wait_for(lambda: not lease_holders(stack.run_dir), "every row to come back")


def nothing_went_wrong(stack: Stack) -> None:
    assert not log_records(stack.log, "unexpected error")
    assert "Traceback" not in stack.log.read_text()


# What is sent


@pytest.mark.parametrize("accept", [OCTETS, NPY])
@pytest.mark.parametrize("path", ROUTES)
def test_each_route_gives_the_bits_of_base64(small: Stack, path: str, accept: str) -> None:
    async def check(connection: Connection) -> None:
        texts = numbered(f"{path} {accept}", 1 if path == "/v1/embed" else 7)
        answer = await raw(connection, path, ROUTES[path](texts), accept)
        assert answer.headers["x-cache"] == "miss"
        bits = vectors(answer, len(texts))
        again = await raw(connection, path, ROUTES[path](texts), accept)
        assert again.headers["x-cache"] == "hit"
        assert bits == vectors(again, len(texts)) == await as_base64(connection, texts)

    on_a_connection(small, check)
    nothing_is_held(small)


@pytest.mark.parametrize("dimensions", [1, 64, DIM])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/"])
def test_dimensions(small: Stack, path: str, dimensions: int) -> None:
    async def check(connection: Connection) -> None:
        texts = numbered(f"{path} {dimensions}", 5)
        asked = ROUTES[path](texts) | {"dimensions": dimensions}
        for _ in ("miss", "hit"):
            bits = vectors(await raw(connection, path, asked), 5, dimensions)
            assert bits == await as_base64(connection, texts, dimensions=dimensions)
        assert np.allclose(np.linalg.norm(np.frombuffer(bits, "<f4").reshape(5, -1), axis=1), 1)

    on_a_connection(small, check)


def test_hits_among_misses_and_texts_that_come_twice(small: Stack) -> None:
    async def check(connection: Connection) -> None:
        texts = numbered("mixed", 60)
        await raw(connection, "/embed", {"inputs": texts[::3]})
        asked = [*texts, *texts[:10]]
        answer = await raw(connection, "/embed", {"inputs": asked})
        assert answer.headers["x-cache"] == "miss"
        assert vectors(answer, len(asked)) == await as_base64(connection, asked)

    on_a_connection(small, check)
    nothing_is_held(small)


def test_512_texts_and_several_such_requests(small: Stack) -> None:
    """More texts than the slab has rows, and none may wait for rows that it or another request holds."""

    async def check(texts: list[str]) -> None:
        async with await Connection.open(small.port) as connection:
            answer = await raw(connection, "/embed", {"inputs": texts}, NPY)
            assert vectors(answer, len(texts)) == await as_base64(connection, texts)

    async def run() -> None:
        await asyncio.gather(*(check(numbered(f"request {n}:", 512 if n == 0 else 100)) for n in range(4)))

    asyncio.run(run())
    nothing_is_held(small)


# Readers that are slow, leave, or never read


class Reader:
    """A client of a raw answer that takes in next to nothing until it is told to."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self.port = int(connection.getsockname()[1])

    @classmethod
    @asynccontextmanager
    async def asks(cls, stack: Stack, texts: Sequence[str], *headers: str) -> AsyncIterator[Reader]:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", stack.port))
            body = json.dumps({"inputs": texts}).encode()
            given = [f"{name}: {value}" for name, value in AUTHORIZED.items()]
            lines = ["POST /embed HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", f"Accept: {OCTETS}"]
            await loop.sock_sendall(connection, "\r\n".join([*lines, *given, *headers, "", ""]).encode() + body)
            yield cls(connection)

    async def first_byte(self) -> bytes:
        return await self._loop.sock_recv(self._socket, 1)

    async def rest(self, data: bytes = b"") -> bytes:
        """All that comes until the body is whole or the connection ends; gives the body."""
        head, length = b"", 0
        try:
            while not head or len(data) < length:
                more = await self._loop.sock_recv(self._socket, 1 << 18)
                if not more:
                    break
                data += more
                if not head and b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        except ConnectionError:
            pass
        return data


async def reuse_the_slab(stack: Stack, rows: int = SLAB_ROWS) -> None:
    """Other clients' texts through all rows that are free, with right answers."""

    async def one(number: int) -> None:
        async with await Connection.open(stack.port) as connection:
            asked = numbered(f"other {number}", rows // 3)
            bits = vectors(await raw(connection, "/embed", {"inputs": asked}), len(asked), WIDE_DIM)
            assert bits == await as_base64(connection, asked)

    await asyncio.gather(*(one(number) for number in range(2)))


def held_rows(stack: Stack) -> int:
    return sum(int(np.count_nonzero(np.fromfile(path, np.uint32))) for path in stack.run_dir.glob("slab-*.leases"))


@pytest.mark.parametrize("headers", [(), ("Connection: close",)], ids=["stays", "closes"])
def test_what_a_slow_reader_waits_for_stays_lent_while_the_slab_is_used_again(
    wide_model: Path, headers: tuple[str, ...]
) -> None:
    """The slab is so large that the whole answer may be held: so it is, until the socket takes no more."""
    texts, rows = numbered("slow", MANY), 4 * MANY

    async def run(stack: Stack) -> None:
        async with Reader.asks(stack, texts, *headers) as reader:
            first = await reader.first_byte()
            held = await asyncio.to_thread(wait_for, lambda: few_rows(stack), "the rows behind to be copied")
            await reuse_the_slab(stack, rows)
            assert held_rows(stack) == held
            body = await reader.rest(first)
        async with await Connection.open(stack.port) as connection:
            assert body == await as_base64(connection, texts)

    def few_rows(stack: Stack) -> int:
        held = held_rows(stack)
        return held if held <= MOST_ROWS_IN_PIECE else 0

    with wide_stack(wide_model, slab_rows=rows, max_batch_rows=1) as stack:
        asyncio.run(run(stack))
        nothing_is_held(stack)
        nothing_went_wrong(stack)


def test_many_slow_readers_keep_no_other_from_its_answer(wide: Stack) -> None:
    """More of them than rows may be held, and each has more texts than the slab has rows."""
    texts = numbered("many", MANY)

    async def run() -> None:
        async with AsyncExitStack() as readers:
            asked = [await readers.enter_async_context(Reader.asks(wide, texts)) for _ in range(4)]
            firsts = [await reader.first_byte() for reader in asked]
            await reuse_the_slab(wide)
            bodies = [await reader.rest(first) for reader, first in zip(asked, firsts, strict=True)]
        assert len(bodies[0]) == MANY * WIDE_DIM * 4
        assert len(set(bodies)) == 1

    asyncio.run(run())
    nothing_is_held(wide)
    nothing_went_wrong(wide)


def test_a_reader_that_never_reads_is_cut_off_at_its_deadline(wide: Stack) -> None:
    async def run() -> None:
        (frontend,) = wide.pids("frontend")
        async with Reader.asks(wide, numbered("never", MANY), "X-Request-Timeout-Ms: 6000") as reader:
            await reader.first_byte()
            await asyncio.to_thread(nothing_is_held, wide)
            await reuse_the_slab(wide)
            await asyncio.to_thread(wait_for, lambda: reader.port not in clients_of(frontend), "the connection's end")
            assert len(await reader.rest()) < MANY * WIDE_DIM * 4

    asyncio.run(run())
    nothing_went_wrong(wide)


def test_a_reader_that_leaves_gives_everything_back(wide: Stack) -> None:
    async def run() -> None:
        async with Reader.asks(wide, numbered("leaves", MANY)) as reader:
            await reader.first_byte()

    asyncio.run(run())
    nothing_is_held(wide)
    nothing_went_wrong(wide)


def test_an_engine_that_is_killed_takes_nothing_from_a_reader(wide_model: Path) -> None:
    """A dead engine's slab stays mapped as long as someone reads it; what it still owed is computed by the next."""
    texts = numbered("killed", MANY)

    async def run(stack: Stack) -> None:
        async with Reader.asks(stack, texts) as reader:
            first = await reader.first_byte()
            async with Reader.asks(stack, texts[::-1]) as other:
                await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "the other to be read")
                stack.signal("engine", signal.SIGKILL)
                await asyncio.to_thread(wait_for, lambda: len(log_records(stack.log, "ready")) == 2, "another engine")
                await reuse_the_slab(stack)
                bodies = [await reader.rest(first), await other.rest()]
        async with await Connection.open(stack.port) as connection:
            assert bodies[0] == await as_base64(connection, texts)
        rows = np.frombuffer(bodies[1], np.float32).reshape(MANY, WIDE_DIM)
        assert rows[::-1].tobytes() == bodies[0]

    with wide_stack(wide_model, slab_rows=4 * MANY, max_batch_rows=1) as stack:
        asyncio.run(run(stack))
        nothing_is_held(stack)
        nothing_went_wrong(stack)
