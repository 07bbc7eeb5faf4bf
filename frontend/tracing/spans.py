"""A span for each request and, within it, what it waited for: its tokenizing, its queue, its run in the engine.

The engine has no part in this: its replies tell how long a text waited and ran. No span has a text, a key or a vector.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Container, Iterable, Iterator
from typing import Final

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.auth import SCOPE_KEY
from frontend.keys import Key
from frontend.request_log import FACTS, MOST_PATH, Facts
from frontend.tracing.export import Exporter, check_environment
from ipc.errors import StartError

# What orchestrators and Prometheus ask all the time says nothing of clients.
UNTRACED: Final = frozenset({"/health", "/ready", "/readiness", "/ping", "/metrics"})
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
# The rest of what a supervisor waits for is for requests.
STOP_SECONDS: Final = 3.0
Headers = Iterable[tuple[bytes, bytes]]


class _Getter(Getter[Headers]):
    """W3C's headers of a request, as ASGI has them."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        name = key.encode()
        return [value.decode("latin-1") for found, value in carrier if found == name] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


PROPAGATOR: Final = TraceContextTextMapPropagator()
GETTER: Final = _Getter()


class Tracing:
    """What makes a front end's spans, and ends with it."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("embedlane")

    def middleware(self, routes: Container[str]) -> Middleware:
        """To be put right within `Correlation`; `routes` are the paths that are told apart."""
        return Middleware(Spans, tracer=self._tracer, routes=routes)

    async def close(self) -> None:
        """Send what is left. A collector that does not take it in time holds up nobody."""
        thread = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, STOP_SECONDS)


class Spans:
    """The middleware: continues the client's trace, or begins one, and says so in the answer's `traceparent`."""

    def __init__(self, app: ASGIApp, tracer: Tracer, routes: Container[str]) -> None:
        self._app = app
        self._tracer = tracer
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        facts: Facts = scope[FACTS]
        # Spans have the time of day, and what is measured here CLOCK_MONOTONIC.
        to_wall = time.time_ns() - time.monotonic_ns()
        span = self._start(scope, facts.began_ns + to_wall)
        if span.get_span_context().is_valid:
            facts.trace_id = format_trace_id(span.get_span_context().trace_id)
        own: dict[str, str] = {}
        PROPAGATOR.inject(own, set_span_in_context(span, Context()))
        headers = [(name.encode(), value.encode()) for name, value in own.items()]

        async def send_with_context(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_context)
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            if span.is_recording():
                _describe(span, scope, facts)
                self._parts(span, facts, to_wall)
            span.end()

    def _start(self, scope: Scope, start_time: int) -> Span:
        """With what a sampler may want to know."""
        method, path = scope["method"], scope["path"]
        is_known = method in METHODS
        attributes = {
            "http.request.method": method if is_known else "_OTHER",
            "network.protocol.version": scope["http_version"],
            "url.path": path[:MOST_PATH],
            "url.scheme": scope["scheme"],
        }
        name = method if is_known else "HTTP"
        if path in self._routes:
            attributes["http.route"] = path
            name = f"{name} {path}"
        parent = PROPAGATOR.extract(scope["headers"], Context(), GETTER)
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=start_time)

    def _parts(self, span: Span, facts: Facts, to_wall: int) -> None:
        within = set_span_in_context(span, Context())
        for name, began, ended in parts(facts):
            part = self._tracer.start_span(name, within, start_time=began + to_wall)
            part.end(ended + to_wall)


def parts(facts: Facts) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end (CLOCK_MONOTONIC, ns) of each part of a request that took place.

    Queue and compute are of the text that took longest of all, and end when the last vector was there: what is before
    them are limits, cache and messages. A text that others had asked for may have waited before this request came.
    """
    if facts.tokenized_ns:
        yield "tokenize", facts.tokenized_ns - facts.tokenize_ns, facts.tokenized_ns
    if facts.compute_ns:
        began = max(facts.tokenized_ns, facts.computed_ns - facts.compute_ns)
        yield "queue", max(facts.tokenized_ns, began - facts.wait_ns), began
        yield "compute", began, facts.computed_ns


def _describe(span: Span, scope: Scope, facts: Facts) -> None:
    """What is known at a request's end."""
    key: Key | None = scope.get(SCOPE_KEY)
    attributes: dict[str, str | int] = {"embedlane.correlation_id": scope["correlation_id"]}
    if key is not None:
        attributes["embedlane.key"] = key.name
    if facts.texts:
        attributes |= {"embedlane.texts": facts.texts, "embedlane.tokens": facts.tokens}
    if facts.cache is not None:
        attributes["embedlane.cache"] = facts.cache
    if facts.error is not None:
        attributes["embedlane.error"] = facts.error
    if facts.status is None:
        attributes["error.type"] = "client_left"
    else:
        attributes["http.response.status_code"] = facts.status
        if facts.status >= 500:
            attributes["error.type"] = facts.error or str(facts.status)
            span.set_status(StatusCode.ERROR)
    span.set_attributes(attributes)


def make_provider(process: str) -> TracerProvider:
    """As OpenTelemetry's own variables say. Raises StartError for those that cannot be."""
    check_environment()
    own = {SERVICE_NAME: "embedlane", SERVICE_INSTANCE_ID: f"{socket.gethostname()}/{process}"}
    given = OTELResourceDetector().detect().attributes
    resource = Resource.create({name: value for name, value in own.items() if name not in given})
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(Exporter()))
    except ValueError as error:
        raise StartError(f"Tracing cannot start ({error}): correct the OTEL_* variables.") from error
    return provider
