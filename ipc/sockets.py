"""The ZeroMQ sockets, with every option that correctness hangs on.

Engine: one ROUTER on `ipc://<run_dir>/engine.sock`, bound only while it holds `engine.lock`, for a second bind on an
ipc path silently steals it. Front end: one DEALER whose routing id is its identity, and a monitor that tells when the
connection comes and goes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import zmq

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"
Socket: TypeAlias = "zmq.Socket[bytes]"

ENGINE_SOCKET = "engine.sock"
# The largest SUBMIT there can be: a frame above this ends its connection.
MAX_MESSAGE_BYTES = 64 << 20
HIGH_WATER_MARK = 10_000
RECONNECT_MS = 20
RECONNECT_MAX_MS = 200
# A reply is small and local; this is for the last ones of an engine that stops.
ENGINE_LINGER_MS = 500


def bind_engine(context: Context, run_dir: Path) -> Socket:
    """Bind the engine's ROUTER. The caller holds the engine lock."""
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, ENGINE_LINGER_MS)
    # Without this a reply to a front end that is gone is dropped unseen, and its rows stay lent.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    _bound(router)
    router.bind(_address(run_dir))
    return router


def connect_frontend(context: Context, run_dir: Path, frontend: int) -> tuple[Socket, Socket]:
    """Connect a front end's DEALER; gives it and its monitor. Raises zmq.ZMQError where no descriptor is left."""
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.setsockopt(zmq.ROUTING_ID, routing_id(frontend))
        # Nothing is queued for a dead engine and replayed to its successor.
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        _bound(dealer)
        # HANDSHAKE_SUCCEEDED and not CONNECTED: a stopped engine's kernel still accepts connections for it.
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        dealer.connect(_address(run_dir))
    except zmq.ZMQError:
        dealer.close(0)
        raise
    return dealer, monitor


def routing_id(frontend: int) -> bytes:
    """The DEALER's identity: "F" and the front end's id, for an identity must not begin with a zero byte."""
    return b"F" + frontend.to_bytes(4, "little")


def frontend_id(identity: bytes) -> int | None:
    """The front end behind a ROUTER identity, or None if it is not one of ours."""
    if len(identity) != 5 or identity[:1] != b"F":
        return None
    return int.from_bytes(identity[1:], "little") or None


def _bound(socket: Socket) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)


def _address(run_dir: Path) -> str:
    return f"ipc://{run_dir / ENGINE_SOCKET}"
