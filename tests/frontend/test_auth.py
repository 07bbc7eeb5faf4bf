from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from frontend.auth import KEY_FILE, SCOPE_KEY, Auth, load_or_make_key
from frontend.keys import KEY_PREFIX, OWN_NAME, KeyRing, create_key
from ipc.errors import StartError, Unauthorized
from ipc.settings import Settings
from tests.frontend.served import KEY, Wire, post_scope

Headers = list[tuple[bytes, bytes]]

RACERS = 20
GOOD: list[Headers] = [
    [(b"authorization", b"Bearer " + KEY.encode())],
    [(b"authorization", b"bearer " + KEY.encode())],
    [(b"authorization", b"BEARER   " + KEY.encode() + b" ")],
    [(b"authorization", KEY.encode())],
    [(b"x-api-key", KEY.encode())],
    [(b"authorization", b"Bearer wrong"), (b"x-api-key", KEY.encode())],
    [(b"x-api-key", b"wrong"), (b"authorization", KEY.encode())],
]
BAD: list[Headers] = [
    [(b"authorization", b"")],
    [(b"authorization", b"Bearer")],
    [(b"authorization", b"Bearer ")],
    [(b"authorization", b"Basic " + KEY.encode())],
    [(b"authorization", b"Bearer " + KEY.encode()[:-1])],
    [(b"authorization", b"Bearer " + KEY.encode() + b"x")],
    [(b"authorization", b"Bearer " + KEY.upper().encode())],
    [(b"x-api-key", b"wrong")],
    [(b"x-api-key", b"\xff\x00")],
    [(b"x-other", KEY.encode())],
    [],
]


NO_FILE = Path("no-such-folder", "keys.json")


class Inner:
    """The application behind the check; notes whose key each request came with."""

    def __init__(self) -> None:
        self.names: list[str | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.names.append(scope[SCOPE_KEY].name if SCOPE_KEY in scope else None)
        await Response("in")(scope, receive, send)


async def passes(headers: Headers, path: str = "/embed", method: str = "GET") -> bool:
    auth = Auth(Inner(), KeyRing(KEY, NO_FILE), {"/open"})
    try:
        sent = await Wire().ask(auth, {**post_scope(path, method=method), "headers": headers})
    except Unauthorized:
        return False
    return bool(sent)


@pytest.mark.anyio
@pytest.mark.parametrize("headers", GOOD, ids=str)
async def test_forms_a_key_is_taken_in(headers: Headers) -> None:
    assert await passes(headers)


@pytest.mark.anyio
@pytest.mark.parametrize("headers", BAD, ids=str)
async def test_anything_else_is_refused(headers: Headers) -> None:
    assert not await passes(headers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "is_open"), [("/open", True), ("/open/", False), ("/open/x", False), ("/OPEN", False), ("//open", False)]
)
async def test_only_the_open_paths_need_no_key(path: str, is_open: bool) -> None:
    assert await passes([], path) == is_open
    assert await passes([], path, "HEAD") == is_open
    assert not await passes([], path, "POST")


@pytest.mark.anyio
async def test_those_behind_it_see_whose_key_it_was(tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.json", "ci", rpm=600)
    inner = Inner()
    auth = Auth(inner, KeyRing(KEY, tmp_path / "keys.json"), {"/open"})
    for key in (KEY, secret):
        await Wire().ask(auth, post_scope("/embed", {"authorization": f"Bearer {key}"}))
        await Wire().ask(auth, post_scope("/open", {"authorization": f"Bearer {key}"}, method="GET"))
    await Wire().ask(auth, post_scope("/embed", {"authorization": "Bearer wrong", "x-api-key": secret}))
    assert inner.names == [OWN_NAME, None, "ci", None, "ci"]


@pytest.mark.anyio
@pytest.mark.parametrize(("headers", "says"), [({}, "No API key"), ({"x-api-key": "wrong"}, "not valid")])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/embed", "/v1/models", "/nowhere"])
async def test_401_says_what_is_wrong_in_every_dialect(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], says: str
) -> None:
    request = http.build_request("POST", path, headers=headers, content=b"not even JSON")
    del request.headers["authorization"]
    response = await http.send(request)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert says in response.text
    assert KEY not in response.text


# the key file


def settings(folder: Path, key: str = "") -> Settings:
    return Settings(data_dir=str(folder), api_key=key)


def test_a_configured_key_is_not_kept(tmp_path: Path) -> None:
    assert load_or_make_key(settings(tmp_path, "mine")) == "mine"
    assert not list(tmp_path.iterdir())


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    key = load_or_make_key(settings(folder))
    assert key.startswith(KEY_PREFIX)
    assert len(key) > 40
    assert load_or_make_key(settings(folder)) == key
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    assert (folder / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert load_or_make_key(settings(tmp_path)) != key


def test_any_number_at_once_get_the_same_key(tmp_path: Path) -> None:
    barrier = threading.Barrier(RACERS)

    def race(_: int) -> str:
        barrier.wait()
        return load_or_make_key(settings(tmp_path / "data"))

    with ThreadPoolExecutor(RACERS) as pool:
        keys = set(pool.map(race, range(RACERS)))
    assert len(keys) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == [KEY_FILE], "no draft is left"
    assert (tmp_path / "data" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_key_written_by_hand_is_taken(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("  by-hand\n\n")
    assert load_or_make_key(settings(tmp_path)) == "by-hand"


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_key_file_stops_the_start(tmp_path: Path, content: bytes) -> None:
    # An empty key would let everyone in who sends an empty header.
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(StartError, match=KEY_FILE):
        load_or_make_key(settings(tmp_path))


def test_a_key_file_that_is_no_text_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match=KEY_FILE):
        load_or_make_key(settings(tmp_path))


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="EMBEDLANE_DATA_DIR"):
        load_or_make_key(settings(tmp_path / "file"))
