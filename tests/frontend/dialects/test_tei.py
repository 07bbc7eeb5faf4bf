from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import tokenizers

from frontend.dialects import tei
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import BodyTooLarge, EngineUnavailable, InvalidRequest, Overloaded, RequestError, Unauthorized
from tests.frontend.peer import vector
from tests.frontend.served import drawn_server

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
        {"truncation_direction": "LEFT"},
        {"parameters": {"truncate": "ignored here"}},
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
        ({"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "inputs"),
        ({"inputs": "a", "truncation_direction": "top"}, "`left` or `right`"),
        ({"inputs": "a", "truncation_direction": ""}, "`left` or `right`"),
        ({"inputs": "a", "truncation_direction": 1}, "truncation_direction"),
        ({"inputs": "a", "normalize": False}, "must be true or left out"),
        ({"inputs": "a", "normalize": "no"}, "normalize"),
        ({"inputs": "a", "prompt_name": "query"}, "the model has none"),
        ({"inputs": "a", "prompt_name": 5}, "prompt_name"),
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


@pytest.mark.parametrize(("side", "kept"), [("right", "first"), ("Left", "last"), (None, "first")])
async def test_truncation_keeps_the_other_end(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer, side: str | None, kept: str
) -> None:
    text = "first " * 254 + "last " * 254
    (row,) = (await post(http, {"inputs": text, "truncate": True, "truncation_direction": side})).json()
    assert np.array_equal(np.array(row, np.float32), vector(library.encode(f"{kept} " * 254).ids, 384))


@pytest.mark.parametrize("dimensions", [None, 5])
@pytest.mark.parametrize("normalize", [True, None, False])
async def test_normalize_is_the_clients_choice_where_the_model_leaves_it(
    run_dir: Path, bundle: Bundle, library: tokenizers.Tokenizer, normalize: bool | None, dimensions: int | None
) -> None:
    raw = 3 * vector(library.encode("text").ids, 384)[:dimensions]
    wanted = raw if normalize is False else raw / np.linalg.norm(raw)
    plain = msgspec.structs.replace(bundle, normalize=False)
    async with drawn_server(run_dir, plain, length=3) as client:
        (row,) = (await post(client, {"inputs": "text", "normalize": normalize, "dimensions": dimensions})).json()
        alone = (await client.post("/v1/embeddings", json={"input": "text"})).json()["data"][0]["embedding"]
    np.testing.assert_allclose(row, wanted, rtol=1e-6)
    assert np.linalg.norm(alone) == pytest.approx(3), "OpenAI's route gives what the model gives"


# prompts

PROMPTS = {"query": "find: ", "document": "", "code": "in code: "}


@pytest.mark.parametrize(
    ("default", "asked", "prefix"),
    [
        (None, None, ""),
        (None, "query", "find: "),
        (None, "document", ""),
        ("code", None, "in code: "),
        ("code", "query", "find: "),
    ],
)
async def test_a_prompt_is_put_before_the_text(
    run_dir: Path, bundle: Bundle, library: tokenizers.Tokenizer, default: str | None, asked: str | None, prefix: str
) -> None:
    prompted = msgspec.structs.replace(bundle, prompts=PROMPTS, default_prompt_name=default)
    async with drawn_server(run_dir, prompted) as client:
        (row,) = (await post(client, {"inputs": "text", "prompt_name": asked})).json()
        (tokens,) = (await client.post("/tokenize", json={"inputs": "text", "prompt_name": asked})).json()
    ids = library.encode(prefix + "text").ids
    assert np.array_equal(np.array(row, np.float32), vector(ids, 384))
    assert [token["id"] for token in tokens] == ids


@pytest.mark.parametrize("name", ["other", ""])
async def test_an_unknown_prompt_is_422_and_those_there_are_are_named(run_dir: Path, bundle: Bundle, name: str) -> None:
    async with drawn_server(run_dir, msgspec.structs.replace(bundle, prompts=PROMPTS)) as client:
        response = await post(client, {"inputs": "text", "prompt_name": name})
    assert response.status_code == 422
    assert "choose one of: code, document, query" in response.json()["error"]


# similarity

PAIR = {"source_sentence": "one text", "sentences": ["one text", "another", "漢字"]}


@pytest.mark.parametrize("path", ["/similarity", "/"])
@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {"truncate": True, "other": 1}}])
async def test_similarity_is_the_cosine(
    http: httpx.AsyncClient, library: tokenizers.Tokenizer, path: str, parameters: dict[str, Any]
) -> None:
    response = await http.post(path, json={"inputs": PAIR} | parameters)
    assert response.status_code == 200
    source, *others = (vector(library.encode(t).ids, 384) for t in ["one text", *PAIR["sentences"]])
    np.testing.assert_allclose(response.json(), [source @ other for other in others], atol=1e-6)
    assert response.json()[0] == pytest.approx(1)
    assert max(response.json()) <= 1
    assert int(response.headers["x-compute-tokens"]) > 8


