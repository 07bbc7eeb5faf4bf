from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import llama_index.core
import msgspec
import numpy as np
import pytest
import tiktoken
import tokenizers

from frontend.dialects import openai
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import EngineFailure, InvalidRequest, Overloaded, RequestError, Unauthorized
from tests.frontend.peer import vector
from tests.frontend.served import drawn_server

pytestmark = pytest.mark.anyio

DIM = 384


@pytest.fixture(scope="module")
def library(bundle: Bundle) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tiktoken finds cl100k_base: llama-index brings it along."""
    folder = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return folder


def expected(library: tokenizers.Tokenizer, text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return vector(library.encode(text).ids, DIM)


async def post(http: httpx.AsyncClient, body: Any, path: str = "/v1/embeddings") -> httpx.Response:
    return await http.post(path, json=body)


def rows(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [item["embedding"] for item in response.json()["data"]]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
async def test_a_list_of_texts(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer, bundle: Bundle, path: str
) -> None:
    texts = ["one", "two words", "漢字 and 👩\u200d👧"]
    response = await post(http, {"input": texts, "model": "whatever", "user": "u"}, path)
    body = response.json()
    tokens = sum(len(library.encode(text).ids) for text in texts)
    assert {key: body[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": bundle.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", n) for n in range(3)]
    for row, text in zip(rows(response), texts, strict=True):
        assert np.array_equal(np.array(row, np.float32), expected(library, text)), "to the bit, through JSON"
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_every_encoding_has_the_same_bits(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer, encoding: str | None
) -> None:
    (row,) = rows(await post(http, {"input": "some text", "encoding_format": encoding}))
    if encoding == "base64":
        got = np.frombuffer(base64.b64decode(row, validate=True), "<f4")
    else:
        got = np.array(row, np.float32)
    assert got.tobytes() == expected(library, "some text").tobytes()


@pytest.mark.parametrize("dimensions", [1, 7, DIM - 1, DIM])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_dimensions_slices_and_renormalizes(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer, dimensions: int, encoding: str
) -> None:
    (row,) = rows(await post(http, {"input": "some text", "dimensions": dimensions, "encoding_format": encoding}))
    got = np.frombuffer(base64.b64decode(row), "<f4") if encoding == "base64" else np.array(row, np.float32)
    head = expected(library, "some text")[:dimensions]
    assert got.shape == (dimensions,)
    np.testing.assert_allclose(got, head / np.linalg.norm(head), rtol=1e-6)
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)


async def test_a_large_request_is_split_and_stays_in_order(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer
) -> None:
    texts = [f"text number {n} " * (n % 5 + 1) for n in range(64)]
    got = rows(await post(http, {"input": texts}))
    assert all(
        np.array_equal(np.array(row, np.float32), expected(library, t)) for row, t in zip(got, texts, strict=True)
    )


async def test_too_long_is_refused_unless_truncation_is_asked_for(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer
) -> None:
    long = "cat " * 300
    refused = await post(http, {"input": ["short", long]})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "input_too_long"
    assert "Text 1 has 302 tokens, the model takes 256" in refused.json()["error"]["message"]
    cut = await post(http, {"input": ["short", long], "truncate": True})
    assert cut.json()["usage"]["total_tokens"] == 3 + 256
    assert cut.headers["x-truncated-texts"] == "1"
    assert np.array_equal(np.array(rows(cut)[1], np.float32), expected(library, "cat " * 254))


OF_IDS = "check_embedding_ctx_length=False"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "input"),
        ({"input": None}, "input", "null"),
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": ["fine", ""]}, "input", "Text 1"),
        ({"input": 5}, "input", "`input`"),
        ({"input": {"text": "a"}}, "input", "`input`"),
        ({"input": ["a", None]}, "input", "input[1]"),
        ({"input": [["a"]]}, "input", "input[0][0]"),
        ({"input": [1.5]}, "input", "input[0]"),
        ({"input": [True]}, "input", "input[0]"),
        ({"input": [[[1]]]}, "input", "input[0][0]"),
        ({"input": [1, 2, 3]}, "input", OF_IDS),
        ({"input": [[1, 2], [3]]}, "input", OF_IDS),
        ({"input": [[]]}, "input", OF_IDS),
        ({"input": ["a", 1]}, "input", OF_IDS),
        ({"input": ["x"] * 65}, "input", "65 texts, the most is 64"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "encoding_format"),
        ({"input": "a", "encoding_format": 1}, "encoding_format", "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions", "dimensions"),
        ({"input": "a", "dimensions": -1}, "dimensions", "dimensions"),
        ({"input": "a", "dimensions": 385}, "dimensions", "the model has 384"),
        ({"input": "a", "dimensions": 10**30}, "dimensions", "dimensions"),
        ({"input": "a", "dimensions": "5"}, "dimensions", "dimensions"),
        ({"input": "a", "dimensions": 1.5}, "dimensions", "dimensions"),
        ({"input": "a", "model": 5}, "model", "model"),
        ({"input": "a", "truncate": "yes"}, "truncate", "truncate"),
        ([], None, "object"),
        ("text", None, "object"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_fields_are_400_and_named(http: httpx.AsyncClient, body: Any, param: str | None, says: str) -> None:
    response = await post(http, body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "validation_error")
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "extra", [{"unknown": [1, {"a": None}]}, {"user": 7}, {"dimensions": None, "truncate": None, "model": None}]
)
async def test_unknown_fields_and_null_are_ignored(http: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    assert len(rows(await post(http, {"input": "a"} | extra))) == 1


# token ids


@pytest.mark.parametrize("one", [True, False])
async def test_the_models_own_ids_are_taken_as_they_are(run_dir: Path, bundle: Bundle, one: bool) -> None:
    lists = [[101, 7592, 102]] if one else [[101, 7592, 102], [7592], [0, bundle.vocab_size - 1] * 128]
    async with drawn_server(run_dir, bundle, token_input="model") as client:  # noqa: S106 - no password
        response = await post(client, {"input": lists[0] if one else lists, "dimensions": None})
        text = await post(client, {"input": "hello"})
    for row, ids in zip(rows(response), lists, strict=True):
        assert np.array_equal(np.array(row, np.float32), vector(ids, DIM)), "no special tokens are added"
    assert rows(response)[0] == rows(text)[0]
    assert response.json()["usage"]["total_tokens"] == sum(map(len, lists))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[]], "Text 0 of `input` is empty"),
        ([[1], []], "Text 1 of `input` is empty"),
        ([-1], "outside the model's vocabulary of 30522"),
        ([[1], [30522]], "Text 1 of `input` has a token id outside"),
        ([2**62], "outside"),
        ([1] * 257, "257 token ids, the model takes 256"),
        ([[1]] * 65, "the most is 64"),
        (["a", 1], "mixes"),
        ([1, [2]], "mixes"),
        ([], "empty"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_ids_that_are_none_of_the_models(run_dir: Path, bundle: Bundle, given: Any, says: str) -> None:
    async with drawn_server(run_dir, bundle, token_input="model") as client:  # noqa: S106 - no password
        response = await post(client, {"input": given})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_cl100k_is_decoded_and_tokenized_anew(
    run_dir: Path, bundle: Bundle, library: tokenizers.Tokenizer, vocabulary: Path
) -> None:
    texts = ["hello world", "漢字 and 👩\u200d👧", "<|endoftext|>"]
    encoding = tiktoken.get_encoding("cl100k_base")
    lists = [encoding.encode(text, allowed_special="all") for text in texts]
    async with drawn_server(run_dir, bundle, token_input="cl100k") as client:  # noqa: S106 - no password
        response = await post(client, {"input": lists})
        alone = await post(client, {"input": lists[0]})
        wrong: list[Any] = [[100_256], [-1], [2**40], [[]], [["a"]]]
        refusals = [await post(client, {"input": ids}) for ids in wrong]
        long = {"input": encoding.encode("cat " * 300)}
        assert (await post(client, long)).status_code == 400
        assert (await post(client, long | {"truncate": True})).headers["x-truncated-texts"] == "1"
    for row, text in zip(rows(response), texts, strict=True):
        assert np.array_equal(np.array(row, np.float32), expected(library, text))
    assert rows(alone)[0] == rows(response)[0]
    assert [refusal.status_code for refusal in refusals] == [400] * 5


# prompts

PROMPTS = {"query": "find: ", "passage": "this: "}


@pytest.mark.parametrize(
    ("asked", "prefix"),
    [
        ({}, ""),
        ({"prompt_name": "query"}, "find: "),
        ({"input_type": "query"}, "find: "),
        ({"input_type": "passage"}, "this: "),
        ({"input_type": "document"}, "this: "),
        ({"input_type": "query", "prompt_name": "passage"}, "this: "),
        ({"input_type": None, "prompt_name": None}, ""),
    ],
    ids=str,
)
async def test_prompts(
    run_dir: Path, bundle: Bundle, library: tokenizers.Tokenizer, asked: dict[str, Any], prefix: str
) -> None:
    async with drawn_server(run_dir, msgspec.structs.replace(bundle, prompts=PROMPTS)) as client:
        (row,) = rows(await post(client, {"input": "text"} | asked))
    assert np.array_equal(np.array(row, np.float32), expected(library, prefix + "text"))


async def test_a_kind_of_text_that_the_model_has_no_prompt_for(http: httpx.AsyncClient) -> None:
    plain = rows(await post(http, {"input": "text"}))
    assert rows(await post(http, {"input": "text", "input_type": "query"})) == plain


async def test_prompts_there_are_not(run_dir: Path, bundle: Bundle) -> None:
    prompted = msgspec.structs.replace(bundle, prompts=PROMPTS)
    async with drawn_server(run_dir, prompted, token_input="model") as client:  # noqa: S106 - no password
        unknown = await post(client, {"input": "text", "prompt_name": "other"})
        kind = await post(client, {"input": "text", "input_type": "search"})
        ids = await post(client, {"input": [1, 2], "prompt_name": "query"})
    assert [r.status_code for r in (unknown, kind, ids)] == [400, 400, 400]
    assert "choose one of: passage, query" in unknown.json()["error"]["message"]
    assert [r.json()["error"]["param"] for r in (unknown, kind, ids)] == ["prompt_name", "input_type", "prompt_name"]


async def test_models(http: httpx.AsyncClient, bundle: Bundle) -> None:
    response = await http.get("/v1/models")
    assert response.json() == {
        "object": "list",
        "data": [{"id": bundle.id, "object": "model", "created": 0, "owned_by": "embedlane"}],
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("m", param="p"), 400, "invalid_request_error", "validation_error"),
        (Unauthorized("m", param="p"), 401, "invalid_request_error", "invalid_api_key"),
        (Overloaded("m", param="p"), 429, "rate_limit_error", "overloaded"),
        (EngineFailure("m", param="p"), 500, "server_error", "engine_failure"),
    ],
)
def test_errors_read_as_openais(error: RequestError, status: int, kind: str, code: str) -> None:
    body = httpx.Response(status, content=openai.error_body(error, status, "id")).json()
    assert body == {"error": {"message": "m", "type": kind, "param": "p", "code": code}}
