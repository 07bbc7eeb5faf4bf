"""The engine's side of the wire, from the real socket, slab and messages; it answers only what a test tells it to."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import zmq

from frontend.cache import CachedEngine
from frontend.client import EngineClient
from frontend.flight import Call, Take
from frontend.gate import ROUNDS_TO_BE_SEEN
from ipc import messages
from ipc.backlog import ACTIVE, FIRST, TOTAL
from ipc.errors import StartError
from ipc.messages import Header, Ids, Status, Type, Welcome
from ipc.priority import Priority
from ipc.slab import FREE, Epoch, Row, Slab, remove_slabs
from ipc.sockets import Context, Socket, bind_engine, frontend_id, routing_id

DIGEST = "the right model"
ROWS, DIM = 64, 8
WAIT_NS, COMPUTE_NS = 3_000_000, 5_000_000
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.001

_epochs = itertools.count(1)


class Text(NamedTuple):
    """One item of a SUBMIT."""

    owner: int
    sequence: int
    deadline: int
    priority: int
    ids: Ids
    flow: int


async def eventually(condition: Callable[[], object]) -> None:
    """Return as soon as `condition` holds; the poll's interval decides nothing but how soon that is noticed."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "what the test waits for did not happen"
        await asyncio.sleep(POLL_SECONDS)


def mappings() -> list[str]:
    """What this process has mapped, a line each."""
    return Path("/proc/self/maps").read_text().splitlines()


def ids(*values: int) -> Ids:
    return np.array(values, np.int32)


PING = ids(101, 102)
TEXTS = [ids(101, n, 102) for n in range(5)]


def vector(text: Sequence[int] | Ids, dim: int = DIM) -> Row:
    """The vector of a text: length 1, float32 [dim], another one for every other ids."""
    drawn = np.random.default_rng([int(i) for i in text]).standard_normal(dim)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float32)


async def refuse(engine: Welcome) -> None:
    """For front ends that have one model and no other."""
    raise StartError("It is not there.")