async def test_similarity_truncates_when_asked(http: httpx.AsyncClient) -> None:
    long = "cat " * 300
    body = {"inputs": {"source_sentence": "cat " * 254, "sentences": ["dog " + long, long + "dog"]}}
    assert (await http.post("/similarity", json=body)).status_code == 422
    for side, same in (("left", 0), ("right", 1)):
        options = {"truncate": True, "truncation_direction": side}
        response = await http.post("/similarity", json=body | {"parameters": options})
        assert [cosine > 0.999 for cosine in response.json()] == [same == 0, same == 1]
        assert response.headers["x-truncated-texts"] == "2"


@pytest.mark.parametrize("path", ["/similarity", "/"])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": {}}, "source_sentence"),
        ({"inputs": {"source_sentence": "a"}}, "sentences"),
        ({"inputs": {"source_sentence": "a", "sentences": []}}, "`inputs.sentences` is empty"),
        ({"inputs": {"source_sentence": "a", "sentences": "b"}}, "sentences"),
        ({"inputs": {"source_sentence": "", "sentences": ["b"]}}, "Text 0 of `inputs` is empty"),
        ({"inputs": {"source_sentence": "a", "sentences": ["b", ""]}}, "Text 2 of `inputs` is empty"),
        ({"inputs": {"source_sentence": "a", "sentences": [None]}}, "sentences[0]"),
        ({"inputs": {"source_sentence": ["a"], "sentences": ["b"]}}, "source_sentence"),
        ({"inputs": PAIR, "parameters": []}, "parameters"),
        ({"inputs": PAIR, "parameters": {"truncation_direction": "up"}}, "`left` or `right`"),
        ({"inputs": PAIR, "parameters": {"prompt_name": "query"}}, "prompt"),
        ({"inputs": PAIR, "parameters": {"truncate": "yes"}}, "truncate"),
        ({"inputs": {"source_sentence": "a", "sentences": ["x"] * 64}}, "65 texts, the most is 64"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_bad_comparisons_are_422(http: httpx.AsyncClient, path: str, body: Any, says: str) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 422
    assert response.json()["error_type"] == "Validation"
    assert says in response.json()["error"]


async def test_the_root_embeds(http: httpx.AsyncClient) -> None:
    for inputs in ("text", ["text", "more"]):
        assert (await http.post("/", json={"inputs": inputs})).json() == (await post(http, {"inputs": inputs})).json()
    assert (await http.post("/", json={"inputs": [1]})).status_code == 422


# tokenize


@pytest.mark.parametrize("special", [True, None, False])
async def test_tokenize(http: httpx.AsyncClient, special: bool | None) -> None:
    response = await http.post("/tokenize", json={"inputs": ["Wörld 漢!", "a"], "add_special_tokens": special})
    assert response.status_code == 200
    around = special is not False
    first, second = response.json()
    assert first[around : len(first) - around] == [
        {"id": 2088, "text": "Wörld", "special": False, "start": 0, "stop": 6},
        {"id": 1904, "text": "漢", "special": False, "start": 7, "stop": 10},
        {"id": 999, "text": "!", "special": False, "start": 10, "stop": 11},
    ]
    if around:
        assert first[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
        assert first[-1] == {"id": 102, "text": "[SEP]", "special": True, "start": None, "stop": None}
    assert [token["text"] for token in second] == (["[CLS]", "a", "[SEP]"] if around else ["a"])


async def test_tokenize_takes_more_than_the_model_does(http: httpx.AsyncClient) -> None:
    (tokens,) = (await http.post("/tokenize", json={"inputs": "cat " * 900})).json()
    assert len(tokens) == 902


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": []}, "empty"),
        ({"inputs": ["a", ""]}, "Text 1 of `inputs` is empty"),
        ({"inputs": [[1]]}, "inputs[0]"),
        ({"inputs": "a", "add_special_tokens": 0}, "add_special_tokens"),
        ({"inputs": "a", "prompt_name": "x"}, "prompt"),
        ({"inputs": "x" * 4001}, "4001 characters, the most is 4000"),
        ({"inputs": ["x"] * 65}, "the most is 64"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_tokenized_is_422(http: httpx.AsyncClient, body: Any, says: str) -> None:
    response = await http.post("/tokenize", json=body)
    assert response.status_code == 422
    assert says in response.json()["error"]


# info


async def test_info_tells_model_and_limits(http: httpx.AsyncClient, bundle: Bundle) -> None:
    await post(http, {"inputs": "the engine has joined"})
    told = (await http.get("/info")).json()
    assert (told["model_id"], told["model_sha"], told["model_dtype"]) == (bundle.id, bundle.revision, "float32")
    assert told["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (told["max_input_length"], told["max_client_batch_size"], told["dimensions"]) == (256, 64, 384)
    assert (told["prompts"], told["default_prompt_name"], told["auto_truncate"]) == ([], None, False)


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
