"""OpenAI's own client for Python, as it comes, against the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from ipc.settings import DEFAULT_MODEL
from perf.stack import KEY, Stack
from tests.system.reference import MIN_COSINE, Reference, cosine, differing

pytestmark = pytest.mark.system

MODEL = "text-embedding-3-small"


@pytest.fixture
def client(server: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def some(references: list[Reference]) -> list[Reference]:
    """Texts that need no truncation."""
    return [r for r in references if r.text and r.tokens < 128]


def test_one_text(client: openai.OpenAI, some: list[Reference]) -> None:
    answer = client.embeddings.create(model=MODEL, input=some[5].text)
    assert differing(some[5:6], [np.array(answer.data[0].embedding, np.float32)]) == {}
    assert (answer.object, answer.data[0].object, answer.data[0].index) == ("list", "embedding", 0)
    assert answer.model == DEFAULT_MODEL
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == some[5].tokens


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_many_texts(client: openai.OpenAI, some: list[Reference], encoding: dict[str, str]) -> None:
    answer = client.embeddings.create(model=MODEL, input=[r.text for r in some], **encoding)  # type: ignore[arg-type]
    assert [entry.index for entry in answer.data] == list(range(len(some)))
    if encoding.get("encoding_format") == "base64":
        assert all(isinstance(entry.embedding, str) for entry in answer.data)
    else:
        assert differing(some, [np.array(entry.embedding, np.float32) for entry in answer.data]) == {}


def test_the_client_asks_for_base64_unless_told_otherwise(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input="text")
    assert isinstance(json.loads(raw.text)["data"][0]["embedding"], str)
    assert len(raw.parse().data[0].embedding) == 384


def test_dimensions_are_a_slice_of_length_one(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model=MODEL, input="text").data[0].embedding)
    for dimensions in (1, 64, 384):
        answer = client.embeddings.create(model=MODEL, input="text", dimensions=dimensions)
        part = np.array(answer.data[0].embedding)
        assert part.shape == (dimensions,)
        assert abs(np.linalg.norm(part) - 1) < 1e-5
        assert cosine(part, whole[:dimensions]) >= MIN_COSINE


def test_truncation_is_an_extension(client: openai.OpenAI, references: list[Reference]) -> None:
    longest = max(references, key=lambda r: len(r.text))
    with pytest.raises(openai.BadRequestError, match="tokens, the model takes 256"):
        client.embeddings.create(model=MODEL, input=longest.text)
    answer = client.embeddings.create(model=MODEL, input=longest.text, extra_body={"truncate": True})
    assert differing([longest], [np.array(answer.data[0].embedding, np.float32)]) == {}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [DEFAULT_MODEL]


def test_wrong_key(client: openai.OpenAI) -> None:
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
def test_bad_input(client: openai.OpenAI, given: str | list[str], code: str, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=given)
    error = caught.value
    assert (error.status_code, error.type, error.code, error.param) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize("ids", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_are_refused_with_the_way_out(client: openai.OpenAI, ids: list[int] | list[list[int]]) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=MODEL, input=ids)


def test_too_many_dimensions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="text", dimensions=1536)
    assert caught.value.param == "dimensions"


def test_what_there_is_not(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=MODEL, prompt="text")


def test_async_client(server: Stack, some: list[Reference]) -> None:
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
