from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
import tokenizers
from starlette.routing import Route

from frontend import keys
from frontend.app import DIALECTS, OPEN_PATHS, ROUTES, create_app
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import StartError
from ipc.liveness import living_frontends
from tests.frontend.peer import vector
from tests.frontend.served import KEY, Wire, post_scope, serving, small_bounds

pytestmark = pytest.mark.anyio

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


def methods(path: str) -> set[str]:
    return set().union(*(route.methods or set() for route in ROUTES if route.path == path))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_a_route_needs_a_key_unless_it_is_open(http: httpx.AsyncClient, route: Route) -> None:
    request = http.build_request(min(route.methods or set()), route.path)
    del request.headers["authorization"]
    is_open = route.path in OPEN_PATHS and request.method == "GET"
    assert ((await http.send(request)).status_code == 401) == (not is_open)


def test_the_tables_name_only_routes() -> None:
    paths = {route.path for route in ROUTES}
    assert paths >= OPEN_PATHS
    assert paths >= set(DIALECTS)


@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
async def test_other_methods_are_405_and_say_which_there_are(http: httpx.AsyncClient, path: str) -> None:
    for method in METHODS:
        if method not in methods(path):
            response = await http.request(method, path)
            assert response.status_code == 405, method
            assert set(response.headers["allow"].split(", ")) == methods(path)


@pytest.mark.parametrize(
    "path", ["/nowhere", "/embed/", "/v1/embeddings/", "http://embedlane//embed", "/v1", "/EMBED", "/%00", "/é"]
)
async def test_other_paths_are_404_and_no_redirect(http: httpx.AsyncClient, path: str) -> None:
    # As a whole URL: httpx takes "//embed" alone for a host.
    response = await http.post(f"http://embedlane{path}", json={"inputs": "a"})
    assert response.status_code == 404
    assert response.json()["code"] == "NOT_FOUND"
    assert response.json()["correlation_id"] == response.headers["x-correlation-id"]


@pytest.mark.parametrize("host", ["", "[", "a b", "x/y?z#", "\xff", "[::1", "a:b:c"])
@pytest.mark.parametrize("path", ["/nowhere", "/embed/", "/health"])
async def test_a_strange_host_breaks_nothing(run_dir: Path, bundle: Bundle, host: str, path: str) -> None:
    app = create_app(small_bounds(run_dir), bundle, KEY)
    async with serving(app):
        start, _ = await Wire().ask(app, post_scope(path, {"host": host}, method="GET"))
    assert start["status"] == (200 if path == "/health" else 404)


async def test_many_at_once_each_get_their_own(http: httpx.AsyncClient, bundle: Bundle) -> None:
    library = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    texts = [[f"{n} of client {client}" for n in range(client % 4 + 1)] for client in range(40)]
    answers = await asyncio.gather(*(http.post("/embed", json={"inputs": inputs}) for inputs in texts))
    for answer, inputs in zip(answers, texts, strict=True):
        expected = [vector(library.encode(text).ids, bundle.dim) for text in inputs]
        assert np.array_equal(np.array(answer.json(), np.float32), expected)


async def test_it_starts_without_an_engine_and_leaves_nothing(run_dir: Path, bundle: Bundle) -> None:
    threads = threading.active_count()
    async with serving(create_app(small_bounds(run_dir), bundle, KEY)) as client:
        assert (await client.get("/health")).status_code == 200
        assert len(living_frontends(run_dir)) == 1
    assert living_frontends(run_dir) == set()
    assert threading.active_count() == threads


async def test_a_server_that_fails_leaves_nothing_either(
    run_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.001)
    threads = threading.active_count()
    app = create_app(small_bounds(run_dir), bundle, KEY)
    with pytest.raises(OverflowError):
        async with serving(app) as client:
            assert (await client.post("/tokenize", json={"inputs": ["word " * 700] * 4})).status_code == 200
            assert threading.active_count() == threads + 1
            raise OverflowError
    assert living_frontends(run_dir) == set()
    assert threading.active_count() == threads
    looks: list[Path] = []

    def look(path: Path) -> keys.Stamp:
        looks.append(path)
        return keys.NO_FILE

    monkeypatch.setattr(keys, "_stamp", look)
    await asyncio.sleep(0.01)
    # Other tests' servers may follow files of their own.
    assert run_dir / "data" / keys.KEYS_FILE not in looks


def test_a_bundle_without_a_good_tokenizer_stops_the_start(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / TOKENIZER).write_text("{}")
    with pytest.raises(StartError):
        create_app(small_bounds(tmp_path), msgspec.structs.replace(bundle, folder=tmp_path), KEY)
