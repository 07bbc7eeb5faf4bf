"""The cache before a real client and an engine that answers only what a test tells it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frontend.cache import ENTRY_BYTES, HITS_PER_TURN, CachedEngine, VectorCache
from frontend.client import EngineClient
from frontend.responses import sliced
from ipc.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    Overloaded,
    PoisonRequest,
    RequestError,
)
from ipc.messages import Status
from ipc.priority import Priority
from ipc.slab import Row, slab_file
from tests.frontend.peer import (
    DIGEST,
    DIM,
    TEXTS,
    EnginePeer,
    StartClient,
    StartPeer,
    eventually,
    expected,
    ids,
    mappings,
    start_call,
    to_bytes,
    vector,
)

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
Cached = Callable[..., CachedEngine]


@pytest.fixture
async def cached(start_client: StartClient) -> Cached:
    def start(most_bytes: int = 1 << 20, digest: str = DIGEST, grace_s: float = 30.0) -> CachedEngine:
        return CachedEngine(start_client(grace_s=grace_s), VectorCache(most_bytes), digest)

    return start


def later(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * SECOND)


async def known(engine: CachedEngine, peer: EnginePeer, count: int = 1) -> None:
    """The vectors of the first texts are in the cache from now on."""
    before = len(peer.texts)
    call = start_call(engine, TEXTS[:count])
    peer.answer(*(await peer.received(before + count))[before:])
    await call


async def joined(engine: CachedEngine, count: int) -> None:
    await eventually(lambda: engine.counters.shared == count)


# hits and misses


async def test_what_was_computed_is_not_asked_for_again(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer, 3)
    again = await start_call(engine, TEXTS[:3])
    assert (again.parts, again.hits) == (expected(TEXTS[:3]), 3)
    assert (again.wait_ns, again.compute_ns) == (0, 0)
    assert len(peer.texts) == 3
    assert (engine.counters.hits, engine.counters.misses) == (3, 3)
    assert engine.counters.bytes == 3 * (4 * DIM + ENTRY_BYTES)


async def test_only_misses_are_sent_and_the_answer_is_in_order(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer, 2)
    mixed = [TEXTS[4], TEXTS[0], TEXTS[3], TEXTS[1], TEXTS[2]]
    call = start_call(engine, mixed)
    texts = (await peer.received(5))[2:]
    assert [int(text.ids[1]) for text in texts] == [4, 3, 2]
    peer.answer(*reversed(texts))
    done = await call
    assert (done.parts, done.hits) == (expected(mixed), 2)


async def test_misses_are_encoded_from_the_slab_itself(start_peer: StartPeer, cached: Cached, run_dir: Path) -> None:
    peer, engine = start_peer(), cached()
    seen: list[tuple[int, bool]] = []

    def take(row: Row) -> bytes:
        seen.append((row.ctypes.data, row.flags.writeable))
        return row.tobytes()

    call = start_call(engine, TEXTS[:1], take)
    peer.answer(*await peer.received(1))
    await call
    await start_call(engine, TEXTS[:1], take)
    (line,) = [
        line for line in mappings() if line.endswith(str(slab_file(run_dir, peer.epoch, "rows"))) and "r--s" in line
    ]
    begin, end = (int(address, 16) for address in line.split()[0].split("-"))
    assert [begin <= address < end for address, _ in seen] == [True, False], "a hit is a copy of the process's own"
    assert not any(writable for _, writable in seen)


async def test_a_kept_vector_outlives_its_row_and_its_engine(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached(grace_s=0.01)
    await known(engine, peer)
    peer.slab.rows[:] = 0
    peer.die()
    with pytest.raises(EngineUnavailable):
        await start_call(engine, TEXTS[1:2])
    assert (await start_call(engine, TEXTS[:1])).parts == expected(TEXTS[:1])


async def test_fewer_dimensions_hit_the_whole_vector(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    first = start_call(engine, TEXTS[:1], sliced(to_bytes, 3))
    peer.answer(*await peer.received(1))
    assert len((await first).parts[0]) == 3 * 4
    whole = await start_call(engine, TEXTS[:1])
    head = vector(TEXTS[0])[:2]
    two = await start_call(engine, TEXTS[:1], sliced(to_bytes, 2))
    assert (whole.parts, whole.hits) == (expected(TEXTS[:1]), 1)
    assert np.array_equal(np.frombuffer(two.parts[0], np.float32), head / np.linalg.norm(head))


async def test_what_take_raises_on_a_hit_ends_the_call(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer)

    def take(row: Row) -> bytes:
        raise OverflowError("not encodable")

    with pytest.raises(OverflowError):
        await start_call(engine, TEXTS[:1], take)


async def test_another_model_or_other_ids_are_other_keys(start_client: StartClient) -> None:
    engines = [CachedEngine(start_client(), VectorCache(1), model) for model in ("a", "b", "ab")]
    texts = [ids(1), ids(1, 0), ids(0, 1), ids(256), ids(1, 1)]
    keys = {engine._key(text) for engine in engines for text in texts}
    assert len(keys) == len(engines) * len(texts)


async def test_many_hits_leave_the_loop_to_others_in_between(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer)
    call = start_call(engine, [TEXTS[0]] * (3 * HITS_PER_TURN))
    turns = 0
    while not call.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 3


async def test_a_small_cache_keeps_the_newest(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached(2 * (4 * DIM + ENTRY_BYTES))
    await known(engine, peer, 3)
    call = start_call(engine, TEXTS[:3])
    assert len(await peer.received(4)) == 4
    peer.answer(peer.texts[3])
    assert (await call).parts == expected(TEXTS[:3])
    assert engine.counters.evicted >= 1


# one flight for all who ask


async def test_a_hundred_at_once_cost_one_computation(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    calls = [start_call(engine, TEXTS[:1]) for _ in range(50)]
    await peer.received(1)
    calls += [start_call(engine, TEXTS[:1]) for _ in range(50)]
    await joined(engine, 99)
    peer.answer(peer.texts[0])
    assert [(await call).parts for call in calls] == [expected(TEXTS[:1])] * 100
    assert len(peer.texts) == 1
    assert (engine.counters.misses, engine.counters.shared, engine.counters.hits) == (100, 99, 0)
    assert not peer.leased


async def test_identical_texts_of_one_request_are_one(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    texts = [TEXTS[n] for n in (0, 1, 0, 0, 2, 1)]
    call = start_call(engine, texts)
    peer.answer(*await peer.received(3))
    assert (await call).parts == expected(texts)
    assert len(peer.texts) == 3


async def test_requests_that_share_some_texts(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    one, other = start_call(engine, TEXTS[:3]), start_call(engine, TEXTS[1:])
    texts = await peer.received(5)
    assert len(texts) == 5
    peer.answer(*texts)
    assert ((await one).parts, (await other).parts) == (expected(TEXTS[:3]), expected(TEXTS[1:]))


@pytest.mark.parametrize("who", [0, 1], ids=["the first", "another"])
async def test_one_that_is_cancelled_takes_nothing_from_the_other(
    start_peer: StartPeer, cached: Cached, who: int
) -> None:
    peer, engine = start_peer(), cached()
    calls = [start_call(engine, TEXTS[:2]) for _ in range(2)]
    await peer.received(2)
    await joined(engine, 2)
    calls[who].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[who]
    peer.answer(*peer.texts)
    assert (await calls[1 - who]).parts == expected(TEXTS[:2])
    assert (len(peer.texts), peer.cancelled) == (2, [])


async def test_a_client_that_hung_up_takes_nothing_from_the_other(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    lost = asyncio.get_running_loop().create_future()
    first, second = start_call(engine, TEXTS[:1], lost=lost), start_call(engine, TEXTS[:1])
    await peer.received(1)
    lost.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await first
    peer.answer(*peer.texts)
    assert (await second).parts == expected(TEXTS[:1])


async def test_the_last_to_leave_takes_the_text_back(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    calls = [start_call(engine, TEXTS[:1]) for _ in range(3)]
    await peer.received(1)
    for call in calls:
        assert not peer.cancelled
        call.cancel()
        await asyncio.wait([call])
    await eventually(lambda: peer.cancelled)
    assert peer.cancelled == [peer.texts[0].sequence]
    afresh = start_call(engine, TEXTS[:1])
    peer.answer((await peer.received(2))[1])
    assert (await afresh).parts == expected(TEXTS[:1])


async def test_a_shorter_deadline_is_the_askers_own(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    first = start_call(engine, TEXTS[:1], deadline_ns=later(0.03))
    second = start_call(engine, TEXTS[:1])
    await peer.received(1)
    with pytest.raises(DeadlineExceeded):
        await first
    peer.answer(*peer.texts)
    assert (await second).parts == expected(TEXTS[:1])
    assert (len(peer.texts), peer.cancelled) == (1, [])


async def test_what_expired_by_the_first_deadline_is_sent_again_for_the_others(
    start_peer: StartPeer, cached: Cached
) -> None:
    peer, engine = start_peer(), cached()
    deadlines = [later(40), later(60), later(50)]
    first, *others = [start_call(engine, TEXTS[:1], deadline_ns=deadline) for deadline in deadlines]
    await peer.received(1)
    await joined(engine, 2)
    peer.answer(peer.texts[0], status=Status.EXPIRED)
    with pytest.raises(DeadlineExceeded):
        await first
    again = (await peer.received(2))[1]
    assert again.sequence != peer.texts[0].sequence
    assert again.deadline == deadlines[1], "the latest of those who wait"
    peer.answer(again)
    assert [(await call).parts for call in others] == [expected(TEXTS[:1])] * 2
    assert not peer.cancelled


async def test_a_text_that_expired_by_every_deadline_is_not_sent_again(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    deadline = later(60)
    calls = [start_call(engine, TEXTS[:1], deadline_ns=deadline) for _ in range(2)]
    await peer.received(1)
    peer.answer(peer.texts[0], status=Status.EXPIRED)
    for call in calls:
        with pytest.raises(DeadlineExceeded):
            await call
    await known(engine, peer)
    assert len(peer.texts) == 2


@pytest.mark.parametrize(("status", "error"), [(Status.FAILED, EngineFailure), (Status.REFUSED, Overloaded)])
async def test_the_engines_failure_is_everybodys_and_nobodys_afterwards(
    start_peer: StartPeer, cached: Cached, status: Status, error: type[RequestError]
) -> None:
    peer, engine = start_peer(), cached()
    calls = [start_call(engine, TEXTS[:1]) for _ in range(3)]
    peer.answer(*await peer.received(1), status=status)
    raised = []
    for call in calls:
        with pytest.raises(error) as caught:
            await call
        raised.append(caught.value)
    assert len(set(map(id, raised))) == 3, "one that is raised twice keeps growing its traceback"
    await known(engine, peer)


async def test_another_texts_failure_is_not_that_of_those_who_share(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    first, second = start_call(engine, TEXTS[:2]), start_call(engine, TEXTS[1:2])
    texts = await peer.received(2)
    await joined(engine, 1)
    peer.answer(texts[0], status=Status.FAILED)
    with pytest.raises(EngineFailure):
        await first
    peer.answer(texts[1])
    assert (await second).parts == expected(TEXTS[1:2])
    assert not peer.cancelled


async def test_one_askers_encoder_fails_alone(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()

    def take(row: Row) -> bytes:
        raise OverflowError("not encodable")

    first, second = start_call(engine, TEXTS[:1], take), start_call(engine, TEXTS[:1])
    peer.answer(*await peer.received(1))
    with pytest.raises(OverflowError):
        await first
    assert (await second).parts == expected(TEXTS[:1])
    assert (await start_call(engine, TEXTS[:1])).hits == 1
    assert not peer.leased


# rows that are held


async def test_rows_are_held_by_one_and_copied_for_the_others(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer)
    texts = [TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[1]]
    raw, other, encoded = start_call(engine, texts, None), start_call(engine, texts, None), start_call(engine, texts)
    peer.answer(*(await peer.received(3))[1:])
    calls = [await raw, await other, await encoded]
    assert [sorted(call.held) for call in calls] == [[0, 2], [], []]
    assert peer.leased == 2
    peer.slab.rows[peer.slab.leases == 0] = np.nan
    for call in calls:
        rows = {index: lent.rows[lent.number].tobytes() for index, lent in call.held.items()}
        assert [rows.get(n, part) for n, part in enumerate(call.parts)] == expected(texts)
        assert call.hits == 1
    calls[0].release()
    assert not peer.leased


async def test_rows_of_a_call_that_failed_are_given_back(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    raw, other = start_call(engine, TEXTS[:2], None), start_call(engine, TEXTS[:1], None)
    texts = await peer.received(2)
    await joined(engine, 1)
    peer.answer(texts[0])
    assert (await other).parts == expected(TEXTS[:1]), "the other one holds the row"
    peer.answer(texts[1], status=Status.FAILED)
    with pytest.raises(EngineFailure):
        await raw
    assert not peer.leased


# priorities


async def test_an_interactive_asker_hurries_a_bulk_text(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    bulk = start_call(engine, TEXTS[:1], priority=Priority.BULK)
    await peer.received(1)
    interactive = start_call(engine, TEXTS[:1])
    slow, fast = await peer.received(2)
    assert (slow.priority, fast.priority) == (Priority.BULK, Priority.INTERACTIVE)
    await eventually(lambda: peer.cancelled == [slow.sequence])
    peer.answer(fast)
    assert (await bulk).parts == (await interactive).parts == expected(TEXTS[:1])
    assert not peer.leased


async def test_a_text_that_was_not_sent_yet_leaves_once_with_the_higher_priority(
    start_peer: StartPeer, cached: Cached
) -> None:
    peer, engine = start_peer(), cached()
    await known(engine, peer)
    bulk = start_call(engine, TEXTS[1:2], priority=Priority.BULK)
    interactive = start_call(engine, TEXTS[1:2])
    text = (await peer.received(2))[1]
    assert text.priority == Priority.INTERACTIVE
    peer.answer(text)
    await asyncio.gather(bulk, interactive)
    assert (len(peer.texts), peer.cancelled) == (2, [])


async def test_bulk_joins_interactive_as_it_is(start_peer: StartPeer, cached: Cached) -> None:
    peer, engine = start_peer(), cached()
    interactive = start_call(engine, TEXTS[:1])
    bulk = start_call(engine, TEXTS[:1], priority=Priority.BULK)
    await joined(engine, 1)
    peer.answer(*await peer.received(1))
    await asyncio.gather(bulk, interactive)
    assert len(peer.texts) == 1


# the engine's deaths


async def test_all_who_share_get_their_vector_from_the_next_engine(start_peer: StartPeer, cached: Cached) -> None:
    first, engine = start_peer(), cached()
    calls = [start_call(engine, TEXTS[:2])]
    await first.received(2)
    first.die()
    calls.append(start_call(engine, TEXTS[:2]))
    second = start_peer()
    await second.received(2)
    calls.append(start_call(engine, TEXTS[:2]))
    calls[0].cancel()
    await joined(engine, 4)
    second.answer(*second.texts)
    assert [(await call).parts for call in calls[1:]] == [expected(TEXTS[:2])] * 2
    assert len(second.texts) == 2


async def test_poison_is_everybodys_who_shared_it(
    start_peer: StartPeer, cached: Cached, start_client: StartClient
) -> None:
    engine = cached()
    calls = []
    for _ in range(3):
        peer = start_peer()
        calls.append(start_call(engine, TEXTS[:1]))
        peer.compute(*await peer.received(1))
        await joined(engine, len(calls) - 1)
        peer.die()
    for call in calls:
        with pytest.raises(PoisonRequest):
            await call
    peer = start_peer()
    afresh = start_call(engine, TEXTS[:1])
    (text,) = await peer.received(1)
    assert text.priority == Priority.INTERACTIVE, "nobody joins what was given up"
    peer.answer(text)
    assert (await afresh).parts == expected(TEXTS[:1])


async def test_a_client_without_a_cache_shares_nothing(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    calls = [start_call(client, TEXTS[:1]) for _ in range(3)]
    peer.answer(*await peer.received(3))
    await asyncio.gather(*calls)
    assert client.shared == 0


async def test_a_closed_cache_keeps_nothing_more(start_peer: StartPeer, start_client: StartClient) -> None:
    peer, client = start_peer(), start_client()
    cache = VectorCache(1 << 20)
    engine = CachedEngine(client, cache, DIGEST)
    await engine.close()
    await known(engine, peer)
    assert len(cache) == 0
    assert isinstance(client, EngineClient)
