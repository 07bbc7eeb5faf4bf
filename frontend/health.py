"""`/health`: this process runs. `/ready`, also `/readiness` and `/ping`: an embedding went through lately."""

from __future__ import annotations

import time

import orjson
from starlette.requests import Request
from starlette.responses import Response

from frontend.embed import Embedder
from frontend.responses import json_response
from ipc.errors import RequestError

LATELY_NS = 1_000_000_000
PROBE_SECONDS = 1.0


async def health(request: Request) -> Response:
    """Answers as long as the event loop turns."""
    return json_response(b'{"status":"ok"}')


async def ready(request: Request) -> Response:
    """200 if a vector came back within the last second or does so now, else 503 and why."""
    embedder: Embedder = request.app.state.embedder
    reason = await why_not_ready(embedder)
    if reason is not None:
        return json_response(orjson.dumps({"status": "not ready", "reason": reason}), 503)
    return json_response(orjson.dumps({"status": "ready", "model": embedder.model.bundle.id}))


async def why_not_ready(embedder: Embedder) -> str | None:
    """None if a vector came back within the last second or does so now."""
    if time.monotonic_ns() - embedder.client.last_vector_ns > LATELY_NS:
        try:
            await embedder.probe(PROBE_SECONDS)
        except RequestError as error:
            return error.message
    return None
