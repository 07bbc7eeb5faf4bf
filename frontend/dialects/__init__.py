"""The HTTP dialects, thin over one core: each parses its bodies, renders vectors and renders errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ipc.errors import RequestError


class Dialect(Protocol):
    """What `frontend.errors` needs of a dialect; each module of this package is one."""

    @property
    def STATUS(self) -> Mapping[type[RequestError], int]:  # noqa: N802 - a module's constant
        """The status table, or this dialect's variant of it."""

    def error_body(self, error: RequestError, status: int, correlation_id: str) -> bytes:
        """The error as this dialect's clients read it."""
