from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from frontend.outbox import BUSY_FLIGHTS
from ipc.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Overloaded,
    RequestError,
)
from ipc.messages import Status
from ipc.priority import Priority
from ipc.slab import Row, slab_file
from tests.frontend.peer import (
    COMPUTE_NS,
    TEXTS,
    WAIT_NS,
    StartClient,
    StartPeer,
    eventually,
    expected,
    ids,
    mappings,
    start_call,
    to_bytes,
    works,
)

pytestmark = pytest.mark.anyio


# rows and leases


async def test_rows_are_read_in_place_and_cannot_be_written(
    start_peer: StartPeer, start_client: StartClient, run_dir: Path
) -> None:
    peer, client = start_peer(), start_client()
    seen = []

    def take(row: Row) -> bytes:
        seen.append((row.ctypes.data, row.flags.writeable))
        with suppress(ValueError):
            row.flags.writeable = True
        seen.append((row.ctypes.data + row.nbytes - 1, row.flags.writeable))
        return b""

    call = start_call(client, TEXTS[:1], take)
    peer.answer(*await peer.received(1))
    await call
    mapped = []
    for line in mappings():
        if line.endswith(str(slab_file(run_dir, peer.epoch, "rows"))):
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            mapped += [line.split()[1] for address, _ in seen if begin <= address < end]
    assert mapped == ["r--s", "r--s"], "the first and the last byte lie in the file, mapped shared and read-only"
    assert not any(writable for _, writable in seen)


async def test_a_lease_ends_right_after_take(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    leased = []

    def take(row: Row) -> bytes:
        leased.append(peer.leased)
        return b""

    call = start_call(client, TEXTS[:3], take)
    peer.answer(*await peer.received(3))
    await call
    assert (leased, peer.leased) == ([3, 2, 1], 0)


async def test_a_lease_ends_when_take_fails(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()

    def take(row: Row) -> bytes:
        raise OverflowError("not encodable")

    call = start_call(client, TEXTS[:3], take)
    peer.answer(*await peer.received(3))
    with pytest.raises(OverflowError):
        await call
    assert not peer.leased
    await works(client, peer)


async def test_without_take_the_rows_are_the_callers_until_it_releases_them(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS[:3], None)
    peer.answer(*reversed(await peer.received(3)))
    done = await call
    assert [done.held[n].rows[done.held[n].number].tobytes() for n in range(3)] == expected(TEXTS[:3])
    assert peer.leased == 3
    done.release()
    assert not peer.leased


@pytest.mark.parametrize("ending", ["cancelled", "error"])
async def test_rows_that_are_held_come_back_where_the_call_fails(
    start_peer: StartPeer, start_client: StartClient, ending: str
) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS[:3], None)
    first, *_, last = await peer.received(3)
    peer.answer(first)
    if ending == "error":
        peer.answer(last, status=Status.FAILED)
    else:
        await eventually(lambda: client.last_vector_ns)
        call.cancel()
    with suppress(EngineFailure, asyncio.CancelledError):
        await call
    assert not peer.leased
    await works(client, peer)


@pytest.mark.parametrize(
    "groups", [[[4, 3, 2, 1, 0]], [[2], [0, 4], [3, 1]], [[4], [3], [2], [1], [0]]], ids=["reversed", "mixed", "single"]
)
async def test_parts_come_in_order_however_replies_come(
    start_peer: StartPeer, start_client: StartClient, groups: list[list[int]]
) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS)
    texts = await peer.received(5)
    for group in groups:
        peer.answer(*(texts[n] for n in group))
    done = await call
    assert done.parts == expected(TEXTS)
    assert (done.wait_ns, done.compute_ns) == (WAIT_NS, COMPUTE_NS)
    assert not peer.leased


# submit and cancel


