from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from frontend.app import create_app
from frontend.auth import SCOPE_KEY
from frontend.correlation import Correlation
from frontend.keys import Key
from frontend.metrics import MOST_KEYS, MOST_SERIES, NO_KEY, OTHER, RequestMetrics
from frontend.request_log import FACTS, Facts, RequestLog
from ipc.bundle import Bundle
from tests.frontend.served import KEY, Wire, drawn_server, post_scope, serving, small_bounds

pytestmark = pytest.mark.anyio

ROUTES = frozenset({"/embed", "/v1/embed"})


class Bench:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RequestMetrics(self.registry, ROUTES)

    def note(
        self,
        path: str = "/embed",
        status: int | None = 200,
        key: str | None = "one",
        texts: int = 2,
        error: str | None = None,
    ) -> None:
        scope = post_scope(path)
        if key is not None:
            scope[SCOPE_KEY] = Key(key, "0" * 64, "")
        facts = Facts(0, status=status, texts=texts, tokens=5 * texts, tokenize_ns=2_000_000, error=error)
        self.metrics.note(scope, facts)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def requests(self, route: str, status: str, key: str) -> float | None:
        return self.value("embedlane_requests_total", route=route, status=status, key=key)

    def series(self, name: str) -> int:
        return sum(s.name == name for family in self.registry.collect() for s in family.samples)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_is_counted_by_route_status_and_key(bench: Bench) -> None:
    for _ in range(2):
        bench.note()
    bench.note(status=503, key="two")
    assert bench.requests("/embed", "200", "one") == 2
    assert bench.requests("/embed", "503", "two") == 1
    assert bench.value("embedlane_request_seconds_count", route="/embed") == 3
    assert bench.value("embedlane_texts_total", key="one") == 4
    assert bench.value("embedlane_tokens_total", key="one") == 20
    assert bench.value("embedlane_tokenize_seconds_sum") == pytest.approx(0.006)


def test_one_without_texts_tokenized_nothing(bench: Bench) -> None:
    bench.note(status=400, texts=0)
    assert bench.requests("/embed", "400", "one") == 1
    assert bench.value("embedlane_tokenize_seconds_count") == 0


def test_a_client_that_left_and_one_without_a_key(bench: Bench) -> None:
    bench.note(status=None, key=None)
    assert bench.requests("/embed", "499", NO_KEY) == 1


def test_errors_are_counted_by_code_and_each_is_there_before_it_happens(bench: Bench) -> None:
    bench.note(status=500, error="POISON_REQUEST")
    assert bench.value("embedlane_request_errors_total", code="POISON_REQUEST") == 1
    for code in ("ENGINE_FAILURE", "INPUT_TOO_LONG", "INTERNAL_ERROR", "OVERLOADED", "RATE_LIMIT_EXCEEDED"):
        assert bench.value("embedlane_request_errors_total", code=code) == 0


def test_paths_that_are_no_routes_are_one(bench: Bench) -> None:
    for n in range(3):
        bench.note(f"/guess/{n}", 404, None)
    assert bench.requests(OTHER, "404", NO_KEY) == 3
    assert bench.series("embedlane_requests_total") == 1


def test_labels_are_bounded_whatever_clients_send(bench: Bench) -> None:
    for n in range(2 * MOST_SERIES):
        bench.note(f"/guess/{n}", 404, f"key {n}")
    assert bench.requests(OTHER, "404", OTHER) == 2 * MOST_SERIES - MOST_KEYS
    assert len(bench.metrics._series) == MOST_KEYS + 1, "guesses take no place from others"
    assert bench.series("embedlane_requests_total") == bench.series("embedlane_texts_total") == MOST_KEYS + 1


def test_combinations_are_bounded_and_what_is_beyond_is_counted_together(bench: Bench) -> None:
    for status in range(200, 220):
        for n in range(MOST_KEYS):
            bench.note(status=status, key=f"key {n}")
    assert bench.series("embedlane_requests_total") <= MOST_SERIES + 20
    total = sum(
        sample.value
        for family in bench.registry.collect()
        for sample in family.samples
        if sample.name == "embedlane_requests_total"
    )
    assert total == 20 * MOST_KEYS
    assert bench.requests(OTHER, "219", OTHER) == MOST_KEYS


async def test_every_request_is_counted_once_also_one_that_fails(bench: Bench) -> None:
    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        assert isinstance(scope[FACTS], Facts)
        await send({"type": "http.response.start", "status": 201, "headers": []})

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConnectionResetError

    await Wire().ask(Correlation(answers, RequestLog(), bench.metrics), post_scope("/embed"))
    with pytest.raises(ConnectionResetError):
        await Wire().ask(Correlation(breaks, RequestLog(), bench.metrics), post_scope("/embed"))
    assert bench.requests("/embed", "201", NO_KEY) == 1
    assert bench.requests("/embed", "499", NO_KEY) == 1


async def test_metrics_need_a_key_only_where_the_settings_say_so(run_dir: Path, bundle: Bundle) -> None:
    for metrics_key, status in ((False, 200), (True, 401)):
        settings = msgspec.structs.replace(small_bounds(run_dir), metrics_key=metrics_key)
        async with serving(create_app(settings, bundle, KEY)) as client:
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/metrics", headers={"authorization": ""})).status_code == status


async def test_scrapes_of_one_second_read_the_files_once(
    run_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with drawn_server(run_dir, bundle) as client:
        first = await client.get("/metrics")
        assert first.headers["content-type"].startswith("text/plain; version=0.0.4")
        (run_dir / "metrics").mkdir()
        (run_dir / "metrics" / "counter_frontend-0.db").write_bytes(b"")
        assert (await client.get("/metrics")).content == first.content
        monkeypatch.setattr("frontend.scrape.FRESH_SECONDS", 0)
        assert (await client.get("/metrics")).status_code == 200
