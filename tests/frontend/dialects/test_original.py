from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers

from frontend.dialects import original
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import InvalidRequest, Overloaded
from tests.frontend.peer import vector

pytestmark = pytest.mark.anyio


async def post(http: httpx.AsyncClient, body: Any) -> httpx.Response:
    return await http.post("/v1/embed", json=body)


@pytest.mark.parametrize("text", ["x", "some words", "漢" * 1024, "  " + "y" * 1024 + "\n"], ids=lambda text: text[:12])
async def test_one_text(http: httpx.AsyncClient, bundle: Bundle, text: str) -> None:
    response = await post(http, {"input_text": text})
    assert response.status_code == 200
    library = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    library.enable_truncation(bundle.max_tokens)
    assert np.array_equal(
        np.array(response.json()["embedding"], np.float32), vector(library.encode(text.strip()).ids, bundle.dim)
    )
    assert response.json()["model"] == bundle.id
    assert set(response.json()) == {"embedding", "model"}


async def test_a_long_text_is_truncated_and_that_is_told(http: httpx.AsyncClient) -> None:
    response = await post(http, {"input_text": "a " * 400})
    assert response.status_code == 200
    assert (response.headers["x-truncated-texts"], response.headers["x-compute-tokens"]) == ("1", "256")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input_text": None},
        {"input_text": ""},
        {"input_text": " \n\t "},
        {"input_text": "x" * 1025},
        {"input_text": "漢" * 1025},
        {"input_text": ["a"]},
        {"input_text": 5},
    ],
    ids=lambda body: str(body)[:30],
)
async def test_bad_text_is_422_and_named(http: httpx.AsyncClient, body: Any) -> None:
    response = await post(http, body)
    assert response.status_code == 422
    error = response.json()
    assert (error["error"], error["code"]) == ("InvalidRequest", "VALIDATION_ERROR")
    assert "input_text" in error["detail"]
    assert error["correlation_id"] == response.headers["x-correlation-id"]


def test_errors_read_as_the_original_gateways() -> None:
    plain = httpx.Response(422, content=original.error_body(InvalidRequest("m", param="p"), 422, "id")).json()
    assert plain == {"error": "InvalidRequest", "detail": "m", "code": "VALIDATION_ERROR", "correlation_id": "id"}
    later = httpx.Response(429, content=original.error_body(Overloaded("m", retry_after=1.5), 429, "id")).json()
    assert later["retry_after"] == 1.5
