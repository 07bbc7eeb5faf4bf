"""The page in a real browser, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from perf.stack import KEY, Stack
from tests.browser.browser import Visit, chromium
from tests.system.processes import wait_for
from tests.system.wire import Connection, openai_body

pytestmark = pytest.mark.system

TEXTS = ["The cat sleeps on the sofa", "A kitten naps on the couch", "Interest rates rose again"]
WIDTHS = (320, 375, 768, 1280)
CLIENTS = 8


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, server: Stack) -> Iterator[Visit]:
    visit = Visit(browser, server.url)
    yield visit
    visit.close()


@contextmanager
def load(server: Stack) -> Iterator[None]:
    """Requests one after the other on several connections until the block ends."""
    enough = threading.Event()

    async def ask(client: int) -> None:
        async with await Connection.open(server.port) as connection:
            n = 0
            while not enough.is_set():
                assert (
                    await connection.post("/v1/embeddings", openai_body(f"text {n} of client {client}"))
                ).status == 200
                n += 1

    async def ask_all() -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(ask(client))

    thread = threading.Thread(target=asyncio.run, args=(ask_all(),))
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def cosines(server: Stack, texts: list[str]) -> list[list[float]]:
    """Of each text with each, as the API computes them."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        bodies = [{"inputs": {"source_sentence": text, "sentences": texts}} for text in texts]
        return [client.post("/similarity", json=body).json() for body in bodies]


def test_the_heat_map_is_what_the_api_says(visit: Visit, server: Stack) -> None:
    visit.compare(TEXTS, KEY)
    visit.says("3 texts, ")
    table = visit.page.get_by_role("table")
    assert table.get_by_role("rowheader").all_inner_texts() == [f"{n}\n{text}" for n, text in enumerate(TEXTS, 1)]
    shown = [[float(cell) for cell in row.locator("td").all_inner_texts()] for row in table.locator("tbody tr").all()]
    exact = [
        [float((cell.get_attribute("title") or "").rpartition(" ")[2]) for cell in row.locator("td").all()]
        for row in table.locator("tbody tr").all()
    ]
    expected = cosines(server, TEXTS)
    for i in range(len(TEXTS)):
        assert exact[i] == pytest.approx(expected[i], abs=2e-6)
        assert shown[i] == pytest.approx(expected[i], abs=0.00501)
    visit.says("Most alike: 1 and 2")
    # The stronger the cosine, the more of the colour.
    shades = [
        float(cell.evaluate("node => parseFloat(node.style.getPropertyValue('--shade'))"))
        for cell in table.locator("tbody td").all()
    ]
    assert shades[0] == 100 > shades[1] > shades[2]
    assert visit.errors == []


def test_it_asks_nobody_but_its_server(visit: Visit) -> None:
    visit.compare(TEXTS, KEY)
    visit.says("3 texts, ")
    assert len(visit.requested) > 10
    assert [url for url in visit.requested if not url.startswith(f"{visit.url}/")] == []


def test_the_figures_move_under_load(visit: Visit, server: Stack) -> None:
    with load(server):
        for card in ("requests", "latency", "batch"):
            visit.page.wait_for_function(
                "id => parseFloat(document.querySelector(`#${id} .figure b`).textContent) > 0", arg=f"card-{card}"
            )
        first = {card: visit.figure(card) for card in ("requests", "latency", "batch")}
        visit.page.wait_for_function(
            "shown => document.querySelector('#card-requests .figure b').textContent !== shown", arg=first["requests"]
        )
        assert 1 <= float(visit.figure("batch")) <= 16
        visit.says("of 8,192")
        visit.says("all-MiniLM-L6-v2 · cpu · fp32")
    # And they fall again once it is over.
    visit.page.wait_for_function("() => document.querySelector('#card-requests .figure b').textContent === '0'")
    visit.page.wait_for_function("() => document.querySelector('#card-latency .figure b').textContent === '–'")
    assert visit.figure("queue") == "0"
    assert visit.errors == []


