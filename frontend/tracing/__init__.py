"""Spans of requests for OpenTelemetry, where EMBEDLANE_TRACING asks for them: docs/tracing.md.

Nothing here imports OpenTelemetry before it is asked for, and without it an application has no part of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipc.errors import StartError

if TYPE_CHECKING:
    from frontend.tracing.spans import Tracing


def open_tracing(process: str) -> Tracing:
    """The way to the collector, from now on; `process` is this front end's name.

    Raises StartError where packages are missing or the OTEL_* variables ask for what there is not.
    """
    try:
        from frontend.tracing.spans import Tracing, make_provider  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"EMBEDLANE_TRACING needs the packages of the extra `tracing` ({error}): install opentelemetry-sdk and "
            "opentelemetry-exporter-otlp-proto-http."
        ) from error
    return Tracing(make_provider(process))
