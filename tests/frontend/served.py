"""The real application over httpx, and a real engine in a thread around a runner that needs no model."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import zmq
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Scope

from engine.lanes import Lanes
from engine.loop import Engine, Model
from engine.metrics import EngineMetrics
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from frontend.app import create_app
from frontend.metrics import RequestMetrics
from ipc.bundle import Bundle
from ipc.messages import Ids, Welcome
from ipc.settings import Settings
from ipc.slab import Epoch, Rows, Slab
from ipc.sockets import Context, bind_engine
from tests.frontend.peer import vector

KEY = "el-test-key"
SLAB_ROWS = 256
BATCH_ROWS = 8
STOP_GRACE_NS = 20_000_000_000


def small_bounds(run_dir: Path) -> Settings:
    return Settings(
        run_dir=str(run_dir),
        # What is in the checkout's own folder is none of a test's business.
        data_dir=str(run_dir / "data"),
        max_body_bytes=100_000,
        max_inputs=64,
        max_chars=4_000,
        queue_items=400,
        max_queue_ms=1_000,
        # Most tests send the same few texts, and mean the engine.
        cache_mb=0,
    )


class DrawnRunner:
    """Gives each text the vector that `tests.frontend.peer.vector` draws for its ids, of the given length."""

    device = "cpu"
    precision = "fp32"
    lanes = 2
    mixes_lengths = False

    def __init__(self, length: float) -> None:
        self._length = length

    def warm_up(self, rows: Rows) -> None:
        rows[:] = 0

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        for text, row in zip(texts, rows, strict=True):
            row[:] = self._length * vector(text, rows.shape[1])
        return 0


@contextmanager
def drawn_engine(run_dir: Path, bundle: Bundle, *, length: float = 1) -> Iterator[None]:
    """An engine for the bundle's tokens, until the block ends."""
    epoch = Epoch(secrets.randbits(63) | 1)
    slab = Slab.create(run_dir, epoch, SLAB_ROWS, bundle.dim)
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    lanes = Lanes(DrawnRunner(length), slab.rows, lambda: os.eventfd_write(wake_fd, 1))
    context: Context = zmq.Context()
    welcome = Welcome(bundle.id, bundle.digest, str(bundle.folder), SLAB_ROWS, bundle.dim, "cpu", "fp32")
    engine = Engine(
        router=bind_engine(context, run_dir),
        scheduler=Scheduler(Limits(rows=BATCH_ROWS, tokens=1 << 20, max_wait=1_000_000, queue_items=1000)),
        lanes=lanes,
        slots=Slots(slab.leases, slab.running, share=SLAB_ROWS // 2),
        max_rows=BATCH_ROWS,
        model=Model(bundle.vocab_size, bundle.max_tokens),
        welcome=welcome,
        epoch=epoch,
        run_dir=run_dir,
        wake_fd=wake_fd,
        metrics=EngineMetrics(CollectorRegistry(), welcome, epoch, queue_items=1000),
    )
    thread = threading.Thread(target=engine.run)
    thread.start()
    yield
    engine.stop(STOP_GRACE_NS)
    os.eventfd_write(wake_fd, 1)
    thread.join()
    lanes.close()
    context.destroy(linger=None)
    os.close(wake_fd)
    assert not slab.leases.any(), "every row that was lent came back"


def new_metrics() -> RequestMetrics:
    """For requests that a test does not count."""
    return RequestMetrics(CollectorRegistry(), frozenset())


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Start the application, and ask it with its key; it is stopped with the block."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://embedlane",
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        ) as client,
    ):
        yield client


@asynccontextmanager
async def drawn_server(
    run_dir: Path, bundle: Bundle, *, length: float = 1, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Engine and application for a bundle of the test's own; `changes` are settings."""
    with drawn_engine(run_dir, bundle, length=length):
        async with serving(
            create_app(msgspec.structs.replace(small_bounds(run_dir), **changes), bundle, KEY)
        ) as client:
            yield client


def post_scope(path: str = "/", headers: dict[str, str] | None = None, *, method: str = "POST") -> Scope:
    """What a server hands to an application, with the key and as JSON."""
    all_headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | (headers or {})
    return {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "server": ("embedlane", 80),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in all_headers.items()],
    }


class Wire:
    """The server's side of one request: plays `incoming`, then nothing until the client hangs up."""

    def __init__(self, *incoming: Message) -> None:
        self.incoming = list(incoming)
        self.sent: list[Message] = []
        self.hang_up = asyncio.Event()

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop(0)
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, app: ASGIApp, scope: Scope) -> list[Message]:
        await app(scope, self.receive, self.send)
        return self.sent


def whole_body(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": False}