def test_the_pointer_shows_what_was(visit: Visit) -> None:
    visit.page.wait_for_function("() => document.querySelector('#card-slab .detail').textContent.startsWith('of')")
    visit.page.locator("#card-slab .chart").hover()
    visit.says("s ago")
    visit.page.mouse.move(0, 0)
    visit.page.wait_for_function("() => document.getElementById('moment').textContent === ''")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen(browser: Browser, server: Stack, tmp_path: Path, scheme: Any) -> None:
    visit = Visit(browser, server.url, color_scheme=scheme)
    visit.compare([*TEXTS, "a-word-that-is-" * 20, *"abcdefghijkl"], KEY)
    visit.says("16 texts, ")
    for width in WIDTHS:
        visit.page.set_viewport_size({"width": width, "height": 800})
        visit.page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    back = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", back)[:3]) / 3
    assert (brightness > 128) == (scheme == "light")
    assert len(list(tmp_path.glob("*.png"))) == len(WIDTHS)
    assert visit.errors == []
    visit.close()


def test_the_keyboard_reaches_all_of_it(visit: Visit) -> None:
    reached = []
    for _ in range(16):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    order = ["Skip to the content", "Similarity", "Live", "Clients", "API", "texts", "key", "Compare"]
    assert reached[: len(order)] == order
    assert {"copy", "snippet"} <= set(reached)


def test_the_key_stays_in_its_tab(visit: Visit, browser: Browser, server: Stack) -> None:
    visit.compare(TEXTS, KEY)
    visit.says("3 texts, ")
    visit.page.reload()
    assert visit.page.get_by_label("API key").input_value() == KEY
    assert visit.page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    assert KEY not in visit.page.content()
    other = Visit(browser, server.url)
    assert other.page.get_by_label("API key").input_value() == ""
    other.close()


def test_what_went_wrong_is_said_in_a_sentence(visit: Visit, server: Stack) -> None:
    for texts, key, sentence in (
        (TEXTS, "", "Type the API key"),
        (["only one"], KEY, "Type at least two texts"),
        (["a"] * 17, KEY, "These are 17 texts"),
        (TEXTS, "a key", "This is no API key"),
        (TEXTS, "wrong", "The server does not know this key"),
        (["a" * 100_000, "b" * 9_000_000], KEY, "The server refused"),
    ):
        visit.compare(texts, key)
        visit.says(sentence)
    visit.compare(TEXTS, KEY)
    visit.says("3 texts, ")
    assert visit.page.get_by_role("alert").count() == 0, "what was wrong is not said any longer"


def test_figures_with_a_key_and_without_a_server(browser: Browser) -> None:
    with Stack(frontends=1, metrics_key=True) as stack:
        visit = Visit(browser, stack.url)
        visit.says("The live figures need the API key: type it above.")
        visit.page.get_by_label("API key").fill("wrong")
        visit.says("The live figures need a key that this server knows.")
        visit.page.get_by_label("API key").fill(KEY)
        visit.says("all-MiniLM-L6-v2 · cpu · fp32")
        with stack.without_engine():
            visit.says("No engine: requests wait for it")
        visit.says("all-MiniLM-L6-v2 · cpu · fp32")
        stack.stop()
        visit.says("This page keeps trying.")
        visit.compare(TEXTS, KEY)
        visit.says("check that it runs, and try again")
        visit.close()


def choose(visit: Visit, client: str) -> str:
    """The lines for a client, with the key put in."""
    visit.page.get_by_role("radio", name=client).check(force=True)
    return visit.page.locator("#snippet").inner_text().replace("YOUR-KEY", KEY)


def test_the_lines_to_copy_work(visit: Visit, server: Stack) -> None:
    visit.says("all-MiniLM-L6-v2 · cpu · fp32")
    done = subprocess.run(["bash", "-c", choose(visit, "curl")], capture_output=True, text=True, check=True)
    assert '"embedding":[' in done.stdout
    for client in ("OpenAI", "LangChain"):
        lines = choose(visit, client)
        assert server.url in lines
        command = [sys.executable, "-c", lines]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        assert done.stdout == "2 384\n", done.stderr


def test_the_button_copies_them(browser: Browser, server: Stack) -> None:
    visit = Visit(browser, server.url, permissions=["clipboard-read", "clipboard-write"])
    visit.page.get_by_role("button", name="Copy").click()
    visit.says("Copied.")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == visit.page.locator("#snippet").inner_text()
    assert copied.startswith(f"curl -s {server.url}/v1/embeddings")
    assert visit.errors == []
    visit.close()


