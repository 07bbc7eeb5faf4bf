"""`GET /metrics`: what all processes count, whichever front end is asked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from ipc.metrics import exposition

# Scrapes within this time get the same text: reading all files takes some ms of the interpreter, the event loop's too.
FRESH_SECONDS: Final = 1.0


class Scrape:
    """Reads the files of all processes in a thread, once for all who ask meanwhile."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._read: asyncio.Future[bytes] | None = None
        self._read_at = 0.0

    async def text(self) -> bytes:
        """The exposition, at most a second old."""
        if self._read is None or time.monotonic() - self._read_at > FRESH_SECONDS:
            self._read_at = time.monotonic()
            self._read = asyncio.ensure_future(asyncio.to_thread(exposition, self._run_dir))
        # One who gives up must not take it from the others.
        return await asyncio.shield(self._read)


async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    scrape: Scrape = request.app.state.scrape
    return Response(await scrape.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
