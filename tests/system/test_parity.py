"""Every dialect gives the reference's vectors, and a text's vector does not depend on the company it is in."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ipc.bundle import TOKENIZER, Bundle
from perf.stack import Stack
from tests.system.reference import Reference, Vector, differing
from tests.system.wire import AUTHORIZED, Connection, fetch_bits, openai_bits, openai_body

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class Dialect:
    """How to ask for vectors and how to read them; `most` texts a request."""

    path: str
    body: Callable[[list[str]], dict[str, object]]
    vectors: Callable[[Any], list[Vector]]
    most: int = 1000


def unpack(encoded: str) -> Vector:
    return np.frombuffer(base64.b64decode(encoded), "<f4")


def as_vectors(rows: list[list[float]]) -> list[Vector]:
    return [np.array(row, np.float32) for row in rows]


DIALECTS = {
    "openai float": Dialect(
        "/v1/embeddings",
        lambda texts: {"input": texts, "encoding_format": "float", "truncate": True},
        lambda answer: as_vectors([entry["embedding"] for entry in answer["data"]]),
    ),
    "openai base64": Dialect(
        "/v1/embeddings",
        lambda texts: {"input": texts, "encoding_format": "base64", "truncate": True},
        lambda answer: [unpack(entry["embedding"]) for entry in answer["data"]],
    ),
    "openai without a format": Dialect(
        "/embeddings",
        lambda texts: {"input": texts, "model": "any", "truncate": True},
        lambda answer: as_vectors([entry["embedding"] for entry in answer["data"]]),
    ),
    "tei": Dialect("/embed", lambda texts: {"inputs": texts, "truncate": True}, as_vectors),
    "hugging face": Dialect("/", lambda texts: {"inputs": texts, "truncate": True}, as_vectors),
    "original": Dialect(
        "/v1/embed", lambda texts: {"input_text": texts[0]}, lambda answer: as_vectors([answer["embedding"]]), most=1
    ),
}
# The original gateway's own bound, in characters after white space is taken from both ends.
MOST_CHARS = 1024


@pytest.fixture
def client(server: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as client:
        yield client


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return DIALECTS[request.param]


@pytest.fixture
def overlong(bundle: Bundle, references: list[Reference]) -> set[str]:
    """The texts that have more tokens than the model takes."""
    tokenizer = Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    return {r.text for r in references if len(tokenizer.encode(r.text).ids) > bundle.max_tokens}


def accepted(references: list[Reference], dialect: Dialect) -> list[Reference]:
    """Those a dialect takes: every text but the empty one, and in the original gateway 1 to 1,024 characters."""
    if dialect.path == "/v1/embed":
        return [r for r in references if 1 <= len(r.text.strip()) <= MOST_CHARS]
    return [r for r in references if r.text]


def embed(client: httpx.Client, dialect: Dialect, texts: list[str]) -> list[Vector]:
    answer = client.post(dialect.path, json=dialect.body(texts))
    assert answer.status_code == 200, (texts, answer.text)
    return dialect.vectors(answer.json())


def test_each_text_alone(client: httpx.Client, dialect: Dialect, references: list[Reference]) -> None:
    taken = accepted(references, dialect)
    vectors = [vector for r in taken for vector in embed(client, dialect, [r.text])]
    assert len(vectors) == len(taken)
    assert differing(taken, vectors) == {}


@pytest.mark.parametrize("size", [2, 7, 1000])
def test_texts_in_batches(client: httpx.Client, dialect: Dialect, references: list[Reference], size: int) -> None:
    if dialect.most == 1:
        size = 1
    # Shuffled, so that neighbours differ in length and an order that gets lost shows.
    taken = accepted(references, dialect)
    random.Random(size).shuffle(taken)  # noqa: S311 - nothing secret here
    vectors = []
    for first in range(0, len(taken), size):
        vectors += embed(client, dialect, [r.text for r in taken[first : first + size]])
    assert len(vectors) == len(taken)
    assert differing(taken, vectors) == {}


def test_the_largest_request_is_split_and_answered_whole(client: httpx.Client, dialect: Dialect) -> None:
    if dialect.most == 1:
        return
    texts = [f"number {n}" + " and more" * (n % 3) for n in range(2048)]
    together = embed(client, dialect, texts)
    apart = [vector for first in range(0, 2048, 100) for vector in embed(client, dialect, texts[first : first + 100])]
    assert [v.tobytes() for v in together] == [v.tobytes() for v in apart]
    assert len({v.tobytes() for v in together}) == 2048


def test_every_vector_has_length_one(client: httpx.Client, references: list[Reference]) -> None:
    dialect = DIALECTS["tei"]
    vectors = embed(client, dialect, [r.text for r in accepted(references, dialect)])
    assert [v.shape for v in vectors] == [(384,)] * len(vectors)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


def test_usage_counts_tokens_after_truncation(client: httpx.Client, references: list[Reference]) -> None:
    taken = accepted(references, DIALECTS["openai float"])
    expected = sum(r.tokens for r in taken)
    answer = client.post("/v1/embeddings", json=openai_body([r.text for r in taken]))
    assert answer.json()["usage"] == {"prompt_tokens": expected, "total_tokens": expected}
    assert answer.headers["x-compute-tokens"] == str(expected)


def test_only_overlong_texts_need_truncation(
    client: httpx.Client, references: list[Reference], overlong: set[str]
) -> None:
    assert len(overlong) == 5
    for path, field, status in (("/v1/embeddings", "input", 400), ("/embed", "inputs", 422)):
        answers = {r.text: client.post(path, json={field: r.text}) for r in references if r.text}
        assert {text for text, answer in answers.items() if answer.status_code != 200} == overlong
        assert {answers[text].status_code for text in overlong} == {status}
        assert all("the model takes 256: shorten it, or ask for truncation" in answers[t].text for t in overlong)


def test_truncation_is_announced(client: httpx.Client, references: list[Reference], overlong: set[str]) -> None:
    for r in references:
        if r.text:
            answer = client.post("/embed", json={"inputs": r.text, "truncate": True})
            assert answer.headers.get("x-truncated-texts") == ("1" if r.text in overlong else None), r.text


def test_what_each_dialect_refuses(client: httpx.Client, references: list[Reference], dialect: Dialect) -> None:
    """Nothing is left out of the parity tests in silence: what is, is refused, and says why."""
    taken = {r.text for r in accepted(references, dialect)}
    left_out = [r.text for r in references if r.text not in taken]
    assert "" in left_out
    for text in left_out:
        answer = client.post(dialect.path, json=dialect.body([text]))
        if dialect.path == "/v1/embed":
            assert answer.status_code == 422
            assert f"must have 1 to 1024 characters, and has {len(text.strip())}" in answer.json()["detail"]
        else:
            assert text == ""
            assert answer.status_code == (422 if dialect.path in {"/embed", "/"} else 400)
            assert "is empty" in answer.text


def test_all_dialects_give_the_same_bits(client: httpx.Client, references: list[Reference]) -> None:
    for r in accepted(references, DIALECTS["original"])[::3]:
        bits = {name: embed(client, dialect, [r.text])[0].tobytes() for name, dialect in DIALECTS.items()}
        assert len(set(bits.values())) == 1, r.text


WORDS = [
    "harbour",
    "lemon",
    "quietly",
    "the",
    "42",
    "pneumatic",
    "Straße",
    "図書館",
    "🙂",
    "un##like,",
    "x=y;",
    "a.example/?q=1",
]


def words(length: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))  # noqa: S311 - nothing secret here


texts_of_all_lengths = st.one_of(
    st.text(min_size=1, max_size=80),
    st.builds(words, st.integers(1, 320), st.integers(0, 9999)),
    st.builds(lambda n: "same length " + str(n), st.integers(100, 999)),
)
loads = st.lists(st.lists(texts_of_all_lengths, min_size=1, max_size=24), min_size=1, max_size=12)
# What each text got when it was asked for alone, with nothing else in the server.
alone: dict[str, bytes] = {}


async def ask_alone(port: int, texts: set[str]) -> None:
    async with await Connection.open(port) as connection:
        for text in texts - alone.keys():
            alone[text] = await fetch_bits(connection, text)


async def ask(port: int, batch: list[str]) -> list[bytes]:
    async with await Connection.open(port) as connection:
        return openai_bits(await connection.post("/v1/embeddings", openai_body(batch)))


async def ask_together(port: int, batches: list[list[str]]) -> list[list[bytes]]:
    return await asyncio.gather(*(ask(port, batch) for batch in batches))


def test_full_batches_change_no_bit(server: Stack) -> None:
    """Texts of one length, many at once: more than fill a batch, which a random load seldom does."""
    batches = [[f"{n} " + "word " * length for n in range(40)] for length in (1, 9, 60, 124)]
    asyncio.run(ask_alone(server.port, {text for batch in batches for text in batch}))
    assert asyncio.run(ask_together(server.port, batches)) == [[alone[text] for text in batch] for batch in batches]


@given(batches=loads)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_company_changes_no_bit(server: Stack, batches: list[list[str]]) -> None:
    asyncio.run(ask_alone(server.port, {text for batch in batches for text in batch}))
    assert asyncio.run(ask_together(server.port, batches)) == [[alone[text] for text in batch] for batch in batches]
