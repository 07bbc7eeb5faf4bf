"""Vectors as they lie in shared memory: little-endian float32, row after row, bare or as a `.npy` file.

The socket reads from the slab itself, so the rows stay lent until it has taken them. The rows behind a piece that a
slow reader keeps waiting are copied, so that no reader holds more than a few; and what all readers hold is bounded
(`frontend.flight.Holding`), the rest are copies from the start.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from frontend.embed import Embedded
from frontend.flight import Call, Lent
from frontend.protocol import WIRE, Wire

OCTETS: Final = "application/octet-stream"
NPY: Final = "application/x-npy"

VALUE_BYTES = 4
# The rows of a batch are neighbours in the slab; more in one piece would only make a slow reader hold more.
MOST_ROWS_IN_PIECE = 64
# How long a reader may take for one piece before the rows behind it are copied.
PATIENCE_SECONDS = 0.25


def raw_media(request: Request) -> str | None:
    """The raw media type, where that is what the request accepts first; None for JSON."""
    first = request.headers.get("accept", "").partition(",")[0].partition(";")[0].strip().lower()
    return first if first in {OCTETS, NPY} else None


class Piece:
    """Bytes to send: neighbouring rows of a slab, and how to give them back, or a copy."""

    def __init__(self, data: memoryview | bytes, lent: Sequence[Lent] = ()) -> None:
        self.data = data
        self.lent = lent

    def copy(self) -> None:
        """Give the rows back now, and keep their bytes."""
        if self.lent:
            self.data = bytes(self.data)
            self.release()

    def release(self) -> None:
        """Give the rows back."""
        for each in self.lent:
            each.release()
        self.lent = ()


class RawResponse(Response):
    """Sends a call's vectors, each as its part if it has one, else as the row it holds.

    `give_up_at` is on the loop's clock: the connection of a client that has not read all by then is ended.
    """

    def __init__(self, call: Call, media: str, give_up_at: float, headers: dict[str, str]) -> None:
        self._pieces = list(pieces(call))
        self._give_up_at = give_up_at
        rows, size = len(call.parts), sum(len(piece.data) for piece in self._pieces)
        dim = size // rows // VALUE_BYTES
        if media == NPY:
            self._pieces.insert(0, Piece(npy_head(rows, dim)))
            size += len(self._pieces[0].data)
        shape = {"content-length": str(size), "x-embedding-shape": f"{rows},{dim}"}
        super().__init__(headers=headers | shape, media_type=media)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        wire: Wire = scope["extensions"][WIRE]["connection"]
        try:
            async with asyncio.timeout_at(self._give_up_at):
                # Of a client that sent requests ahead, an earlier answer may be on its way still.
                await self._wait(wire, self._pieces)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send_pieces(send, wire)
        except TimeoutError:
            wire.abort()
        finally:
            for piece in self._pieces:
                piece.release()

    async def _send_pieces(self, send: Send, wire: Wire) -> None:
        for number, piece in enumerate(self._pieces, 1):
            await send({"type": "http.response.body", "body": piece.data, "more_body": number < len(self._pieces)})
            await self._wait(wire, self._pieces[number:])
            piece.release()

    async def _wait(self, wire: Wire, behind: Sequence[Piece]) -> None:
        """Return once the socket has taken all."""
        if wire.unsent():
            # The loop writes at the end of its turn.
            await asyncio.sleep(0)
        if not wire.unsent():
            return
        try:
            await asyncio.wait_for(wire.drained(), PATIENCE_SECONDS)
        except TimeoutError:
            for piece in behind:
                piece.copy()
            await wire.drained()


def raw_response(done: Embedded, media: str) -> RawResponse:
    """What the embedder gave for `take` None, until the request's deadline."""
    seconds = (done.deadline - time.monotonic_ns()) / 1e9
    return RawResponse(done.call, media, asyncio.get_running_loop().time() + seconds, done.headers())


def npy_head(rows: int, dim: int) -> bytes:
    """What a `.npy` file of float32 [rows, dim] begins with (numpy.lib.format, version 1.0)."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return head.getvalue()


def pieces(call: Call) -> Iterator[Piece]:
    """All vectors in order, neighbouring rows together and so the copies between them."""
    extent: list[Lent] = []
    copies: list[bytes] = []
    for index, part in enumerate(call.parts):
        lent = call.held.get(index)
        if extent and not (lent and _follows(extent, lent)):
            yield _piece(extent)
            extent = []
        if lent is None:
            copies.append(part)
            continue
        if copies:
            yield Piece(b"".join(copies))
            copies = []
        extent.append(lent)
    if extent:
        yield _piece(extent)
    if copies:
        yield Piece(b"".join(copies))


def _follows(extent: Sequence[Lent], lent: Lent) -> bool:
    last = extent[-1]
    return len(extent) < MOST_ROWS_IN_PIECE and lent.rows is last.rows and lent.number == last.number + 1


def _piece(extent: Sequence[Lent]) -> Piece:
    first = extent[0].number
    return Piece(extent[0].rows[first : first + len(extent)].data.cast("B"), extent)