class EnginePeer:
    """One life of an engine. Everything it was sent is kept in order of arrival."""

    def __init__(
        self,
        run_dir: Path,
        *,
        digest: str = DIGEST,
        folder: str = "",
        rows: int = ROWS,
        dim: int = DIM,
        welcomes: bool = True,
    ) -> None:
        remove_slabs(run_dir)
        self.epoch = Epoch(next(_epochs))
        self.slab = Slab.create(run_dir, self.epoch, rows, dim)
        self.welcome = Welcome("peer", digest, folder, rows, dim, "cpu", "fp32")
        self.welcomes = welcomes
        self.log: list[Type] = []
        self.frontends: list[int] = []
        self.texts: list[Text] = []
        self.submits: list[list[int]] = []
        self.cancelled: list[int] = []
        self._rows = itertools.cycle(range(rows))
        # A context of its own: to end it waits until the socket is really gone, as it is after kill -9.
        self._context: Context = zmq.Context()
        self._router: Socket = bind_engine(self._context, run_dir)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._router.fileno(), self._receive)

    @property
    def leased(self) -> int:
        """Rows that are lent."""
        return int(np.count_nonzero(self.slab.leases))

    async def joined(self) -> EnginePeer:
        """Wait for the first front end."""
        await eventually(lambda: self.frontends)
        return self

    async def received(self, count: int) -> list[Text]:
        """Wait for that many texts, counted from the beginning."""
        await eventually(lambda: len(self.texts) >= count)
        return self.texts

    def answer(self, *texts: Text, status: Status = Status.OK) -> None:
        """One REPLY to the owner of `texts`: their vectors in leased rows, or another status for all."""
        results = [
            (text.sequence, self.lend(text) if status is Status.OK else 0, int(status), WAIT_NS) for text in texts
        ]
        self.send(texts[0].owner, messages.reply(results, COMPUTE_NS, self.epoch))

    def compute(self, *texts: Text) -> None:
        """Note each text as running; what is answered ceases to be."""
        for text in texts:
            row = next(row for row in self._rows if self.slab.running[row] == FREE)
            self.slab.running[row] = text.sequence

    def lend(self, text: Text) -> int:
        """Write the text's vector to a free row and lease that to the text's owner."""
        self.slab.running[self.slab.running == text.sequence] = FREE
        row = next(row for row in self._rows if self.slab.leases[row] == FREE)
        self.slab.rows[row] = vector(text.ids, self.welcome.dim)
        self.slab.leases[row] = text.owner
        return row

    def pile_up(self, tokens: int, flow: int, priority: Priority = Priority.INTERACTIVE) -> None:
        """Show front ends so many tokens of a flow that wait, at 1000 a second."""
        self.slab.backlog.rate = 1000
        part = self.slab.backlog.part(priority)
        part[TOTAL] = part[FIRST + flow] = tokens
        part[ACTIVE] = bool(tokens)
        for _ in range(ROUNDS_TO_BE_SEEN):
            self.slab.backlog.end_round()

    def send(self, owner: int, frame: bytes) -> None:
        self._router.send_multipart([routing_id(owner), frame], zmq.NOBLOCK)
        # A send may consume the descriptor's edge.
        self._receive()

    def die(self) -> None:
        """As after kill -9: the connections break, and the files stay where they are."""
        if not self._router.closed:
            self._loop.remove_reader(self._router.fileno())
            self._context.destroy(linger=0)

    def _receive(self) -> None:
        while True:
            try:
                identity, frame = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            owner = frontend_id(identity)
            assert owner is not None
            header = messages.parse_header(frame)
            self.log.append(header.type)
            self._on_message(owner, frame, header)

    def _on_message(self, owner: int, frame: bytes, header: Header) -> None:
        match header.type:
            case Type.HELLO:
                self.frontends.append(owner)
                if self.welcomes:
                    # A link that connects here before it notices its last engine's end is closed at once.
                    with suppress(zmq.ZMQError):
                        self.send(owner, messages.welcome(self.welcome, self.epoch))
            case Type.SUBMIT:
                assert header.epoch == self.epoch
                items, all_ids = messages.parse_submit(frame, header)
                splits = np.split(all_ids, np.cumsum(items["length"])[:-1])
                texts = [
                    Text(owner, sequence, deadline, priority, text, flow)
                    for (sequence, deadline, _, priority, flow), text in zip(items.tolist(), splits, strict=True)
                ]
                self.texts += texts
                self.submits.append([text.sequence for text in texts])
            case Type.CANCEL:
                self.cancelled += messages.parse_cancel(frame, header).tolist()


def to_bytes(row: Row) -> bytes:
    return row.tobytes()


def expected(texts: Sequence[Ids]) -> list[bytes]:
    return [vector(text).tobytes() for text in texts]


def start_call(
    client: EngineClient | CachedEngine,
    texts: Sequence[Ids],
    take: Take | None = to_bytes,
    *,
    deadline_ns: int | None = None,
    priority: Priority = Priority.INTERACTIVE,
    lost: asyncio.Future[None] | None = None,
    **others: Any,
) -> asyncio.Task[Call]:
    deadline_ns = deadline_ns or time.monotonic_ns() + 60_000_000_000
    return asyncio.ensure_future(
        client.embed(texts, take, deadline_ns=deadline_ns, priority=priority, lost=lost, **others)
    )


async def works(client: EngineClient, peer: EnginePeer) -> None:
    """One call goes all the way."""
    known = len(peer.texts)
    call = start_call(client, [PING])
    peer.answer((await peer.received(known + 1))[-1])
    assert (await call).parts == expected([PING])
    assert not peer.leased


class StartPeer(Protocol):
    """The fixture that starts engines, one at a time, and ends them."""

    def __call__(self, **options: Any) -> EnginePeer: ...


class StartClient(Protocol):
    """The fixture that starts clients and closes them."""

    def __call__(self, **options: Any) -> EngineClient: ...
