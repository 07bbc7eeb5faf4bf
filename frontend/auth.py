"""Who may ask: the key of a request, and the server's own key, made once and kept in a file of mode 0600."""

from __future__ import annotations

import os
import secrets
from collections.abc import Container, Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from frontend.keys import Key, KeyRing, make_secret
from ipc.errors import StartError, Unauthorized
from ipc.settings import Settings

KEY_FILE = "api-key"
# Where later middleware and handlers find the request's `frontend.keys.Key`.
SCOPE_KEY = "embedlane.key"


class Auth:
    """Lets a request pass with a key, in `Authorization` (Bearer or raw) or `X-API-Key`, or to an open path.

    The key found is `scope["embedlane.key"]` from there on; requests to open paths have none.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Container[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises Unauthorized."""
        # An open path is open for reading: another method of it may be a dialect's.
        if scope["type"] == "http" and (
            scope["path"] not in self._open_paths or scope["method"] not in {"GET", "HEAD"}
        ):
            scope[SCOPE_KEY] = authorized(self._keys, scope["headers"])
        await self._app(scope, receive, send)


def authorized(keys: KeyRing, headers: Iterable[tuple[bytes, bytes]]) -> Key:
    """The key that a request's headers present. Raises Unauthorized."""
    given = None
    for name, value in headers:
        if name in {b"authorization", b"x-api-key"}:
            given = value[7:] if value[:7].lower() == b"bearer " else value
            key = keys.find(given.strip())
            if key is not None:
                return key
    if given is None:
        raise Unauthorized("No API key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`.")
    raise Unauthorized("This API key is not valid: check it against the server's.")


def load_or_make_key(settings: Settings) -> str:
    """The configured key, else the kept one, else a new one that is kept from now on.

    Any number of processes may call this at once: all get the same key.
    """
    # What a client sends is stripped too.
    if key := settings.api_key.strip():
        return key
    path = settings.data_path / KEY_FILE
    fault = "it is empty"
    try:
        if not path.exists():
            _keep(path, make_secret())
        if key := path.read_text().strip():
            return key
    except OSError as error:
        fault = str(error.strerror)
    except UnicodeDecodeError:
        fault = "it is no text"
    raise StartError(
        f"The API key cannot be kept in {path} ({fault}): remove that file, or set EMBEDLANE_API_KEY "
        "or EMBEDLANE_DATA_DIR."
    )


def _keep(path: Path, key: str) -> None:
    """Write beside, then link: the file appears whole, and only the first of several writers makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{KEY_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()
