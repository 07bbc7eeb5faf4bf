from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers

from frontend.dialects import tei
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import BodyTooLarge, EngineUnavailable, InvalidRequest, Overloaded, RequestError, Unauthorized
from tests.frontend.peer import vector

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def library(bundle: Bundle) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))


async def post(http: httpx.AsyncClient, body: Any) -> httpx.Response:
    return await http.post("/embed", json=body)


@pytest.mark.parametrize("inputs", ["one text", ["one text"], ["one", "two words", "漢字"]], ids=str)
async def test_a_bare_list_of_vectors(http: httpx.AsyncClient, library: tokenizers.Tokenizer, inputs: Any) -> None:
    response = await post(http, {"inputs": inputs})
    assert response.status_code == 200
    texts = [inputs] if isinstance(inputs, str) else inputs
    expected = [vector(library.encode(text).ids, 384) for text in texts]
    assert np.array_equal(np.array(response.json(), np.float32), expected)
    assert response.headers["x-compute-tokens"] == str(sum(len(library.encode(text).ids) for text in texts))


async def test_dimensions(http: httpx.AsyncClient, library: tokenizers.Tokenizer) -> None:
    (row,) = (await post(http, {"inputs": "text", "dimensions": 5})).json()
    head = vector(library.encode("text").ids, 384)[:5]
    np.testing.assert_allclose(row, head / np.linalg.norm(head), rtol=1e-6)


@pytest.mark.parametrize(
    "extra",
    [
        {"truncation_direction": "Right"},
        {"truncation_direction": "right"},
        {"truncation_direction": None},
        {"normalize": True},
        {"normalize": None, "prompt_name": None, "truncate": None, "dimensions": None},
        {"unknown": {"a": []}},
    ],
    ids=str,
)
async def test_what_changes_nothing_is_taken(http: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    assert (await post(http, {"inputs": "text"} | extra)).json() == (await post(http, {"inputs": "text"})).json()


@pytest.mark.parametrize("truncate", [True, False, None])
async def test_truncation_only_when_asked_for(http: httpx.AsyncClient, truncate: bool | None) -> None:
    response = await post(http, {"inputs": "cat " * 300, "truncate": truncate})
    if truncate:
        assert response.headers["x-truncated-texts"] == "1"
        assert response.headers["x-compute-tokens"] == "256"
    else:
        assert response.status_code == 422
        assert "302 tokens" in response.json()["error"]
        assert "x-truncated-texts" not in response.headers


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": ""}, "empty"),
        ({"inputs": []}, "empty"),
        ({"inputs": ["a", ""]}, "Text 1"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": [5]}, "inputs[0]"),
        ({"inputs": [["a", "b"]]}, "inputs[0]"),
        ({"inputs": ["x"] * 65}, "the most is 64"),
        ({"inputs": "a", "truncate": 1}, "truncate"),
        ({"inputs": "a", "truncation_direction": "left"}, "right"),
        ({"inputs": "a", "truncation_direction": "Left"}, "right"),
        ({"inputs": "a", "normalize": False}, "normalized"),
        ({"inputs": "a", "prompt_name": "query"}, "prompt"),
        ({"inputs": "a", "dimensions": 0}, "dimensions"),
        ({"inputs": "a", "dimensions": 385}, "384"),
        ([], "object"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_done_is_422(http: httpx.AsyncClient, body: Any, says: str) -> None:
    response = await post(http, body)
    assert response.status_code == 422
    assert response.json()["error_type"] == "Validation"
    assert set(response.json()) == {"error", "error_type"}
    assert says in response.json()["error"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("m"), 422, "Validation"),
        (BodyTooLarge("m"), 413, "Validation"),
        (Overloaded("m"), 429, "Overloaded"),
        (EngineUnavailable("m"), 503, "Unhealthy"),
        (Unauthorized("m"), 401, "Unauthorized"),
    ],
)
def test_errors_read_as_teis(error: RequestError, status: int, kind: str) -> None:
    body = httpx.Response(status, content=tei.error_body(error, status, "id")).json()
    assert body == {"error": "m", "error_type": kind}
