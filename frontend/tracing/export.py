"""The exporter: OTLP over HTTP in a thread of its own, and one log line where a collector comes or goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from ipc.errors import StartError

log = logging.getLogger(__name__)

PROTOCOL: Final = "http/protobuf"


class Exporter(trace_exporter.OTLPSpanExporter):
    """OpenTelemetry's own, which would log each try of each batch while the collector is away."""

    def __init__(self) -> None:
        super().__init__()
        self._is_away = False
        self._reason: str | None = None
        logging.getLogger(trace_exporter.__name__).addFilter(self._keep)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter; called by the processor's thread alone."""
        self._reason = None
        result = super().export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            log.warning("spans are lost, for the collector does not take them", extra={"reason": self._reason})
        elif self._is_away and not is_away:
            log.info("the collector takes spans again")
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        super().shutdown()  # type: ignore[no-untyped-call]
        logging.getLogger(trace_exporter.__name__).removeFilter(self._keep)

    def _keep(self, record: logging.LogRecord) -> bool:
        """What the library has to say of a batch, in place of its line: the first says why, the others that it ends."""
        self._reason = self._reason or record.getMessage()
        return False


def check_environment() -> None:
    """Raises StartError where OpenTelemetry's variables name a way out that is not this one."""
    protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if protocol not in os.environ:
        protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
    for name, taken in (("OTEL_TRACES_EXPORTER", "otlp"), (protocol, PROTOCOL)):
        given = os.environ.get(name) or taken
        if given != taken:
            raise StartError(f"{name}={given} is not to be had here: set it to {taken}, or leave it out.")
