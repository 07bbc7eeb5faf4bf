"""`GET /openapi.json`, and `GET /docs` with the same document as a page: bytes made once for each model."""

from __future__ import annotations

from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from frontend.documentation.openapi import build_document
from frontend.documentation.page import Page
from frontend.pages import page_headers
from frontend.responses import json_response
from ipc.bundle import Bundle
from ipc.settings import Settings

# The page can load nothing and run nothing, whatever were to get into it.
HEADERS: Final = page_headers(
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Documentation:
    """The document and the page of the model that is served."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bundle: Bundle | None = None
        self._json = self._html = b""

    def json(self, bundle: Bundle) -> bytes:
        """OpenAPI 3.1."""
        self._describe(bundle)
        return self._json

    def html(self, bundle: Bundle) -> bytes:
        """The same for people."""
        self._describe(bundle)
        return self._html

    def _describe(self, bundle: Bundle) -> None:
        if bundle is not self._bundle:
            self._json = build_document(self._settings, bundle)
            url = f"http://{self._settings.host}:{self._settings.port}"
            self._html = Page(orjson.loads(self._json), url).render().encode()
            self._bundle = bundle


async def document(request: Request) -> Response:
    """`GET /openapi.json`."""
    state = request.app.state
    return json_response(state.documentation.json(state.embedder.model.bundle))


async def page(request: Request) -> Response:
    """`GET /docs`."""
    state = request.app.state
    return Response(state.documentation.html(state.embedder.model.bundle), headers=HEADERS, media_type="text/html")
