"""`GET /openapi.json`, and `GET /docs` with the same document as a page: bytes made once at start-up."""

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
    """The document and the page, made once: `json` and `html` are what is sent."""

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self.json = build_document(settings, bundle)
        self.html = Page(orjson.loads(self.json), f"http://{settings.host}:{settings.port}").render().encode()


async def document(request: Request) -> Response:
    """`GET /openapi.json`."""
    return json_response(request.app.state.documentation.json)


async def page(request: Request) -> Response:
    """`GET /docs`."""
    return Response(request.app.state.documentation.html, headers=HEADERS, media_type="text/html")
