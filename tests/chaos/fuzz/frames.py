"""Frames that are almost right, for both ends of the ipc socket."""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zmq

from frontend.client import EngineClient
from ipc import messages
from ipc.backlog import FLOWS
from ipc.errors import MalformedFrame
from ipc.liveness import FrontendIdentity
from ipc.messages import Header, Submission, Type, Welcome
from ipc.slab import Epoch, Slab
from ipc.sockets import ENGINE_SOCKET, routing_id
from tests.chaos.fuzz.requests import flip
from tests.frontend.peer import refuse

EPOCH = Epoch(77)
ROWS, DIM = 64, 8
FAR = 2**62
WELCOME = Welcome("model", "digest", "/bundle", ROWS, DIM, "cpu", "fp32")
PARSERS: dict[Type, Callable[[bytes, Header], object]] = {
    Type.SUBMIT: messages.parse_submit,
    Type.CANCEL: messages.parse_cancel,
    Type.REPLY: messages.parse_reply,
    Type.WELCOME: lambda frame, _: messages.parse_welcome(frame),
}
ROW_NUMBERS = (0, ROWS - 1, ROWS, 2**32 - 1)
# Frames that a rogue sends under one identity before it takes another.
OF_ONE_IDENTITY = 20_000
# How often one of its frames is right, and so work that nobody reads.
RIGHT = 0.002


def make(chance: random.Random, epoch: Epoch) -> bytes:
    """One frame of any type, mostly damaged, or nothing but chance."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.choice((0, 1, 23, 24, 25, 200)))
    if kind == 1:
        # A right header around nothing, with counts that promise much.
        count, extra = chance.choice((0, 1, 2**31, 2**32 - 1)), chance.choice((0, 1, 2**62, 2**64 - 1))
        return messages.HEADER.pack(messages.MAGIC, messages.VERSION, chance.randrange(8), count, extra, epoch)
    frame = (
        submit(chance, epoch),
        messages.cancel([chance.getrandbits(64) for _ in range(chance.randrange(5))], epoch),
        messages.hello(),
        messages.reply(replies(chance), chance.getrandbits(40), epoch),
        messages.bye(epoch),
        messages.welcome(WELCOME, epoch),
    )[kind - 2]
    # BYE is right only once: after it an engine expects nothing more.
    return frame if chance.random() < RIGHT and kind != 6 else flip(frame, chance)


def submit(chance: random.Random, epoch: Epoch) -> bytes:
    """Texts of chance; some have ids that no vocabulary has."""
    items = [
        Submission(
            chance.choice((1, 2, chance.getrandbits(63) | 1)),
            chance.choice((FAR, 0, -1)),
            chance.choice((0, 1, 2, 3, 2**16 - 1)),
            np.array([chance.choice((-1, 0, 101, 2**31 - 1)) for _ in range(chance.randint(1, 9))], np.int32),
            chance.choice((0, FLOWS - 1, FLOWS, 2**16 - 1)),
        )
        for _ in range(chance.randrange(4))
    ]
    return messages.submit(items, epoch)


def replies(chance: random.Random) -> list[tuple[int, int, int, int]]:
    """Rows that are there and rows that are not."""
    return [
        (
            chance.getrandbits(64),
            chance.choice((0, ROWS - 1, ROWS, 2**32 - 1)),
            chance.randrange(7),
            chance.getrandbits(64),
        )
        for _ in range(chance.randrange(4))
    ]


def parse(count: int, chance: random.Random) -> int:
    """Read so many frames; gives how many were refused. Whatever else a parser raises ends this."""
    refused = 0
    for _ in range(count):
        frame = make(chance, EPOCH)
        try:
            header = messages.parse_header(frame)
            if header.type in PARSERS:
                PARSERS[header.type](frame, header)
        except MalformedFrame:
            refused += 1
    return refused


async def to_a_frontend(count: int, chance: random.Random) -> int:
    """Hand so many frames to a front end's client that believes in an engine; gives how many rows it has left lent."""
    with tempfile.TemporaryDirectory(prefix="embedlane-fuzz-") as name:
        run_dir = Path(name)
        slab = Slab.create(run_dir, EPOCH, ROWS, DIM)
        client = EngineClient(
            run_dir, "digest", refuse, most_flights=10, most_held=10, most_queue_s=30, grace_s=600, stall_s=600
        )
        client._on_message(messages.welcome(WELCOME, EPOCH))
        assert client.engine == WELCOME
        # It says so for each frame that it drops, and no supervisor of an engine sends so many.
        logging.getLogger("frontend.client").setLevel(logging.CRITICAL)
        slab.leases[:] = 7
        for number in range(count):
            client._on_message(make(chance, EPOCH))
            if number % 1000 == 0:
                await asyncio.sleep(0)
        client.close()
        logging.getLogger("frontend.client").setLevel(logging.NOTSET)
        return int(np.count_nonzero(slab.leases))


def to_an_engine(run_dir: Path, count: int, chance: random.Random) -> Iterator[int]:
    """Send so many frames to a real engine, as front ends that are welcome and as some that are not."""
    left = count
    while left > 0:
        some = min(left, OF_ONE_IDENTITY)
        _as_one(run_dir, some, chance)
        left -= some
        yield count - left


def _as_one(run_dir: Path, count: int, chance: random.Random) -> None:
    identity = FrontendIdentity(run_dir)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, routing_id(identity.id))
    dealer.setsockopt(zmq.SNDTIMEO, 30_000)
    dealer.setsockopt(zmq.RCVTIMEO, 30_000)
    dealer.connect(f"ipc://{run_dir / ENGINE_SOCKET}")
    try:
        dealer.send(messages.hello())
        epoch = messages.parse_header(dealer.recv()).epoch
        for _ in range(count):
            frame = make(chance, epoch)
            dealer.send_multipart([frame] * (1 if chance.random() < 0.99 else 3))
        # Once this is answered the engine has read all that came before.
        dealer.send(messages.submit([Submission(3, FAR, 0, np.array([101, 102], np.int32))], epoch))
        while 3 not in _sequences(dealer.recv()):
            pass
    finally:
        context.destroy(linger=0)
        identity.release()


def _sequences(frame: bytes) -> set[int]:
    header = messages.parse_header(frame)
    return {reply[0] for reply in messages.parse_reply(frame, header)} if header.type is Type.REPLY else set()
