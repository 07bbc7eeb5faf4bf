"""Whether a system answers rightly: the number of vectors, and those of tests/reference."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from perf.http import Connection, Target
from perf.record import Check
from tests.system.reference import Reference, cosine, load_references

MIN_COSINE: Final = 0.999
# Longer texts are cut, and systems cut at different lengths.
MOST_TOKENS: Final = 200
MOST_CHARACTERS: Final = 1024
AT_ONCE: Final = 16
ANSWER_SECONDS: Final = 60

Vectors = Sequence[Any]
Ask = Callable[[Sequence[str]], bytes]


class WrongAnswer(Exception):
    """An answer that cannot be read, or is not what was asked for."""


class Parity(msgspec.Struct, frozen=True):
    """Lowest cosine of so many texts to the reference."""

    texts: int
    lowest_cosine: float


def references() -> list[Reference]:
    """The stored texts that every system takes whole."""
    return [
        each
        for each in load_references()
        if each.tokens <= MOST_TOKENS and 1 <= len(each.text.strip()) <= MOST_CHARACTERS
    ]


def ask(target: Target, texts: Sequence[str], fields: dict[str, object]) -> bytes:
    """One request on a connection of its own. Raises OSError, http.client.HTTPException or WrongAnswer."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=ANSWER_SECONDS)
    try:
        body = orjson.dumps({target.field: texts[0] if len(texts) == 1 else list(texts), **fields})
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        connection.request("POST", target.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise WrongAnswer(f"status {answer.status}: {content[:200].decode(errors='replace')}")
    return content


def vectors_of(content: bytes) -> Vectors:
    """The vectors of an OpenAI answer or of the original's. Raises WrongAnswer."""
    try:
        answer = orjson.loads(content)
        if "embedding" in answer:
            return [np.array(answer["embedding"], np.float32)]
        data = sorted(answer["data"], key=lambda item: item["index"])
        return [np.array(item["embedding"], np.float32) for item in data]
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswer(f"no embeddings in it: {content[:200].decode(errors='replace')}") from error


def compare_with_reference(ask: Ask) -> Parity:
    """Ask for every text, several at once so that they are batched. Raises WrongAnswer where a vector differs."""
    expected = references()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda each: vectors_of(ask([each.text])), expected))
    lowest = 1.0
    for each, vectors in zip(expected, answers, strict=True):
        if len(vectors) != 1 or vectors[0].shape != each.vector.shape:
            shapes = [vector.shape for vector in vectors]
            raise WrongAnswer(f"vectors of shape {shapes} for one text of {each.vector.shape}")
        found = cosine(vectors[0], each.vector)
        # Written so that a NaN counts as different.
        if not found >= MIN_COSINE:
            raise WrongAnswer(f"cosine {found:.4f} to the reference, at least {MIN_COSINE} wanted: {each.text[:60]!r}")
        lowest = min(lowest, found)
    return Parity(len(expected), lowest)


def same_form(ask: Ask, texts: Sequence[str]) -> Check:
    """A check for the load generator: as many numbers as the answer to these texts has, once that one is found right.

    Counting commas costs microseconds where parsing would cost the server's own cores milliseconds.
    """
    content = ask(texts)
    found = len(vectors_of(content))
    if found != len(texts):
        raise WrongAnswer(f"{found} vectors for {len(texts)} texts")
    commas = content.count(b",")

    def check(connection: Connection) -> bool:
        return connection.body.count(b",") == commas

    return check
