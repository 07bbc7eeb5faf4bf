"""Rows → bytes, and errors → status: the one table, of HTTP and of gRPC."""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import orjson
from starlette.responses import Response

from ipc.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    InputTooLong,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelChanged,
    Overloaded,
    PoisonRequest,
    RateLimited,
    RequestError,
    Unauthorized,
    UnknownRoute,
    UnsupportedMedia,
)
from ipc.slab import Row

STATUS: Final[dict[type[RequestError], int]] = {
    InvalidRequest: 422,
    InputTooLong: 422,
    UnsupportedMedia: 415,
    BodyTooLarge: 413,
    Unauthorized: 401,
    UnknownRoute: 404,
    MethodNotAllowed: 405,
    RateLimited: 429,
    Overloaded: 429,
    EngineUnavailable: 503,
    ModelChanged: 503,
    DeadlineExceeded: 504,
    EngineFailure: 500,
    PoisonRequest: 500,
    InternalError: 500,
}

# The same for gRPC, by the names of its codes (`grpc` itself is there only where it is served).
GRPC_STATUS: Final[dict[type[RequestError], str]] = {
    InvalidRequest: "INVALID_ARGUMENT",
    InputTooLong: "INVALID_ARGUMENT",
    UnsupportedMedia: "INVALID_ARGUMENT",
    BodyTooLarge: "RESOURCE_EXHAUSTED",
    Unauthorized: "UNAUTHENTICATED",
    UnknownRoute: "UNIMPLEMENTED",
    MethodNotAllowed: "UNIMPLEMENTED",
    RateLimited: "RESOURCE_EXHAUSTED",
    Overloaded: "RESOURCE_EXHAUSTED",
    EngineUnavailable: "UNAVAILABLE",
    ModelChanged: "UNAVAILABLE",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    EngineFailure: "INTERNAL",
    PoisonRequest: "INTERNAL",
    InternalError: "INTERNAL",
}

# OpenAI's clients know as 400 what those of text-embeddings-inference and of the original gateway know as 422.
OPENAI_STATUS: Final = STATUS | {InvalidRequest: 400, InputTooLong: 400}


# Beyond these a float32 cannot hold the squares that a vector's length is the sum of.
SHORTEST: Final = 1e-15
LONGEST: Final = 1e18


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response around JSON that is encoded already."""
    return Response(body, status, headers, "application/json")


def retry_headers(error: RequestError) -> dict[str, str]:
    """When to come back, where that helps."""
    if error.retry_after is None:
        return {}
    # Retry-After has whole seconds, and 0 would mean "at once"; OpenAI's clients prefer the exact one. Rounded up:
    # who comes a moment too early is refused again.
    return {
        "retry-after": f"{max(1, math.ceil(error.retry_after))}",
        "retry-after-ms": f"{math.ceil(error.retry_after * 1e3)}",
    }


def error_response(error: RequestError, status: int, body: bytes) -> Response:
    """An error's answer."""
    headers = retry_headers(error)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    return json_response(body, status, headers)


def raw_vector(row: Row) -> bytes:
    """Little-endian float32 [dim], copied."""
    return row.tobytes()


def json_vector(row: Row) -> bytes:
    """A JSON list whose numbers read back as the same float32; `row` is float32 [dim]."""
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def base64_vector(row: Row) -> bytes:
    """Base64 of little-endian float32 [dim], quoted for JSON."""
    return b'"' + binascii.b2a_base64(row.data, newline=False) + b'"'


def sliced(take: Callable[[Row], bytes], dimensions: int, *, normalize: bool = True) -> Callable[[Row], bytes]:
    """Encode only the first `dimensions` numbers, scaled to length 1 again if `normalize`."""
    if normalize:
        take = unit_length(take)
    return lambda row: take(row[:dimensions])


def unit_length(take: Callable[[Row], bytes]) -> Callable[[Row], bytes]:
    """Encode the vector scaled to length 1; one of length 0 stays as it is."""

    def take_scaled(row: Row) -> bytes:
        with np.errstate(over="ignore"):
            norm = np.linalg.norm(row)
        if not SHORTEST < norm < LONGEST:
            return take(_scaled_in_double(row))
        return take(row / norm)

    return take_scaled


def _scaled_in_double(row: Row) -> Row:
    exact = row.astype(np.float64)
    norm = np.linalg.norm(exact)
    return (exact / norm).astype(np.float32) if norm else row
