from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from frontend.responses import GRPC_STATUS, STATUS
from frontend.rpc.status import code_of, error_metadata, field_of, number_of
from ipc.errors import InputTooLong, InvalidRequest, Overloaded, RateLimited, RequestError, Unauthorized


def test_every_error_has_a_code_that_grpc_knows() -> None:
    assert set(GRPC_STATUS) == set(STATUS)
    assert {grpc.StatusCode[name] for name in GRPC_STATUS.values()} < set(grpc.StatusCode)


@pytest.mark.parametrize("kind", list(STATUS), ids=lambda kind: kind.code)
def test_both_columns_say_whose_fault_it_is(kind: type[RequestError]) -> None:
    is_servers = GRPC_STATUS[kind] in {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert (STATUS[kind] >= 500) == is_servers


def details(error: RequestError, field: str | None) -> dict[str, Any]:
    pairs = dict(error_metadata(error, field))
    status = status_pb2.Status.FromString(pairs.pop("grpc-status-details-bin"))
    assert (status.code, status.message) == (number_of(error), error.message)
    return {**pairs, **{each.type_url.rpartition(".")[2]: each for each in status.details}}


def test_details_name_the_field_and_the_reason() -> None:
    found = details(InvalidRequest("`texts` is empty.", param="texts"), "texts")
    assert set(found) == {"ErrorInfo", "BadRequest"}
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    assert found["BadRequest"].Unpack(bad) and found["ErrorInfo"].Unpack(info)
    assert [(each.field, each.description) for each in bad.field_violations] == [("texts", "`texts` is empty.")]
    assert (info.reason, info.domain) == ("VALIDATION_ERROR", "embedlane")


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"), [(0.05, "1", "50"), (2.4, "3", "2400"), (0.0001, "1", "1")]
)
def test_when_to_come_back_is_told_in_every_form(seconds: float, whole: str, milliseconds: str) -> None:
    found = details(Overloaded("m", retry_after=seconds), None)
    wait = error_details_pb2.RetryInfo()
    assert found.pop("RetryInfo").Unpack(wait)
    assert wait.retry_delay.ToMilliseconds() == int(milliseconds)
    assert found.pop("ErrorInfo")
    assert found == {
        "retry-after": whole,
        "retry-after-ms": milliseconds,
        "grpc-retry-pushback-ms": milliseconds,
    }


def test_where_trying_again_is_useless_nobody_is_told_to() -> None:
    assert set(details(RateLimited("m"), None)) == {"ErrorInfo"}


def test_the_field_is_the_errors_or_that_of_the_texts() -> None:
    assert field_of(InvalidRequest("m", param="dimensions"), "texts") == "dimensions"
    assert field_of(InputTooLong("m"), "texts") == "texts"
    assert field_of(Unauthorized("m"), "texts") is None
    assert code_of(InputTooLong("m")) is grpc.StatusCode.INVALID_ARGUMENT