async def test_what_one_turn_submits_is_one_message(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    await works(client, peer)
    calls = [start_call(client, TEXTS[n : n + 2]) for n in range(3)]
    texts = await peer.received(7)
    assert [len(message) for message in peer.submits] == [1, 6]
    peer.answer(*texts[1:])
    assert [(await call).parts for call in calls] == [expected(TEXTS[n : n + 2]) for n in range(3)]


async def test_a_text_arrives_as_it_was_submitted(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    deadline = time.monotonic_ns() + 12_345_678_912
    call = start_call(client, TEXTS[2:3], deadline_ns=deadline, priority=Priority.BULK)
    (text,) = await peer.received(1)
    assert (text.deadline, text.priority) == (deadline, Priority.BULK)
    assert np.array_equal(text.ids, TEXTS[2])
    call.cancel()


async def test_no_texts_need_no_engine(start_client: StartClient) -> None:
    assert (await start_call(start_client(), [])).parts == []


async def test_a_cancelled_call_takes_back_what_was_sent_and_not_answered(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    peer, client = start_peer(), start_client()
    sent = start_call(client, TEXTS[:3])
    texts = list(await peer.received(3))
    peer.answer(texts[1])
    await eventually(lambda: not peer.leased)
    unsent = client.embed(TEXTS, to_bytes, deadline_ns=texts[0].deadline, priority=Priority.INTERACTIVE)
    unsent.send(None)
    unsent.close()  # in the turn that launched it, so nothing was sent yet
    sent.cancel()
    await eventually(lambda: peer.cancelled)
    assert peer.cancelled == [texts[0].sequence, texts[2].sequence]
    assert len(peer.texts) == 3
    await works(client, peer)
    assert len(peer.cancelled) == 2


async def test_a_call_cancelled_before_the_engine_came_is_never_sent(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    client = start_client()
    call = start_call(client, TEXTS)
    await asyncio.sleep(0)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    peer = await start_peer().joined()
    await works(client, peer)
    assert (len(peer.texts), peer.cancelled) == (1, [])


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_a_late_reply_still_frees_its_rows(start_peer: StartPeer, start_client: StartClient, ending: str) -> None:
    peer, client = start_peer(), start_client()
    await works(client, peer)
    soon = time.monotonic_ns() + 30_000_000
    call = start_call(client, TEXTS, deadline_ns=soon if ending == "expired" else None)
    texts = (await peer.received(6))[1:]
    if ending == "cancelled":
        call.cancel()
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await call
    peer.answer(*texts)
    await eventually(lambda: not peer.leased)
    await works(client, peer)


# errors


@pytest.mark.parametrize(
    ("status", "error", "comes_back"),
    [
        (Status.EXPIRED, DeadlineExceeded, False),
        (Status.REFUSED, Overloaded, True),
        (Status.FAILED, EngineFailure, False),
        (Status.INVALID, EngineFailure, False),
    ],
)
async def test_a_status_becomes_an_error(
    start_peer: StartPeer, start_client: StartClient, status: Status, error: type[RequestError], comes_back: bool
) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS[:3])
    texts = list(await peer.received(3))
    peer.answer(texts[1], status=status)
    with pytest.raises(error) as caught:
        await call
    assert (caught.value.retry_after is not None) == comes_back
    await eventually(lambda: peer.cancelled == [texts[0].sequence, texts[2].sequence])


async def test_the_first_error_wins(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS[:2])
    one, other = await peer.received(2)
    peer.answer(one, status=Status.REFUSED)
    peer.answer(other, status=Status.FAILED)
    with pytest.raises(Overloaded):
        await call


async def test_more_texts_than_the_bound_are_refused(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client(most_flights=6)
    call = start_call(client, TEXTS[:3])
    await peer.received(3)
    with pytest.raises(Overloaded) as caught:
        await start_call(client, TEXTS[:1])
    assert caught.value.retry_after
    others = start_call(client, TEXTS[:1], flow=1), start_call(client, TEXTS[:1], priority=Priority.BULK)
    peer.answer(*await peer.received(5))
    await asyncio.gather(call, *others)
    await works(client, peer)


async def test_a_text_under_way_is_shared_within_a_flow(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    calls = [start_call(client, TEXTS[:1], keys=[b"key"], flow=flow) for flow in (1, 1, 2, 2)]
    texts = await peer.received(2)
    assert [text.flow for text in texts] == [1, 2]
    peer.answer(*texts)
    assert [(await call).parts for call in calls] == [expected(TEXTS[:1])] * 4


async def test_what_waited_in_an_engine_that_hangs_refuses_nobody(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    peer, client = start_peer(), start_client()
    await works(client, peer)
    peer.pile_up(10**6, 0)
    assert client.gate.refusal(Priority.INTERACTIVE, 0, 1.0)
    client.breaker.open("It hangs.")
    assert client.gate.refusal(Priority.INTERACTIVE, 0, 1.0) is None
    client.breaker.close()
    assert client.gate.refusal(Priority.INTERACTIVE, 0, 1.0)


async def test_a_deadline_passes_with_an_engine(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    await works(client, peer)
    with pytest.raises(DeadlineExceeded):
        await start_call(client, TEXTS, deadline_ns=time.monotonic_ns() + 20_000_000)
    await eventually(lambda: sorted(peer.cancelled) == [text.sequence for text in peer.texts[1:]])


@pytest.mark.parametrize("ahead", [20_000_000, 0, -1_000_000_000], ids=["soon", "now", "long ago"])
async def test_a_deadline_passes_without_an_engine(start_client: StartClient, ahead: int) -> None:
    with pytest.raises(EngineUnavailable) as caught:
        await start_call(start_client(), TEXTS, deadline_ns=time.monotonic_ns() + ahead)
    assert caught.value.retry_after


async def test_texts_of_a_busy_front_end_leave_together(
    start_peer: StartPeer, start_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they came in different turns of the loop; the first ones, when little is under way, leave at once."""
    monkeypatch.setattr("frontend.outbox.BUSY_FLUSH_SECONDS", 1.0)
    peer, client = start_peer(), start_client()
    await works(client, peer)
    first = start_call(client, [ids(101, n, 102) for n in range(BUSY_FLIGHTS)])
    await peer.received(1 + BUSY_FLIGHTS)
    late = []
    for text in TEXTS:
        late.append(start_call(client, [text]))
        await asyncio.sleep(0)
    await peer.received(1 + BUSY_FLIGHTS + len(TEXTS))
    assert [len(submit) for submit in peer.submits] == [1, BUSY_FLIGHTS, len(TEXTS)]
    peer.answer(*peer.texts[1:])
    await asyncio.gather(first, *late)
