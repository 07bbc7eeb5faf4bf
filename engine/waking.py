"""What the loop sleeps on: the socket, and an eventfd by which lanes and signals wake it."""

from __future__ import annotations

import os

import zmq

from ipc.sockets import Socket


def make_poller(*sources: Socket | int) -> zmq.Poller:
    """A poller of everything that may be read from these."""
    poller = zmq.Poller()
    for source in sources:
        poller.register(source, zmq.POLLIN)
    return poller


def drain(wake_fd: int) -> None:
    """Reset an eventfd that poll has shown to be readable."""
    os.eventfd_read(wake_fd)
