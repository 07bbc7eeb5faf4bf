"""The page at `/` and the files it loads, read once at start-up and served from memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent / "static"
PAGE: Final = "page.html"
TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
# What the page may load and ask: this server, and nobody else. Nothing that stands in the HTML itself is run.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def page_headers(policy: str) -> dict[str, str]:
    """Headers of every page for people; `policy` is its Content-Security-Policy."""
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


class StaticFile:
    """One file in memory: the answer to every GET of it, or 304 to one who has it already."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._media_type = TYPES[path.suffix]
        tag = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
        # Asked for again each time, so that a browser never mixes files of two versions.
        self._headers = page_headers(POLICY) | {"ETag": tag, "Cache-Control": "no-cache"}

    async def __call__(self, request: Request) -> Response:
        """The file; 304 where `If-None-Match` has its tag."""
        known = request.headers.get("if-none-match", "").replace("W/", "").split(",")
        if self._headers["ETag"] in (tag.strip() for tag in known):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=self._media_type)


page: Final = StaticFile(FOLDER / PAGE)
# Path → what is served there without a key.
ASSETS: Final = {f"/static/{path.name}": StaticFile(path) for path in sorted(FOLDER.iterdir()) if path.name != PAGE}
