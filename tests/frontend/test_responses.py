from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.responses import (
    OPENAI_STATUS,
    STATUS,
    base64_vector,
    error_response,
    json_response,
    json_vector,
    raw_vector,
    sliced,
)
from ipc.errors import InputTooLong, InvalidRequest, MethodNotAllowed, Overloaded, RequestError, Unauthorized

floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


def subclasses(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for child in kind.__subclasses__():
        # Only the tree itself: a test may derive errors of its own.
        if child.__module__ == RequestError.__module__:
            yield child
            yield from subclasses(child)


@pytest.mark.parametrize("table", [STATUS, OPENAI_STATUS], ids=["common", "openai"])
def test_every_error_has_a_status(table: dict[type[RequestError], int]) -> None:
    assert set(table) == set(subclasses(RequestError))
    assert all(400 <= status < 600 for status in table.values())


def test_openai_knows_as_400_what_others_know_as_422() -> None:
    differ = {kind for kind in STATUS if STATUS[kind] != OPENAI_STATUS[kind]}
    assert differ == {InvalidRequest, InputTooLong}
    assert {(STATUS[kind], OPENAI_STATUS[kind]) for kind in differ} == {(422, 400)}


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.05, "1", "50"), (1.0, "1", "1000"), (2.4, "3", "2400"), (0.0001, "1", "1")],
)
def test_when_to_come_back_is_told_twice(seconds: float, whole: str, milliseconds: str) -> None:
    headers = error_response(Overloaded("m", retry_after=seconds), 429, b"{}").headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (whole, milliseconds)


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (Overloaded("m"), "retry-after", None),
        (InvalidRequest("m"), "retry-after-ms", None),
        (Unauthorized("m"), "www-authenticate", "Bearer"),
        (InvalidRequest("m"), "www-authenticate", None),
        (MethodNotAllowed("m", "GET, HEAD"), "allow", "GET, HEAD"),
    ],
)
def test_headers_of_an_error(error: RequestError, name: str, value: str | None) -> None:
    response = error_response(error, 400, b"{}")
    assert response.headers.get(name) == value
    assert response.media_type == "application/json"


def test_a_json_response_keeps_its_bytes() -> None:
    response = json_response(b"[1]", 418, {"x-a": "b"})
    assert (response.body, response.status_code, response.headers["x-a"]) == (b"[1]", 418, "b")


@given(floats)
def test_json_numbers_read_back_as_the_same_float32(values: list[float]) -> None:
    row = np.array(values, np.float32)
    assert np.array(json.loads(json_vector(row)), np.float32).tobytes() == row.tobytes()


@given(floats)
def test_base64_is_the_floats_bits(values: list[float]) -> None:
    row = np.array(values, np.float32)
    assert base64.b64decode(json.loads(base64_vector(row)), validate=True) == row.astype("<f4").tobytes()


@pytest.mark.parametrize("encode", [json_vector, base64_vector])
def test_a_row_that_cannot_be_written_is_encoded_in_place(encode: object) -> None:
    row = np.arange(8, dtype=np.float32).reshape(2, 4)[1]
    row.flags.writeable = False
    assert callable(encode)
    assert encode(row) == encode(row.copy())


def test_a_slice_has_length_1_and_leaves_the_row_alone() -> None:
    row = np.array([3, 4, 12], np.float32)
    before = row.copy()
    assert json.loads(sliced(json_vector, 2)(row)) == pytest.approx([0.6, 0.8])
    assert np.array_equal(row, before)


def test_a_slice_of_nothing_is_no_nan() -> None:
    assert json.loads(sliced(json_vector, 2)(np.array([0, 0, 1], np.float32))) == [0, 0]


@given(numbers=floats, normalize=st.booleans())
def test_whatever_the_vector_its_part_is_of_numbers_and_has_length_1(numbers: list[float], normalize: bool) -> None:
    row = np.array([*numbers, 1.0], np.float32)
    part = np.frombuffer(sliced(raw_vector, len(numbers), normalize=normalize)(row), np.float32)
    assert np.isfinite(part).all()
    if not normalize or not any(row[:-1]):
        assert part.tolist() == row[:-1].tolist()
    else:
        assert np.linalg.norm(part.astype(np.float64)) == pytest.approx(1, rel=1e-6)
