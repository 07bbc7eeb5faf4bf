"""A request as the core reads it, whatever it came by: HTTP's is starlette's, gRPC's is `frontend.rpc.calls.Rpc`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol


class Request(Protocol):
    """`scope` has what earlier stages found (key, facts, correlation id); names of `headers` are in lower case."""

    @property
    def scope(self) -> MutableMapping[str, Any]: ...  # noqa: D102 - see Request

    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
