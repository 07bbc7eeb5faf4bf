from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from ipc.sockets import Context, Socket, bind_engine, connect_frontend, frontend_id, routing_id

PATIENCE_MS = 10_000


class Peers:
    """Both ends in one process, and closed at the end."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.context: Context = zmq.Context()
        self.sockets: list[Socket] = []

    def engine(self) -> Socket:
        self.sockets.append(bind_engine(self.context, self.run_dir))
        return self.sockets[-1]

    def frontend(self) -> tuple[Socket, Socket]:
        dealer, monitor = connect_frontend(self.context, self.run_dir, 5)
        self.sockets += [dealer, monitor]
        return dealer, monitor

    def close(self) -> None:
        for socket in self.sockets:
            socket.close(0)
        self.context.term()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    made = Peers(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("frontend", [1, 255, 256, 2**32 - 1])
def test_an_identity_names_its_front_end(frontend: int) -> None:
    assert frontend_id(routing_id(frontend)) == frontend


@pytest.mark.parametrize("identity", [b"", b"F", b"G\1\0\0\0", b"F\0\0\0\0", b"F\1\0\0\0\0"])
def test_other_identities_name_nobody(identity: bytes) -> None:
    assert frontend_id(identity) is None


def test_messages_go_both_ways(peers: Peers) -> None:
    router = peers.engine()
    dealer, _ = peers.frontend()
    assert dealer.poll(PATIENCE_MS, zmq.POLLOUT)
    dealer.send(b"ping")
    assert router.recv_multipart() == [routing_id(5), b"ping"]
    router.send_multipart([routing_id(5), b"pong"])
    assert dealer.recv() == b"pong"


def test_nothing_is_queued_for_an_engine_that_is_not_there(peers: Peers) -> None:
    dealer, _ = peers.frontend()
    with pytest.raises(zmq.Again):
        dealer.send(b"for a dead engine", zmq.NOBLOCK)


def test_a_reply_to_nobody_is_told(peers: Peers) -> None:
    router = peers.engine()
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        router.send_multipart([routing_id(5), b"anyone?"], zmq.NOBLOCK)


def test_the_monitor_tells_of_coming_and_going(peers: Peers) -> None:
    router = peers.engine()
    _, monitor = peers.frontend()
    assert monitor.poll(PATIENCE_MS)
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
    router.close(0)
    assert monitor.poll(PATIENCE_MS)
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED


def test_a_front_end_may_come_first(peers: Peers) -> None:
    _, monitor = peers.frontend()
    peers.engine()
    assert monitor.poll(PATIENCE_MS)
    assert recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
