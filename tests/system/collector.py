"""A collector for traces: takes OTLP over HTTP, keeps every span, and can be slow or say no."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Received(NamedTuple):
    """A span and the attributes of what made it."""

    span: Span
    attributes: dict[str, object]
    resource: dict[str, object]

    @property
    def trace_id(self) -> str:
        """As logs have it."""
        return self.span.trace_id.hex()


def plain(attributes: list[KeyValue]) -> dict[str, object]:
    """Attributes as Python has them."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}


class Collector:
    """On a free port, or on the one given; a context manager. While `is_stuck` is set it answers nobody."""

    def __init__(self, port: int = 0) -> None:
        collector = self
        self.spans: list[Received] = []
        self.bodies: list[bytes] = []
        self.asked = threading.Event()
        self.is_stuck = False
        self._is_over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked.set()
                if collector.is_stuck:
                    collector._is_over.wait()
                    return
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Not on the tests' output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        """Keep what came."""
        assert path == "/v1/traces"
        self.bodies.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = plain(list(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans += [Received(span, plain(list(span.attributes)), resource) for span in scope.spans]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
