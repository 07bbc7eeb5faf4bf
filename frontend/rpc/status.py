"""An error as gRPC tells it: code and message, and google.rpc's details in the trailing metadata."""

from __future__ import annotations

import math
from datetime import timedelta

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from frontend.responses import GRPC_STATUS
from ipc.errors import InvalidRequest, RequestError

Pairs = list[tuple[str, str | bytes]]

# Whose reasons (RequestError.code) these are.
DOMAIN = "embedlane"


def code_of(error: RequestError) -> grpc.StatusCode:
    """The status by the one table."""
    return grpc.StatusCode[GRPC_STATUS[type(error)]]


def number_of(error: RequestError) -> int:
    """The same as a number."""
    number: int = code_of(error).value[0]
    return number


def field_of(error: RequestError, texts: str) -> str | None:
    """The field at fault, `texts` where it is a text that is too long; None where it is none of the message's."""
    if error.param is not None:
        return error.param
    return texts if isinstance(error, InvalidRequest) else None


def retry_ms(error: RequestError) -> int | None:
    """When to come back, rounded up: who comes a moment too early is refused again."""
    return None if error.retry_after is None else math.ceil(error.retry_after * 1e3)


def error_metadata(error: RequestError, field: str | None) -> Pairs:
    """Details for programs, and when to come back, also where gRPC's own clients look before they retry (gRFC A6)."""
    found: list[Message] = [details.ErrorInfo(reason=error.code, domain=DOMAIN)]
    pairs: Pairs = []
    if field is not None:
        violation = details.BadRequest.FieldViolation(field=field, description=error.message)
        found.append(details.BadRequest(field_violations=[violation]))
    milliseconds = retry_ms(error)
    if milliseconds is not None:
        wait = details.RetryInfo()
        wait.retry_delay.FromTimedelta(timedelta(milliseconds=milliseconds))
        found.append(wait)
        pairs += (
            ("retry-after", str(max(1, math.ceil(milliseconds / 1e3)))),
            ("retry-after-ms", str(milliseconds)),
            ("grpc-retry-pushback-ms", str(milliseconds)),
        )
    status = status_pb2.Status(code=number_of(error), message=error.message)
    for each in found:
        status.details.add().Pack(each)
    return [*pairs, ("grpc-status-details-bin", status.SerializeToString())]
