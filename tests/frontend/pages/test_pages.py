"""The page's files as they are served; tests/system/test_page.py has a browser use them."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import httpx
import msgspec
import pytest

from frontend.app import ROUTES, create_app
from frontend.pages import ASSETS, FOLDER, PAGE, POLICY
from ipc.bundle import Bundle
from tests.frontend.served import KEY, serving, small_bounds

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
PATHS = ["/", *ASSETS]
# Names, which nobody loads: that of SVG, and uPlot's own in its first line.
NAMES = {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}
CONTENT_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class Reader(HTMLParser):
    """Notes what the page loads, where it leads, its ids and labels, and what no page of ours may have."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.links: set[str] = set()
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: list[str] = []
        self.inline: list[str] = []
        self._in_script = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_script = tag == "script"
        self.loaded |= {given["src"]} if "src" in given else set()
        if "href" in given:
            (self.links if tag == "a" else self.loaded).add(given["href"])
        self.ids += [given["id"]] if "id" in given else []
        self.labelled |= {given["for"]} if "for" in given else set()
        if tag == "textarea" or (tag == "input" and given["type"] != "radio"):
            self.fields.append(given["id"])
        self.inline += [name for name in given if name == "style" or name.startswith("on")] + ["style"] * (
            tag == "style"
        )

    def handle_data(self, data: str) -> None:
        self.inline += [data] if self._in_script and data.strip() else []

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


@pytest.fixture
def page() -> Reader:
    return Reader((FOLDER / PAGE).read_text())


async def get(http: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response:
    """As a browser asks: without a key."""
    request = http.build_request("GET", path, headers=headers)
    del request.headers["authorization"]
    return await http.send(request)


@pytest.mark.parametrize("path", PATHS)
async def test_each_file_is_served_without_a_key(http: httpx.AsyncClient, path: str) -> None:
    answer = await get(http, path)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / (path.rpartition("/")[2] or PAGE)).read_bytes()
    kind = path.rpartition(".")[2]
    assert answer.headers["content-type"] == CONTENT_TYPES.get(kind, "text/html; charset=utf-8")


@pytest.mark.parametrize("path", [*PATHS, "/docs"])
async def test_a_browser_is_told_what_a_page_may_not_do(http: httpx.AsyncClient, path: str) -> None:
    headers = (await get(http, path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in policy.get("script-src", "'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_itself_runs_nothing_inline(page: Reader) -> None:
    assert "unsafe" not in POLICY
    assert page.inline == []


@pytest.mark.parametrize("path", PATHS)
async def test_what_a_browser_has_is_not_sent_again(http: httpx.AsyncClient, path: str) -> None:
    first = await get(http, path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await get(http, path, **{"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await get(http, path, **{"if-none-match": '"other"'})).status_code == 200


async def test_other_methods_and_names_are_refused(http: httpx.AsyncClient) -> None:
    assert (await http.post("/static/page.js")).status_code == 405
    for path in ("/static/page.html", "/static/", "/static", "/static/../__init__.py", "/static/%2e%2e/__init__.py"):
        assert (await http.get(path)).status_code == 404, path


async def test_the_metrics_key_does_not_close_the_page(run_dir: Path, bundle: Bundle) -> None:
    settings = msgspec.structs.replace(small_bounds(run_dir), metrics_key=True)
    async with serving(create_app(settings, bundle, KEY)) as http:
        assert [(await get(http, path)).status_code for path in PATHS] == [200] * len(PATHS)
        assert (await get(http, "/metrics")).status_code == 401


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_file_names_another_server(path: Path) -> None:
    text = path.read_text()
    found = {url.rstrip(".,;)") for url in re.findall(r"(?:https?:)?//[\w-]+\.[^\s\"'<>`]+", text)}
    assert found <= NAMES | {name.partition(":")[2] for name in NAMES}
    assert not re.search(r"@import|url\(", text)


def test_all_that_the_page_loads_is_there(page: Reader) -> None:
    assert page.loaded <= set(ASSETS)
    for script in FOLDER.glob("*.js"):
        for name in re.findall(r'^import .* from "\./(.+)";$', script.read_text(), re.MULTILINE):
            assert f"/static/{name}" in ASSETS
    paths = {route.path for route in ROUTES}
    for link in page.links:
        assert link in paths or link.removeprefix("#") in page.ids, link


def test_a_screen_reader_finds_its_way(page: Reader) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert set(page.fields) == page.labelled
    html = (FOLDER / PAGE).read_text()
    assert '<html lang="en">' in html
    assert html.count("<h1>") == html.count("<main ") == html.count("<nav ") == 1
    assert [int(level) for level in re.findall(r"<h(\d)", html)] == [1, 2, 2, 2]
    assert all("alt=" in image for image in re.findall(r"<img [^>]+>", html))


def test_what_is_not_ours_says_whose_it_is() -> None:
    licence = (FOLDER / "uPlot.LICENSE.txt").read_text()
    assert "The MIT License" in licence
    version = re.match(r"uPlot (\S+):", licence)
    assert version is not None
    assert f"uPlot (v{version[1]})" in (FOLDER / "uPlot.min.js").read_text()[:100]


def test_the_files_are_part_of_the_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"]["frontend.pages"] == ["static/*"]
    inside = {".".join(path.relative_to(ROOT).parts[:-1]) for path in (ROOT / "frontend").rglob("*.py")}
    assert inside <= set(setuptools["packages"])
