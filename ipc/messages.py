"""The wire format between front ends and engine. One frame a message, little-endian, no pickle.

Every frame begins with this header (24 bytes)::

    magic "EL" | version u8 | type u8 | count u32 | extra u64 | epoch u64

    type       from       count   extra         then
    HELLO      front end  0       0             nothing
    WELCOME    engine     0       0             msgpack of Welcome
    SUBMIT     front end  items   ids in all    ITEM[count], then int32 ids, item after item
    CANCEL     front end  items   0             u64[count]: sequences
    REPLY      engine     items   compute, ns   RESULT[count]
    BYE        both       0       0             nothing

`epoch` is one life of the engine; frames for another are dropped and counted. A sequence names a text among those of
all front ends. Deadlines are CLOCK_MONOTONIC in ns, which all processes of a machine share. An engine that stops says
BYE, a front end answers BYE after its last SUBMIT, and then the engine answers what it has and ends: nothing is lost.
tests/ipc/test_messages.py pins the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ipc.errors import MalformedFrame
from ipc.slab import Epoch

VERSION = 1
MAGIC = b"EL"
HEADER = struct.Struct("<2sBBIQQ")
_ITEM_STRUCT = struct.Struct("<QqiHH")
ITEM = np.dtype([("sequence", "<u8"), ("deadline", "<i8"), ("length", "<i4"), ("priority", "<u2"), ("flow", "<u2")])
RESULT = np.dtype([("sequence", "<u8"), ("row", "<u4"), ("status", "<u4"), ("wait_ns", "<u8")])
IDS = np.dtype("<i4")

Ids = NDArray[np.int32]


class Type(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    SUBMIT = 3
    CANCEL = 4
    REPLY = 5
    BYE = 6


class Status(IntEnum):
    """What became of an item."""

    OK = 0
    EXPIRED = 1
    REFUSED = 2
    FAILED = 3
    INVALID = 4


class Header(NamedTuple):
    """The first 24 bytes of every frame."""

    type: Type
    items: int
    extra: int
    epoch: Epoch


class Welcome(msgspec.Struct, frozen=True):
    """What an engine tells a front end: which model it serves, from which bundle, and how to map its slab.

    `digest` and `folder` are the bundle's.
    """

    model: str
    digest: str
    folder: str
    rows: int
    dim: int
    device: str
    precision: str


class Submission(NamedTuple):
    """One item as a front end sends it; ids is int32 [length], flow as in `ipc.backlog`."""

    sequence: int
    deadline: int
    priority: int
    ids: Ids
    flow: int = 0


def parse_header(frame: bytes) -> Header:
    """Read the header. Raises MalformedFrame."""
    if len(frame) < HEADER.size:
        raise MalformedFrame(f"a frame of {len(frame)} bytes has no header")
    magic, version, kind, count, extra, epoch = HEADER.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise MalformedFrame(f"magic {magic!r} version {version}: not a frame of version {VERSION}")
    try:
        return Header(Type(kind), count, extra, Epoch(epoch))
    except ValueError:
        raise MalformedFrame(f"frame type {kind} is unknown") from None


def hello() -> bytes:
    """Introduce a front end: its socket's identity says which."""
    return _header(Type.HELLO, 0, 0, Epoch(0))


def welcome(body: Welcome, epoch: Epoch) -> bytes:
    """Answer HELLO."""
    return _header(Type.WELCOME, 0, 0, epoch) + msgspec.msgpack.encode(body)


def parse_welcome(frame: bytes) -> Welcome:
    """Read the body of a WELCOME. Raises MalformedFrame."""
    try:
        return msgspec.msgpack.decode(memoryview(frame)[HEADER.size :], type=Welcome)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(f"WELCOME cannot be read: {error}") from None


def submit(items: Sequence[Submission], epoch: Epoch) -> bytes:
    """All items of one turn of a front end's event loop."""
    table = [_ITEM_STRUCT.pack(i.sequence, i.deadline, len(i.ids), i.priority, i.flow) for i in items]
    ids = [i.ids.tobytes() for i in items]
    total = sum(map(len, ids)) // IDS.itemsize
    return b"".join((_header(Type.SUBMIT, len(items), total, epoch), *table, *ids))


def parse_submit(frame: bytes, header: Header) -> tuple[NDArray[np.void], Ids]:
    """Items as ITEM [count] and ids as int32 [extra], both read in place. Raises MalformedFrame."""
    ids_at = HEADER.size + header.items * ITEM.itemsize
    if len(frame) != ids_at + header.extra * IDS.itemsize:
        raise MalformedFrame(f"SUBMIT of {header.items} items and {header.extra} ids has {len(frame)} bytes")
    items = np.frombuffer(frame, ITEM, header.items, HEADER.size)
    lengths = items["length"]
    if lengths.min(initial=1) < 1 or lengths.sum(dtype=np.int64) != header.extra:
        raise MalformedFrame("SUBMIT's lengths do not add up to its ids")
    if not items["sequence"].all():
        raise MalformedFrame("SUBMIT has the sequence 0, which means no text")
    return items, np.frombuffer(frame, IDS, header.extra, ids_at)


def cancel(sequences: Sequence[int], epoch: Epoch) -> bytes:
    """Take items back that nobody waits for any more."""
    return _header(Type.CANCEL, len(sequences), 0, epoch) + np.array(sequences, "<u8").tobytes()


def parse_cancel(frame: bytes, header: Header) -> NDArray[np.uint64]:
    """Sequences as uint64 [count]. Raises MalformedFrame."""
    if len(frame) != HEADER.size + header.items * 8:
        raise MalformedFrame(f"CANCEL of {header.items} items has {len(frame)} bytes")
    return np.frombuffer(frame, "<u8", header.items, HEADER.size)


def reply(results: Sequence[tuple[int, int, int, int]], compute_ns: int, epoch: Epoch) -> bytes:
    """Outcomes as (sequence, row, status, wait in ns): one message for each front end and batch."""
    return _header(Type.REPLY, len(results), compute_ns, epoch) + np.array(results, RESULT).tobytes()


def parse_reply(frame: bytes, header: Header) -> list[tuple[int, int, int, int]]:
    """Outcomes as (sequence, row, status, wait in ns). Raises MalformedFrame."""
    if len(frame) != HEADER.size + header.items * RESULT.itemsize:
        raise MalformedFrame(f"REPLY of {header.items} items has {len(frame)} bytes")
    results: list[tuple[int, int, int, int]] = np.frombuffer(frame, RESULT, header.items, HEADER.size).tolist()
    return results


def bye(epoch: Epoch) -> bytes:
    """From an engine: I stop, send nothing more. From a front end: that was all."""
    return _header(Type.BYE, 0, 0, epoch)


def _header(kind: Type, count: int, extra: int, epoch: Epoch) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, count, extra, epoch)
