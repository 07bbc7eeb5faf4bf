from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from frontend.tracing import export
from frontend.tracing.export import LOGGERS, Exporter
from perf.stack import free_port


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """Whatever ends in it is sent at once, to nobody."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    yield provider
    provider.shutdown()
    assert not [each for name in LOGGERS for each in logging.getLogger(name).filters if "Exporter" in repr(each)]


def test_losses_are_one_line_until_there_was_none_for_a_while(
    lose: TracerProvider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = lose.get_tracer("test")
    for number in range(3):
        tracer.start_span(f"{number}").end()
        logging.getLogger(LOGGERS[1]).warning("Queue full, dropping %s.", number)
    ((name, message, reason),) = [(r.name, r.getMessage(), vars(r)["reason"]) for r in caplog.records]
    assert (name, message) == (export.__name__, "spans are lost: the collector is away or slow")
    assert "Failed to export" in reason
    monkeypatch.setattr(export, "QUIET_SECONDS", 0)
    logging.getLogger(LOGGERS[1]).warning("Queue full, dropping Span.")
    assert [vars(record)["reason"] for record in caplog.records[1:]] == ["Queue full, dropping Span."]
