"""Engines that come, die, stop, are the wrong ones or talk nonsense."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from frontend.client import EngineClient
from ipc import messages
from ipc.errors import EngineUnavailable, ModelChanged, PoisonRequest
from ipc.liveness import living_frontends
from ipc.messages import MAGIC, VERSION, Status, Type, Welcome
from ipc.priority import Priority
from ipc.slab import Epoch, remove_slabs
from tests.frontend.peer import (
    DIGEST,
    ROWS,
    TEXTS,
    EnginePeer,
    StartClient,
    StartPeer,
    eventually,
    expected,
    mappings,
    refuse,
    start_call,
    works,
)

pytestmark = pytest.mark.anyio

NO_EPOCH = Epoch(0)


async def lost(client: EngineClient) -> None:
    await eventually(lambda: client.engine is None)


def mapped_read_only(slab: Path) -> list[str]:
    # By the whole path: other tests' slabs may have the same epoch.
    return [line for line in mappings() if "r--s" in line and str(slab) in line]


# deaths


async def test_texts_in_flight_are_sent_again_to_the_next_engine(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    first, client = start_peer(), start_client()
    call = start_call(client, TEXTS)
    texts = await first.received(5)
    first.answer(*texts[:2])
    await eventually(lambda: not first.leased)
    first.die()
    second = start_peer()
    again = await second.received(3)
    assert [text.sequence for text in again] == [text.sequence for text in texts[2:]]
    assert second.frontends != first.frontends, "a lost connection's identity is given up"
    second.answer(*again)
    assert (await call).parts == expected(TEXTS)
    assert not second.leased


async def test_a_reply_that_came_before_the_end_counts(start_peer: StartPeer, start_client: StartClient) -> None:
    first, client = start_peer(), start_client()
    call = start_call(client, TEXTS[:1])
    first.answer(*await first.received(1))
    await eventually(lambda: not first.leased)
    first.die()
    assert (await call).parts == expected(TEXTS[:1])


async def test_a_text_that_was_running_at_three_deaths_is_poison(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    client = start_client()
    poison, bystander = start_call(client, TEXTS[:2]), start_call(client, TEXTS[2:])
    for death in range(3):
        peer = start_peer()
        priorities = {int(text.ids[1]): text.priority for text in await peer.received(5)}
        assert priorities.pop(1) == (Priority.SUSPECT if death else Priority.INTERACTIVE), "it is to run alone"
        assert set(priorities.values()) == {Priority.INTERACTIVE}
        peer.compute(*(text for text in peer.texts if text.ids[1] == 1))
        peer.die()
    with pytest.raises(PoisonRequest):
        await poison
    peer = start_peer()
    peer.answer(*await peer.received(3))
    assert (await bystander).parts == expected(TEXTS[2:])
    assert len(peer.texts) == 3, "what belongs to a poisoned request is not sent again"


async def test_texts_that_only_waited_survive_any_number_of_deaths(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    client = start_client()
    call = start_call(client, TEXTS)
    for death in range(4):
        peer = start_peer()
        texts = await peer.received(5)
        peer.compute(texts[death])  # each runs once
        peer.die()
    peer = start_peer()
    peer.answer(*await peer.received(5))
    assert (await call).parts == expected(TEXTS)


async def test_an_engine_that_never_welcomed_costs_nothing(start_peer: StartPeer, start_client: StartClient) -> None:
    client = start_client()
    call = start_call(client, TEXTS)
    for _ in range(2):
        peer = await start_peer(welcomes=False).joined()
        peer.die()
    peer = start_peer()
    peer.answer(*await peer.received(5))
    assert (await call).parts == expected(TEXTS)


async def test_a_lost_engines_slab_is_let_go(start_peer: StartPeer, start_client: StartClient, run_dir: Path) -> None:
    client = start_client()
    for _ in range(3):
        peer = start_peer()
        await works(client, peer)
        peer.die()
        await lost(client)
        assert mapped_read_only(run_dir / f"slab-{peer.epoch:016x}") == []


# nobody there


async def test_after_the_grace_requests_are_refused_until_an_engine_joins(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    client = start_client(grace_s=0.05)
    with pytest.raises(EngineUnavailable, match="not running") as caught:
        await start_call(client, TEXTS)
    assert caught.value.retry_after
    refused = client.embed(TEXTS, bytes, deadline_ns=0, priority=Priority.BULK)
    with pytest.raises(EngineUnavailable):
        refused.send(None)  # at once: it does not even wait for a turn of the loop
    peer = await start_peer().joined()
    await eventually(lambda: client.engine)
    await works(client, peer)


async def test_the_grace_begins_again_with_each_loss(start_peer: StartPeer, start_client: StartClient) -> None:
    client = start_client(grace_s=0.2)
    peer = start_peer()
    await eventually(lambda: client.engine)
    call = start_call(client, TEXTS)
    await peer.received(5)
    peer.die()
    with pytest.raises(EngineUnavailable):
        await call


async def test_an_engine_of_another_model_is_refused_until_the_right_one_comes(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    wrong, client = start_peer(digest="another"), start_client()
    with pytest.raises(EngineUnavailable, match="cannot load"):
        await start_call(client, TEXTS)
    with pytest.raises(EngineUnavailable, match="cannot load"):
        client.embed(TEXTS, bytes, deadline_ns=0, priority=Priority.BULK).send(None)
    assert (wrong.texts, client.engine) == ([], None)
    wrong.die()
    right = await start_peer().joined()
    await eventually(lambda: client.engine)
    await works(client, right)


async def test_texts_in_flight_fail_when_the_model_changes(start_peer: StartPeer, start_client: StartClient) -> None:
    right, client = start_peer(), start_client()
    call = start_call(client, TEXTS)
    await right.received(5)
    right.die()
    wrong = start_peer(digest="another")
    with pytest.raises(EngineUnavailable, match="cannot load"):
        await call
    assert not wrong.texts


async def test_an_engine_of_a_model_that_can_be_had_is_followed(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    adopted: list[str] = []

    async def adopt(engine: Welcome) -> None:
        await asyncio.sleep(0)
        adopted.append(engine.digest)

    first, client = start_peer(), start_client(adopt=adopt)
    await eventually(lambda: client.engine)
    call = start_call(client, TEXTS)
    await first.received(5)
    first.die()
    second = start_peer(digest="another")
    with pytest.raises(ModelChanged):
        await call
    await works(client, second)
    # What was asked of the first one never reaches the second.
    assert len(second.texts) == 1
    second.die()
    await works(client, start_peer(digest="another"))
    assert adopted == ["another"]


async def test_an_engine_that_goes_while_its_model_is_loaded_is_not_joined(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    loading = asyncio.Event()

    async def adopt(engine: Welcome) -> None:
        loading.set()
        await asyncio.Event().wait()

    wrong, client = start_peer(digest="another"), start_client(adopt=adopt)
    await loading.wait()
    call = start_call(client, TEXTS)
    wrong.die()
    right = await start_peer().joined()
    right.answer(*await right.received(5))
    assert (await call).parts == expected(TEXTS)


@pytest.mark.parametrize("fault", ["gone", "size"])
async def test_an_engine_whose_slab_cannot_be_mapped_is_passed_over(
    start_peer: StartPeer, start_client: StartClient, run_dir: Path, fault: str
) -> None:
    broken = start_peer(welcomes=False)
    if fault == "gone":
        remove_slabs(run_dir)
    else:
        broken.welcome = msgspec.structs.replace(broken.welcome, rows=ROWS + 1)
    client = start_client()
    call = start_call(client, TEXTS)
    await broken.joined()
    broken.send(broken.frontends[0], messages.welcome(broken.welcome, broken.epoch))
    broken.die()
    peer = start_peer()
    peer.answer(*await peer.received(5))
    assert (await call).parts == expected(TEXTS)
    assert not broken.texts


# BYE


async def test_an_engine_that_says_bye_answers_what_it_has_and_gets_no_more(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    stopping, client = start_peer(), start_client()
    before = start_call(client, TEXTS[:2])
    texts = await stopping.received(2)
    stopping.send(texts[0].owner, messages.bye(stopping.epoch))
    await eventually(lambda: Type.BYE in stopping.log)
    after = start_call(client, TEXTS[2:])
    stopping.answer(*texts)
    assert (await before).parts == expected(TEXTS[:2])
    assert stopping.log[-1] is Type.BYE, "after its BYE a front end sends nothing"
    stopping.die()
    following = start_peer()
    following.answer(*await following.received(3))
    assert (await after).parts == expected(TEXTS[2:])
    assert (len(stopping.texts), stopping.leased, following.leased) == (2, 0, 0)


async def test_what_was_submitted_before_bye_was_read_is_sent_before_it_is_answered(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    stopping, client = start_peer(), start_client()
    await works(client, stopping)
    calls = [start_call(client, TEXTS[n : n + 1]) for n in range(5)]
    stopping.send(stopping.frontends[0], messages.bye(stopping.epoch))
    await eventually(lambda: Type.BYE in stopping.log)
    sent = stopping.texts[1:]
    if sent:
        stopping.answer(*sent)
    await eventually(lambda: sum(call.done() for call in calls) == len(sent))
    stopping.die()
    following = start_peer()
    if len(sent) < 5:
        following.answer(*await following.received(5 - len(sent)))
    assert [(await call).parts[0] for call in calls] == expected(TEXTS)


async def test_an_engine_that_says_bye_and_does_not_return_is_given_up(
    start_peer: StartPeer, start_client: StartClient
) -> None:
    peer, client = start_peer(), start_client(grace_s=0.3)
    await works(client, peer)
    peer.send(peer.frontends[0], messages.bye(peer.epoch))
    with pytest.raises(EngineUnavailable, match="not running"):
        await start_call(client, TEXTS)


# frames an engine never sends


def header(kind: int, count: int = 0, extra: int = 0, epoch: int = 0, *, magic: bytes = MAGIC) -> bytes:
    return messages.HEADER.pack(magic, VERSION, kind, count, extra, epoch)


def result(sequence: int, row: int, status: int = Status.OK) -> tuple[int, int, int, int]:
    return sequence, row, status, 0


def nonsense(peer: EnginePeer) -> dict[str, bytes]:
    epoch, other = peer.epoch, Epoch(peer.epoch + 1)
    return {
        "empty": b"",
        "half a header": header(Type.REPLY)[:12],
        "another magic": header(Type.REPLY, epoch=epoch, magic=b"HT"),
        "an unknown type": header(99, epoch=epoch),
        "a type that only front ends send": messages.hello(),
        "a REPLY cut short": messages.reply([result(1, 0)], 0, epoch)[:-1],
        "a REPLY of more items than it has": header(Type.REPLY, 2**31, 0, epoch),
        "a REPLY of another epoch": messages.reply([result(1, 0)], 0, other),
        "a REPLY to nothing": messages.reply([result(2**60, 0)], 0, epoch),
        "a REPLY with an unknown status": messages.reply([result(2**60, 0, 77)], 0, epoch),
        "a REPLY of no items": messages.reply([], 0, epoch),
        "a row outside the slab": messages.reply([result(2**60, ROWS)], 0, epoch),
        "a BYE of another epoch": messages.bye(other),
        "a WELCOME that is no msgpack": header(Type.WELCOME, epoch=epoch) + b"\xc1",
        "a WELCOME that lacks fields": header(Type.WELCOME, epoch=epoch) + msgspec.msgpack.encode({"model": "m"}),
    }


NONSENSE = [
    "empty",
    "half a header",
    "another magic",
    "an unknown type",
    "a type that only front ends send",
    "a REPLY cut short",
    "a REPLY of more items than it has",
    "a REPLY of another epoch",
    "a REPLY to nothing",
    "a REPLY with an unknown status",
    "a REPLY of no items",
    "a row outside the slab",
    "a BYE of another epoch",
    "a WELCOME that is no msgpack",
    "a WELCOME that lacks fields",
]


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_breaks_nothing(start_peer: StartPeer, start_client: StartClient, name: str) -> None:
    peer, client = start_peer(), start_client()
    call = start_call(client, TEXTS)
    texts = await peer.received(5)
    frames = nonsense(peer)
    assert list(frames) == NONSENSE
    peer.send(texts[0].owner, frames[name])
    peer.answer(*texts)
    assert (await call).parts == expected(TEXTS)
    assert not peer.leased
    await works(client, peer)


async def test_a_row_outside_the_slab_fails_only_its_own_call(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    bad, good = start_call(client, TEXTS[:1]), start_call(client, TEXTS[1:2])
    one, other = await peer.received(2)
    results = [result(one.sequence, ROWS), result(other.sequence, peer.lend(other))]
    peer.send(one.owner, messages.reply(results, 0, peer.epoch))
    assert (await good).parts == expected(TEXTS[1:2])
    with pytest.raises(Exception):  # noqa: B017 - any error will do, as long as the call ends
        await bad
    assert not peer.leased


@pytest.mark.parametrize(
    "frame", [messages.reply([result(1, 0)], 0, NO_EPOCH), messages.bye(NO_EPOCH), header(Type.WELCOME)]
)
async def test_nonsense_before_the_welcome_breaks_nothing(
    start_peer: StartPeer, start_client: StartClient, frame: bytes
) -> None:
    peer, client = start_peer(welcomes=False), start_client()
    call = start_call(client, TEXTS)
    await peer.joined()
    peer.send(peer.frontends[0], frame)
    peer.send(peer.frontends[0], messages.welcome(peer.welcome, peer.epoch))
    peer.answer(*await peer.received(5))
    assert (await call).parts == expected(TEXTS)


# close


def open_files(run_dir: Path) -> set[str]:
    """The numbers of this process's descriptors, but for files elsewhere (other tests' engines look at their locks
    all the time) and for the slabs that this test's own engines keep open."""
    found = set()
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # closed meanwhile
                target = os.readlink(entry)  # noqa: PTH115
                if not target.startswith("/") or target.startswith(f"{run_dir}/frontend-"):
                    found.add(entry.name)
    return found


