"""JSON logs on stderr, one object a line, the same in every process."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

from pythonjsonlogger.msgspec import MsgspecFormatter

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)


def configure_logging(process: str, level: str) -> None:
    """Send every logger of this process, the libraries' too, to stderr as JSON.

    Fields: time (ISO 8601, UTC), level, process, logger, message, the correlation id while a request is served,
    and whatever a call passes in `extra`.
    """
    formatter = MsgspecFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger", "timestamp": "time"},
        static_fields={"process": process},
        timestamp="timestamp",
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_complete)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _complete(record: logging.LogRecord) -> bool:
    identity = correlation_id.get()
    if identity is not None:
        record.correlation_id = identity
    # uvicorn's second wording of the message, for terminals.
    record.__dict__.pop("color_message", None)
    return True
