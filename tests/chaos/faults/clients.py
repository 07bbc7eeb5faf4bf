"""Faults of clients, and of a program that speaks to the engine as no front end does. As in `processes`."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import zmq

from ipc import messages
from ipc.liveness import FrontendIdentity
from ipc.messages import Submission
from ipc.slab import Epoch
from ipc.sockets import ENGINE_SOCKET, MAX_MESSAGE_BYTES, routing_id
from perf.http import Target, build_request
from perf.stack import KEY
from tests.chaos.faults.processes import pause, stopped
from tests.chaos.faults.world import World
from tests.system.processes import boot_clock, frontend_ids

STORM = 60
SLOW = 8
# With 384 numbers each an answer that no socket's buffers hold.
RAW_TEXTS = 600
SECONDS = 30.0
RESET = struct.pack("ii", 1, 0)
WELCOME_MS = 1000
# So many abandoned connections are kept open before the oldest end.
MOST_LEFT_OPEN = 200


def disconnect_storm(world: World) -> float:
    """Many clients at once that hang up before their answers."""
    with contextlib.ExitStack() as ends:
        clients = [ends.enter_context(connected(world)) for _ in range(STORM)]
        for client in clients:
            client.sendall(request(world, 4))
        pause(world, 0.05)
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return boot_clock()


def slow_writers(world: World) -> float:
    """Requests that come in small pieces; each gets its vector all the same."""
    texts = [world.new_text() for _ in range(SLOW)]
    with contextlib.ExitStack() as ends:
        clients = [ends.enter_context(connected(world)) for _ in texts]
        wholes = [one_text(world, text) for text in texts]
        for begin in range(0, max(map(len, wholes)), 40):
            for client, whole in zip(clients, wholes, strict=True):
                client.sendall(whole[begin : begin + 40])
            time.sleep(0.02)
        for client, text in zip(clients, texts, strict=True):
            note(world, text, read_answer(client))
    return boot_clock()


def half_open(world: World) -> float:
    """Clients that send half a request, or nothing, and are never heard of again."""
    for number in range(SLOW):
        client = connected(world)
        whole = one_text(world, world.new_text())
        client.sendall(whole[: number * len(whole) // SLOW])
        world.left_open.append(client)
    while len(world.left_open) > MOST_LEFT_OPEN:
        close(world.left_open.pop(0))
    return boot_clock()


def slow_readers(world: World) -> float:
    """Raw answers that nobody reads for a while: their rows are lent until somebody does, or are copied."""
    texts = [world.chance.choices(sorted(world.bits), k=RAW_TEXTS) for _ in range(SLOW // 2)]
    with contextlib.ExitStack() as ends:
        clients = [ends.enter_context(connected(world, buffer=4096)) for _ in texts]
        for client, asked in zip(clients, texts, strict=True):
            client.sendall(raw_request(world, asked))
        pause(world)
        for client, asked in zip(clients, texts, strict=True):
            status, body = read_answer(client)
            if status != 200 or body != b"".join(world.bits[text] for text in asked):
                world.wrong.append(f"raw answer to {len(asked)} texts: {status}")
    return boot_clock()


def slab_full(world: World) -> float:
    """A stopped front end that has asked for more rows than its share, and slow readers beside it."""
    pid = world.chance.choice(world.frontends())
    with contextlib.ExitStack() as ends:
        clients = [ends.enter_context(connected(world, buffer=4096)) for _ in range(SLOW)]
        for client in clients:
            client.sendall(raw_request(world, [world.new_text() for _ in range(100)]))
        pause(world, 0.1)
        with stopped(pid):
            pause(world)
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    return boot_clock()


def rogue_with_a_lock(world: World) -> float:
    """A front end by its lock, welcomed, that sends good work, bad frames and nonsense, and frees no row."""
    run_dir = world.stack.run_dir
    identity = FrontendIdentity(run_dir)
    try:
        with dealer(world, routing_id(identity.id)) as socket_:
            socket_.send(messages.hello())
            if socket_.poll(WELCOME_MS):
                epoch = messages.parse_header(socket_.recv()).epoch
                for frame in frames(world, epoch):
                    socket_.send(frame)
                pause(world, 0.3)
    finally:
        identity.release()
    return boot_clock()


def rogue_without_a_lock(world: World) -> float:
    """One that nobody welcomes, or that calls itself by a living front end's name."""
    living = sorted(frontend_ids(world.stack.run_dir))
    names = [b"rogue", b"", routing_id(1), routing_id(world.chance.choice(living)) if living else b"F"]
    with dealer(world, world.chance.choice(names)) as socket_:
        for frame in [messages.hello(), *frames(world, Epoch(world.chance.getrandbits(63)))]:
            with contextlib.suppress(zmq.Again):
                socket_.send(frame)
        pause(world, 0.3)
    return boot_clock()