def reckon(visit: Visit, call: str, *arguments: object) -> Any:
    """What a function of metrics.js gives, in the browser."""
    return visit.page.evaluate(
        f"async ([{', '.join('abcd'[: len(arguments)])}]) => {{"
        f" const m = await import('/static/metrics.js'); return {call}; }}",
        list(arguments),
    )


def test_it_reads_the_text_format_as_prometheus_does(visit: Visit, server: Stack) -> None:
    registry = CollectorRegistry()
    odd = Counter("embedlane_odd", "Odd names.", ["key"], registry=registry)
    for name in ('a "quoted" one', "back\\slash", "two\nlines", "{brace} 1", 'comma",x="y', "ü"):
        odd.labels(name).inc(2.5)
    for text in (generate_latest(registry).decode(), httpx.get(f"{server.url}/metrics").text):
        read = reckon(
            visit, "[...m.parse(a)].flatMap(([name, all]) => all.map((s) => [name, s.labels, s.value]))", text
        )
        expected = [[s.name, s.labels, s.value] for f in text_string_to_metric_families(text) for s in f.samples]
        assert sorted(read, key=str) == sorted(expected, key=str)


@pytest.fixture
def unasked() -> Iterator[Stack]:
    """A server that has answered nobody yet: a reading of another may be from before the last test's requests."""
    with Stack(frontends=1) as stack:
        yield stack


def test_requests_are_counted_and_the_page_itself_is_not(visit: Visit, unasked: Stack) -> None:
    def read() -> str:
        return httpx.get(f"{unasked.url}/metrics").text

    def compare(before: str, after: str) -> Any:
        return reckon(visit, "m.figures(m.parse(a), m.parse(b), 10)", before, after)

    def is_over() -> str | None:
        """What is told once the requests are counted."""
        after = read()
        return after if compare(before, after)["texts"] >= 0.8 else None

    before = read()
    with httpx.Client(base_url=unasked.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for path, field in (("/v1/embeddings", "input"), ("/embed", "inputs"), ("/", "inputs")):
            assert client.post(path, json={field: ["one", "two"]}).status_code == 200
        assert client.get("/").status_code == client.get("/v1/models").status_code == 200
        assert client.post("/embed", json={"inputs": []}).status_code == 422
        assert client.post("/embed", json={"inputs": ["one", "two"]}).status_code == 200
    found = compare(before, wait_for(is_over, "the requests to be counted"))
    assert (found["requests"], found["texts"], found["errors"]) == pytest.approx((0.5, 0.8, 0.1))
    assert 0 < found["p50"] <= found["p99"]
    assert 1 <= found["batch"] <= 2
    assert (found["rows"], found["hits"]) == (8192, None)


def test_quantiles_and_rates_are_those_of_prometheus(visit: Visit) -> None:
    registry = CollectorRegistry()
    seconds = Histogram("s", "Seconds.", registry=registry, buckets=(0.1, 0.2, 0.4))
    count = Counter("n", "Requests.", ["status"], registry=registry)
    seconds.observe(0.3)
    count.labels("200").inc(5)
    before = generate_latest(registry).decode()
    for value in [0.05] * 5 + [0.15] * 4 + [9]:
        seconds.observe(value)
    count.labels("200").inc(7)
    count.labels("500").inc(2)
    after = generate_latest(registry).decode()
    # Of ten, the fifth is where the first bucket ends, the seventh in the middle of the second, the last beyond all.
    for q, expected in ((0.25, 0.05), (0.5, 0.1), (0.7, 0.15), (0.99, 0.4)):
        assert reckon(visit, "m.quantile(c, m.parse(a), m.parse(b), 's')", before, after, q) == pytest.approx(expected)
    assert reckon(visit, "m.quantile(0.5, m.parse(a), m.parse(a), 's')", before) is None
    assert reckon(visit, "m.increase(m.parse(a), m.parse(b), 'n_total')", before, after) == 9
    # A counter that fell was begun anew: all of it is new.
    assert reckon(visit, "m.increase(m.parse(a), m.parse(b), 'n_total')", after, before) == 5
    only = "m.total(m.parse(a), 'n_total', ({status}) => status === '500')"
    assert reckon(visit, only, after) == 2
