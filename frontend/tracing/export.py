"""The exporter: OTLP over HTTP in a thread of its own, and one log line where it loses spans."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from ipc.errors import StartError

log = logging.getLogger(__name__)

PROTOCOL: Final = "http/protobuf"
# Where OpenTelemetry logs what becomes of batches, and of spans that find the queue full.
LOGGERS: Final = (trace_exporter.__name__, "opentelemetry.sdk._shared_internal")
QUIET_SECONDS: Final = 60.0


class Exporter(trace_exporter.OTLPSpanExporter):
    """OpenTelemetry's own, whose many lines on a collector that is away or slow become one."""

    def __init__(self) -> None:
        super().__init__()
        self._reason: str | None = None
        self._lost_at = -math.inf
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._keep)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter; called by the processor's thread alone."""
        self._reason = None
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lose(self._reason)
        return result

    def shutdown(self) -> None:
        """See SpanExporter."""
        super().shutdown()  # type: ignore[no-untyped-call]
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._keep)

    def _keep(self, record: logging.LogRecord) -> bool:
        """What the library has to say, in place of its line: of a batch the first says why, the others that it ends."""
        if record.name == LOGGERS[0]:
            self._reason = self._reason or record.getMessage()
        else:
            self._lose(record.getMessage())
        return False

    def _lose(self, reason: str | None) -> None:
        """Spans are lost now; said once until nothing has been for a while."""
        if time.monotonic() - self._lost_at > QUIET_SECONDS:
            log.warning("spans are lost: the collector is away or slow", extra={"reason": reason})
        self._lost_at = time.monotonic()


def check_environment() -> None:
    """Raises StartError where OpenTelemetry's variables name a way out that is not this one."""
    protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    if protocol not in os.environ:
        protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
    for name, taken in (("OTEL_TRACES_EXPORTER", "otlp"), (protocol, PROTOCOL)):
        given = os.environ.get(name) or taken
        if given != taken:
            raise StartError(f"{name}={given} is not to be had here: set it to {taken}, or leave it out.")
