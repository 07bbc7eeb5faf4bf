"""The page: whole by itself, well formed, and with everything that the document has."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import httpx
import msgspec
import orjson
import pytest

from frontend.app import ROUTES
from frontend.documentation.docs import Documentation
from frontend.documentation.operations import OPERATIONS
from frontend.documentation.page import Page
from ipc.bundle import Bundle
from ipc.settings import Settings

pytestmark = pytest.mark.anyio

VOID = {"meta"}
LOADS = {"src", "srcset", "href", "action", "data", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Notes what is open at the end or closed wrongly, every id, every link, and every tag there is."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in LOADS:
                self.links.append(value or "")
            if name.startswith("on"):
                self.wrong.append(f"{tag} {name}")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"/{tag}")


@pytest.fixture
def page(bundle: Bundle) -> str:
    return Documentation(Settings()).html(bundle).decode()


def test_it_is_well_formed(page: str) -> None:
    reader = Reader(page)
    assert (reader.open, reader.wrong) == ([], [])
    assert page.startswith("<!doctype html>")
    assert {"html", "head", "title", "body", "h1", "h2", "table", "pre"} <= reader.tags
    assert len(reader.ids) == len(set(reader.ids))


def test_it_refers_to_nothing_outside(page: str) -> None:
    reader = Reader(page)
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    paths = {route.path for route in ROUTES}
    for link in reader.links:
        assert link in paths or link.removeprefix("#") in reader.ids, link
    assert re.findall(r"https?://[^\s<&']+", page) == ["http://127.0.0.1:8000"]
    assert not re.search(r"url\(|@import", page)


def test_each_operation_is_on_it_with_its_fields(page: str) -> None:
    text = unescape(re.sub("<[^>]+>", "", page))
    for operation in OPERATIONS:
        for path in (operation.path, *operation.also):
            assert f"{operation.method} {path}" in text
        assert operation.summary.replace("`", "") in text
        for kind in operation.body:
            for field in msgspec.structs.fields(kind):
                assert f"<code>{field.name}</code>" in page


def test_every_field_is_described(bundle: Bundle) -> None:
    document = orjson.loads(Documentation(Settings()).json(bundle))
    for operation in (op for op in OPERATIONS if op.body):
        content = document["paths"][operation.path]["post"]["requestBody"]["content"]["application/json"]
        for name, *_, meaning in Page(document, "").fields(content["schema"]):
            assert meaning or "." in name, (operation.path, name)


def test_it_says_what_a_screen_needs_to_know(page: str) -> None:
    assert 'name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page


def test_whatever_the_document_says_is_text(bundle: Bundle) -> None:
    evil = '<script>alert("1")</script>&\'`<b>`'
    document = orjson.loads(Documentation(Settings()).json(msgspec.structs.replace(bundle, id=evil)))
    for operation in document["paths"]["/embed"].values():
        operation["summary"] = operation["description"] = operation["operationId"] = evil
    for header in document["components"]["headers"].values():
        header["description"] = evil
    page = Page(document, evil).render()
    reader = Reader(page)
    assert (reader.open, reader.wrong) == ([], [])
    assert not reader.tags & {"script", "b"}


async def test_it_is_served_without_a_key(http: httpx.AsyncClient) -> None:
    request = http.build_request("GET", "/docs")
    del request.headers["authorization"]
    answer = await http.send(request)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert Reader(answer.text).wrong == []
