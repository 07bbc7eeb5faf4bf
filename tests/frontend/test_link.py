from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import zmq

from frontend import link
from frontend.link import RECEIVE_BUDGET, Link
from ipc import messages
from ipc.liveness import frontend_lives, living_frontends
from ipc.messages import Type
from ipc.sockets import Context
from tests.frontend.peer import EnginePeer, StartPeer, eventually

pytestmark = pytest.mark.anyio


class Owner:
    """Keeps what its link tells, and closes it when it is lost, as an owner must."""

    def __init__(self, context: Context, run_dir: Path) -> None:
        self.messages: list[bytes] = []
        self.losses = 0
        self.ticks = 0
        self.link = Link(context, run_dir, self.messages.append, self.on_lost, self.on_tick)

    def on_lost(self) -> None:
        self.losses += 1
        self.link.close()

    def on_tick(self) -> None:
        self.ticks += 1


Own = Callable[[], Owner]


@pytest.fixture
async def own(run_dir: Path) -> AsyncIterator[Own]:
    context: Context = zmq.Context()
    owners: list[Owner] = []

    def make() -> Owner:
        owners.append(Owner(context, run_dir))
        return owners[-1]

    yield make
    for owner in owners:
        owner.link.close()
    context.destroy(linger=0)


async def welcomed(owner: Owner, peer: EnginePeer) -> None:
    await eventually(lambda: owner.messages)
    header = messages.parse_header(owner.messages[0])
    assert header.type is Type.WELCOME
    owner.link.attach(messages.parse_welcome(owner.messages[0]), header.epoch)
    owner.messages.clear()
    assert owner.link.epoch == peer.epoch


@pytest.mark.parametrize("first", ["engine", "link"])
async def test_a_link_introduces_itself_whoever_came_first(
    own: Own, start_peer: StartPeer, run_dir: Path, first: str
) -> None:
    peer = start_peer() if first == "engine" else None
    owner = own()
    peer = peer or start_peer()
    await welcomed(owner, peer)
    assert set(peer.frontends) == living_frontends(run_dir), "it says HELLO under the identity whose lock it holds"


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow timer is for edges that were missed: none should be."""
    monkeypatch.setattr(link, "TICK_SECONDS", 3600)


async def test_a_link_needs_no_tick_to_join(own: Own, start_peer: StartPeer, no_ticks: None) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    peer.die()
    await eventually(lambda: owner.losses)


async def test_frames_go_both_ways_in_order(own: Own, start_peer: StartPeer) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    sent = [messages.cancel([n], peer.epoch) for n in range(1, 4)]
    for frame in sent:
        assert owner.link.send(frame)
    await eventually(lambda: peer.cancelled == [1, 2, 3])
    frames = [b"%d" % n for n in range(3)]
    for frame in frames:
        peer.send(peer.frontends[0], frame)
    await eventually(lambda: owner.messages == frames)


async def test_a_flood_is_read_within_a_budget_for_each_turn(own: Own, start_peer: StartPeer, no_ticks: None) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    flood = 10 * RECEIVE_BUDGET
    for n in range(flood):
        peer.send(peer.frontends[0], b"%d" % n)
    counts = [0]
    while counts[-1] < flood:
        await asyncio.sleep(0)
        counts.append(len(owner.messages))
    # What the descriptor, the timer and the budget's own next call each read in one turn.
    assert max(b - a for a, b in itertools.pairwise(counts)) < flood
    assert owner.messages == [b"%d" % n for n in range(flood)]


async def test_without_an_engine_nothing_is_taken(own: Own) -> None:
    assert not own().link.send(messages.hello())


async def test_a_full_pipe_takes_no_more(own: Own, start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.sockets.HIGH_WATER_MARK", 1)
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    # In one turn, so the engine reads nothing meanwhile; frames this large do not fit into the kernel's buffers.
    frame = messages.cancel(range(100_000), peer.epoch)
    taken = next(n for n in range(1000) if not owner.link.send(frame))
    await eventually(lambda: len(peer.cancelled) == taken * 100_000)
    assert owner.link.send(frame)


async def test_a_loss_is_told_once_and_after_the_last_messages(own: Own, start_peer: StartPeer) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    peer.send(peer.frontends[0], b"last words")
    await eventually(lambda: owner.messages)
    peer.die()
    start_peer()
    await eventually(lambda: owner.losses)
    ticks = owner.ticks
    other = own()
    await eventually(lambda: other.ticks >= 2)
    assert (owner.losses, owner.messages, owner.ticks) == (1, [b"last words"], ticks), "a closed link is silent"


async def test_no_engine_is_no_loss(own: Own) -> None:
    owner = own()
    await eventually(lambda: owner.ticks >= 2)
    assert (owner.losses, owner.messages) == (0, [])


async def test_close_gives_up_the_identity_and_may_be_repeated(own: Own, start_peer: StartPeer, run_dir: Path) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    assert frontend_lives(run_dir, peer.frontends[0])
    owner.link.close()
    owner.link.close()
    assert not frontend_lives(run_dir, peer.frontends[0])
    assert living_frontends(run_dir) == set()


async def test_a_closed_link_still_reads_its_slab(own: Own, start_peer: StartPeer) -> None:
    peer, owner = start_peer(), own()
    await welcomed(owner, peer)
    peer.slab.rows[3] = 7.0
    peer.slab.running[5] = 99
    owner.link.close()
    peer.die()
    assert owner.link.slab.rows[3, 0] == 7.0
    assert owner.link.died_with() == {99}


async def test_before_the_welcome_nothing_is_known_to_run(own: Own) -> None:
    assert own().link.died_with() == set()


async def test_a_link_without_descriptors_is_opened_once_there_are_some(
    own: Own, start_peer: StartPeer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = start_peer()
    tries = 0

    def none_left(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise zmq.ZMQError(errno.EMFILE)

    with monkeypatch.context() as patch:
        patch.setattr(link, "connect_frontend", none_left)
        owner = own()
        await eventually(lambda: tries > 2)
        assert not owner.link.send(b"")
        assert len(living_frontends(run_dir)) == 1, "every try has the same identity"
    await welcomed(owner, peer)


async def test_hello_is_said_again_to_an_engine_that_did_not_answer(
    own: Own, start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "HELLO_SECONDS", 0.01)
    peer = start_peer(welcomes=False)
    owner = own()
    await eventually(lambda: peer.log.count(Type.HELLO) > 2)
    peer.welcomes = True
    await welcomed(owner, peer)
