"""Tell systemd how the start and the end go: sd_notify(3), in a datagram. Without systemd nothing is told."""

from __future__ import annotations

import contextlib
import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Send "READY=1", "STOPPING=1" and the like to whom the variable names: a path, or @ and an abstract name."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    # systemd that hears nothing says so itself, and it is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(state.encode())
