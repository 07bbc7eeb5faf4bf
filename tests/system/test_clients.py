"""Clients that people already use, as they come, against real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llama_index.core
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference  # type: ignore[import-untyped]

from ipc.settings import DEFAULT_MODEL
from perf.stack import KEY, Stack
from tests.system.reference import MIN_COSINE, Reference, cosine, differing

pytestmark = pytest.mark.system

MODEL = "text-embedding-3-small"
# The vocabulary of cl100k_base comes with llama-index, under the name that tiktoken looks for.
CL100K = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"


@pytest.fixture
def some(references: list[Reference]) -> list[Reference]:
    """Texts that need no truncation."""
    return [r for r in references if r.text and r.tokens < 128]


@pytest.fixture
def longest(references: list[Reference]) -> Reference:
    return max(references, key=lambda r: len(r.text))


def as_vectors(rows: Any) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    return [np.array(row, np.float32) for row in rows]


# openai


@pytest.fixture
def client(server: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_one_text(client: openai.OpenAI, some: list[Reference]) -> None:
    answer = client.embeddings.create(model=MODEL, input=some[5].text)
    assert differing(some[5:6], [np.array(answer.data[0].embedding, np.float32)]) == {}
    assert (answer.object, answer.data[0].object, answer.data[0].index) == ("list", "embedding", 0)
    assert answer.model == DEFAULT_MODEL
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == some[5].tokens


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai_many_texts(client: openai.OpenAI, some: list[Reference], encoding: dict[str, str]) -> None:
    answer = client.embeddings.create(model=MODEL, input=[r.text for r in some], **encoding)  # type: ignore[arg-type]
    assert [entry.index for entry in answer.data] == list(range(len(some)))
    if encoding.get("encoding_format") == "base64":
        assert all(isinstance(entry.embedding, str) for entry in answer.data)
    else:
        assert differing(some, [np.array(entry.embedding, np.float32) for entry in answer.data]) == {}


def test_openai_the_client_asks_for_base64_unless_told_otherwise(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input="text")
    assert isinstance(json.loads(raw.text)["data"][0]["embedding"], str)
    assert len(raw.parse().data[0].embedding) == 384


def test_openai_dimensions_are_a_slice_of_length_one(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model=MODEL, input="text").data[0].embedding)
    for dimensions in (1, 64, 384):
        answer = client.embeddings.create(model=MODEL, input="text", dimensions=dimensions)
        part = np.array(answer.data[0].embedding)
        assert part.shape == (dimensions,)
        assert abs(np.linalg.norm(part) - 1) < 1e-5
        assert cosine(part, whole[:dimensions]) >= MIN_COSINE


def test_openai_truncation_is_an_extension(client: openai.OpenAI, references: list[Reference]) -> None:
    longest = max(references, key=lambda r: len(r.text))
    with pytest.raises(openai.BadRequestError, match="tokens, the model takes 256"):
        client.embeddings.create(model=MODEL, input=longest.text)
    answer = client.embeddings.create(model=MODEL, input=longest.text, extra_body={"truncate": True})
    assert differing([longest], [np.array(answer.data[0].embedding, np.float32)]) == {}


def test_openai_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [DEFAULT_MODEL]


def test_openai_wrong_key(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").embeddings.create(model=MODEL, input="text")
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ("", "validation_error", "input"),
        ([], "validation_error", "input"),
        (["a", ""], "validation_error", "input"),
        ("word " * 400, "input_too_long", None),
    ],
)
def test_openai_bad_input(client: openai.OpenAI, given: str | list[str], code: str, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=given)
    error = caught.value
    assert (error.status_code, error.type, error.code, error.param) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
def test_openai_token_ids_are_refused_with_the_way_out(client: openai.OpenAI, ids: list[int] | list[list[int]]) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=MODEL, input=ids)


def test_openai_too_many_dimensions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="text", dimensions=1536)
    assert caught.value.param == "dimensions"


def test_openai_what_there_is_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=MODEL, prompt="text")


def test_openai_async_client(server: Stack, some: list[Reference]) -> None:
    async def embed() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            asked = [client.embeddings.create(model=MODEL, input=r.text) for r in some]
            answers = await asyncio.gather(*asked)
            models = [model.id async for model in client.models.list()]
            assert models == [DEFAULT_MODEL]
            with pytest.raises(openai.BadRequestError):
                await client.embeddings.create(model=MODEL, input="")
        return [answer.data[0].embedding for answer in answers]

    assert differing(some, [np.array(vector, np.float32) for vector in asyncio.run(embed())]) == {}


# langchain-openai


def langchain(server: Stack, **options: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(base_url=f"{server.url}/v1", api_key=KEY, model=MODEL, max_retries=0, **options)  # type: ignore[arg-type]


@pytest.fixture
def cached_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's tiktoken downloads nothing."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(CL100K))


@pytest.fixture(scope="module")
def cl100k_server() -> Iterator[Stack]:
    stack = Stack(frontends=1, token_input="cl100k")  # noqa: S106 - no password
    stack.env["TIKTOKEN_CACHE_DIR"] = str(CL100K)
    with stack:
        yield stack


def test_langchain_as_it_comes_is_told_what_to_change(server: Stack, cached_vocabulary: None) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        langchain(server).embed_query("a text")


def test_langchain_with_that_change(server: Stack, some: list[Reference]) -> None:
    embeddings = langchain(server, check_embedding_ctx_length=False)
    assert differing(some, as_vectors(embeddings.embed_documents([r.text for r in some]))) == {}
    assert differing(some[5:6], as_vectors([embeddings.embed_query(some[5].text)])) == {}
    cut = langchain(server, check_embedding_ctx_length=False, dimensions=64).embed_query(some[5].text)
    assert cosine(np.array(cut, np.float32), some[5].vector[:64]) >= MIN_COSINE


def test_langchain_as_it_comes_where_the_server_decodes_cl100k(
    cl100k_server: Stack, cached_vocabulary: None, some: list[Reference]
) -> None:
    embeddings = langchain(cl100k_server)
    assert differing(some, as_vectors(embeddings.embed_documents([r.text for r in some]))) == {}


def test_langchain_async(server: Stack, some: list[Reference]) -> None:
    async def embed() -> list[list[float]]:
        # The client's own is shared by all loops of the process and never closed.
        async with httpx.AsyncClient() as connections:
            embeddings = langchain(server, check_embedding_ctx_length=False, http_async_client=connections)
            return await embeddings.aembed_documents([r.text for r in some])

    assert differing(some, as_vectors(asyncio.run(embed()))) == {}


def test_a_server_without_the_vocabulary_does_not_start(tmp_path: Path) -> None:
    stack = Stack(frontends=1, token_input="cl100k")  # noqa: S106 - no password
    # A folder that cannot be made: whether there is a network or not, there is no vocabulary.
    stack.env["TIKTOKEN_CACHE_DIR"] = "/dev/null/none"
    stack.env["HTTPS_PROXY"] = "http://127.0.0.1:9"
    with pytest.raises(RuntimeError, match=r"needs tiktoken's vocabulary cl100k_base.*TIKTOKEN_CACHE_DIR"), stack:
        pass


# llama-index


def llama_index_client(server: Stack, **options: Any) -> TextEmbeddingsInference:
    return TextEmbeddingsInference(model_name=MODEL, base_url=server.url, auth_token=KEY, **options)


@pytest.fixture
def not_blank(some: list[Reference]) -> list[Reference]:
    """This client strips texts, and would send nothing of one that is white space."""
    return [r for r in some if r.text.strip()]


def test_llama_index(server: Stack, not_blank: list[Reference], longest: Reference) -> None:
    embeddings = llama_index_client(server, text_instruction="", query_instruction="", embed_batch_size=20)
    assert differing(not_blank, as_vectors(embeddings.get_text_embedding_batch([r.text for r in not_blank]))) == {}
    assert differing(not_blank[5:6], as_vectors([embeddings.get_query_embedding(not_blank[5].text)])) == {}
    assert differing([longest], as_vectors([embeddings.get_text_embedding(longest.text)])) == {}, "it asks to truncate"


def test_llama_index_async(server: Stack, not_blank: list[Reference]) -> None:
    embeddings = llama_index_client(server, text_instruction="", query_instruction="")
    vectors = asyncio.run(embeddings.aget_text_embedding_batch([r.text for r in not_blank]))
    assert differing(not_blank, as_vectors(vectors)) == {}


# huggingface_hub


@pytest.fixture
def hub(server: Stack) -> InferenceClient:
    return InferenceClient(model=server.url, token=KEY)


def test_hub_feature_extraction(hub: InferenceClient, some: list[Reference], longest: Reference) -> None:
    assert differing(some[5:6], as_vectors(hub.feature_extraction(some[5].text))) == {}
    many = hub.feature_extraction([r.text for r in some], normalize=True)
    assert many.shape == (len(some), 384)
    assert differing(some, as_vectors(many)) == {}
    cut = hub.feature_extraction(longest.text, truncate=True, truncation_direction="right")
    assert differing([longest], as_vectors(cut)) == {}
    assert hub.feature_extraction("text", dimensions=64).shape == (1, 64)


def test_hub_truncation_at_the_left(hub: InferenceClient) -> None:
    left = hub.feature_extraction("first " * 254 + "last " * 254, truncate=True, truncation_direction="left")
    assert cosine(left[0], hub.feature_extraction("last " * 254)[0]) >= MIN_COSINE


def test_hub_sentence_similarity(hub: InferenceClient, some: list[Reference]) -> None:
    source, *others = some[5:25]
    got = hub.sentence_similarity(source.text, [r.text for r in others])
    np.testing.assert_allclose(got, [cosine(source.vector, r.vector) for r in others], atol=1e-4)


@pytest.mark.parametrize("wrong", [{"normalize": False}, {"prompt_name": "query"}, {"truncation_direction": "up"}])
def test_hub_errors_say_what_is_wrong(hub: InferenceClient, wrong: dict[str, Any]) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        hub.feature_extraction("text", **wrong)
    assert caught.value.response.status_code == 422
    assert next(iter(wrong)) in caught.value.response.json()["error"]