def oversize_frame(world: World) -> float:
    """More than a frame may have: its connection ends, and no memory is taken for it."""
    with dealer(world, b"large") as socket_, contextlib.suppress(zmq.Again):
        socket_.send(bytes(MAX_MESSAGE_BYTES + 1))
        pause(world, 0.3)
    return boot_clock()


def no_zeromq(world: World) -> float:
    """Bytes of chance on the engine's socket."""
    for size in (0, 1, 10, 64, 10_000):
        with socket.socket(socket.AF_UNIX) as raw, contextlib.suppress(OSError):
            raw.connect(str(world.stack.run_dir / ENGINE_SOCKET))
            # ZeroMQ's own greeting first, for those that are to come further.
            raw.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f"[: size % 11] + world.chance.randbytes(size))
            pause(world, 0.05)
    return boot_clock()


def frames(world: World, epoch: Epoch) -> Iterator[bytes]:
    """Work that is never read, the same damaged, and nonsense."""
    ids = np.arange(1, 9, dtype=np.int32)
    good = messages.submit([Submission(world.chance.getrandbits(63) | 1, 2**62, n % 4, ids) for n in range(20)], epoch)
    yield good
    for _ in range(20):
        damaged = bytearray(good)
        damaged[world.chance.randrange(len(damaged))] ^= 1 << world.chance.randrange(8)
        yield bytes(damaged)
    yield messages.submit([Submission(5, -1, 0, np.array([-1], np.int32))], epoch)
    yield messages.cancel([1, 2, 3], epoch)
    yield messages.reply([(1, 1, 0, 0)], 0, epoch)
    yield b""
    yield world.chance.randbytes(1000)


@contextlib.contextmanager
def dealer(world: World, name: bytes) -> Iterator[zmq.Socket[bytes]]:
    """A DEALER of this name at the engine."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket_ = context.socket(zmq.DEALER)
    if name:
        socket_.setsockopt(zmq.ROUTING_ID, name)
    socket_.setsockopt(zmq.SNDTIMEO, WELCOME_MS)
    socket_.connect(f"ipc://{world.stack.run_dir / ENGINE_SOCKET}")
    try:
        yield socket_
    finally:
        context.destroy(linger=0)


def connected(world: World, buffer: int = 0) -> socket.socket:
    """A client's socket; `buffer` bounds what the kernel reads ahead."""
    client = socket.socket()
    client.settimeout(SECONDS)
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", world.stack.port))
    return client


def close(client: object) -> None:
    """End what `half_open` left."""
    assert isinstance(client, socket.socket)
    client.close()


def one_text(world: World, text: str) -> bytes:
    """A request for one vector in base64."""
    return build_request(Target("127.0.0.1", world.stack.port, KEY), [text], encoding_format="base64")


def request(world: World, texts: int) -> bytes:
    """A request for new texts."""
    return build_request(Target("127.0.0.1", world.stack.port, KEY), [world.new_text() for _ in range(texts)])


def raw_request(world: World, texts: list[str]) -> bytes:
    """A request whose answer is float32 as it is in the slab."""
    body = json.dumps({"input": texts, "truncate": True}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\nX-Priority: bulk\r\n"
        f"Accept: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """Status and body; status 0 where the connection ended first."""
    try:
        with client.makefile("rb") as file:
            status = int(file.readline().split()[1])
            length = 0
            while (line := file.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            return status, file.read(length)
    except (OSError, IndexError):
        return 0, b""


def note(world: World, text: str, answer: tuple[int, bytes]) -> None:
    """Keep what is not the text's own vector."""
    status, body = answer
    vector = body.partition(b'"embedding":"')[2].partition(b'"')[0]
    if status != 200 or vector != base64.b64encode(world.alone.bits(text)):
        world.wrong.append(f"{text}: {status}")