@pytest.mark.parametrize("engines", [0, 1, 2])
async def test_close_leaves_nothing_behind(start_peer: StartPeer, run_dir: Path, engines: int) -> None:
    gc.collect()
    before = open_files(run_dir)
    client = EngineClient(run_dir, DIGEST, refuse, most_flights=9, most_held=9, most_queue_s=30, grace_s=9, stall_s=9)
    opened = open_files(run_dir) - before
    for _ in range(engines):
        peer = start_peer()
        await works(client, peer)
        opened |= open_files(run_dir) - before
        peer.die()
        await lost(client)
    client.close()
    loop = asyncio.get_running_loop()
    assert opened
    assert not [number for number in opened if loop.remove_reader(int(number))]
    assert living_frontends(run_dir) == set()
    gc.collect()
    assert open_files(run_dir) == before
    assert not [line for line in mappings() if "r--s" in line and str(run_dir) in line]


async def test_close_ends_the_calls_in_flight(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    sent = start_call(client, TEXTS)
    await peer.received(5)
    unsent = start_call(client, TEXTS)
    await asyncio.sleep(0)
    client.close()
    for call in (sent, unsent):
        with pytest.raises(EngineUnavailable, match="stopping"):
            await call
    # What a call does on its way out needs a turn of its own, and must not touch what is closed.
    await asyncio.sleep(0)


async def test_close_gives_the_rows_back(start_peer: StartPeer, start_client: StartClient, run_dir: Path) -> None:
    peer, client = start_peer(), start_client()
    await works(client, peer)
    assert living_frontends(run_dir) == set(peer.frontends)
    client.close()
    assert living_frontends(run_dir) == set()
    assert np.count_nonzero(peer.slab.leases) == 0
