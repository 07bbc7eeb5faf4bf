"""The middleware around applications that end in every way, with OpenTelemetry's own tracer."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.correlation import Correlation
from frontend.request_log import FACTS, MOST_PATH, Facts, RequestLog
from frontend.tracing.spans import UNTRACED, Tracing, parts
from tests.frontend.served import Wire, new_metrics, post_scope

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTINUED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Bench:
    """One application within the middleware, and the spans that its requests made."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._spans))

    async def ask(
        self, app: ASGIApp, path: str = "/embed", headers: dict[str, str] | None = None, *, method: str = "POST"
    ) -> Mapping[bytes, bytes]:
        """The answer's headers; none where there was no answer."""
        spans = Tracing(self._provider).middleware(frozenset({"/embed"}))
        within = spans.cls(app, *spans.args, **spans.kwargs)
        log = RequestLog()
        sent = await Wire().ask(Correlation(within, log, new_metrics()), post_scope(path, headers, method=method))
        return dict(sent[0]["headers"]) if sent else {}

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    @property
    def server(self) -> ReadableSpan:
        (span,) = (each for each in self.spans if each.kind is SpanKind.SERVER)
        return span


@pytest.fixture
def bench() -> Bench:
    return Bench()


def answers(status: int, error: str | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[FACTS].error = error
        start: Message = {"type": "http.response.start", "status": status, "headers": [(b"other", b"kept")]}
        await send(start)

    return app


async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
    """No answer, for nobody waits for it."""


async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
    await answers(200)(scope, receive, send)
    raise ConnectionResetError("zyxquartz")


@pytest.mark.parametrize("path", sorted(UNTRACED))
async def test_probes_and_scrapes_have_no_span(bench: Bench, path: str) -> None:
    headers = await bench.ask(answers(200), path, CONTINUED, method="GET")
    assert b"traceparent" not in headers
    assert not bench.spans


@pytest.mark.parametrize(
    ("given", "parent"),
    [
        (f"00-{TRACE}-{PARENT}-01", PARENT),
        (f"cc-{TRACE}-{PARENT}-01-of-the-future", PARENT),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        ("\xff\xfe", None),
        ("00-" * 1000, None),
        ("", None),
    ],
)
async def test_a_trace_is_continued_where_there_is_a_sound_one_and_begun_where_not(
    bench: Bench, given: str, parent: str | None
) -> None:
    headers = await bench.ask(answers(200), headers={"traceparent": given, "tracestate": "\xff=,,"})
    context, found = bench.server.context, bench.server.parent
    assert (None if found is None else f"{found.span_id:016x}") == parent
    assert (f"{context.trace_id:032x}" == TRACE) == (parent is not None)
    assert headers[b"traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-0".encode())
    assert headers[b"other"] == b"kept"


async def test_a_trace_that_its_caller_does_not_take_has_no_span_and_goes_on(bench: Bench) -> None:
    headers = await bench.ask(answers(200), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not bench.spans
    assert headers[b"traceparent"].startswith(f"00-{TRACE}-".encode())
    assert not int(headers[b"traceparent"][-2:], 16) & 1


async def test_a_sampler_that_takes_none_makes_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    bench = Bench()
    assert b"traceparent" in await bench.ask(answers(200), headers=CONTINUED)
    assert not bench.spans


async def test_a_disabled_sdk_makes_none_and_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    bench = Bench()
    assert b"traceparent" not in await bench.ask(answers(200))
    assert not bench.spans


@pytest.mark.parametrize(
    ("app", "status", "error", "is_error"),
    [
        (answers(200), 200, None, False),
        (answers(429, "OVERLOADED"), 429, None, False),
        (answers(503, "ENGINE_UNAVAILABLE"), 503, "ENGINE_UNAVAILABLE", True),
        (answers(500), 500, "500", True),
        (leaves, None, "client_left", False),
    ],
)
async def test_a_span_says_how_the_request_ended(
    bench: Bench, app: ASGIApp, status: int | None, error: str | None, is_error: bool
) -> None:
    await bench.ask(app)
    attributes = bench.server.attributes or {}
    assert (attributes.get("http.response.status_code"), attributes.get("error.type")) == (status, error)
    assert (bench.server.status.status_code is StatusCode.ERROR) == is_error


async def test_an_error_in_mid_answer_is_one_and_says_no_more_than_its_kind(bench: Bench) -> None:
    with pytest.raises(ConnectionResetError):
        await bench.ask(breaks)
    assert (bench.server.attributes or {})["error.type"] == "ConnectionResetError"
    assert bench.server.status.status_code is StatusCode.ERROR
    assert "zyxquartz" not in bench.server.to_json()


async def test_paths_and_methods_of_a_clients_own_make_no_name(bench: Bench) -> None:
    await bench.ask(answers(404), "/" + "x" * 1000, method="PROPFIND")
    attributes = bench.server.attributes or {}
    assert bench.server.name == "HTTP"
    assert (attributes["http.request.method"], len(str(attributes["url.path"]))) == ("_OTHER", MOST_PATH)
    assert "http.route" not in attributes


def test_parts_lie_before_the_last_vector() -> None:
    facts = Facts(0, tokenize_ns=5, tokenized_ns=10, wait_ns=20, compute_ns=30, computed_ns=100)
    assert list(parts(facts)) == [("tokenize", 5, 10), ("queue", 50, 70), ("compute", 70, 100)]


def test_a_text_that_another_request_had_sent_before_waits_from_its_own_tokenizing_on() -> None:
    facts = Facts(0, tokenize_ns=5, tokenized_ns=90, wait_ns=50, compute_ns=30, computed_ns=100)
    assert list(parts(facts)) == [("tokenize", 85, 90), ("queue", 90, 90), ("compute", 90, 100)]


def test_what_never_was_has_no_part() -> None:
    assert list(parts(Facts(0))) == []
    hit = Facts(0, tokenize_ns=5, tokenized_ns=10, computed_ns=11)
    assert list(parts(hit)) == [("tokenize", 5, 10)]
