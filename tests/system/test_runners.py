"""Real processes around runners of one's own."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from examples.languages import TEXTS, build
from perf.stack import KEY, START_SECONDS, Stack

pytestmark = pytest.mark.system

SENTENCES = {
    "de": "Die Katze ist auf dem Markt und der Hund mit ihr.",
    "en": "The weather is good, and we have the ball.",
    "es": "El gato y la pelota están en el mercado.",
    "fr": "Le chat est dans la rue avec le chien.",
    "it": "Il gatto non ho visto, ma la palla è nella strada.",
}


def ask(stack: Stack, texts: list[str]) -> list[list[float]]:
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        f"{stack.url}/v1/embeddings",
        json.dumps({"input": texts}).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return [entry["embedding"] for entry in json.load(answer)["data"]]


def test_the_example_serves_what_is_no_embedding(tmp_path: Path) -> None:
    build(tmp_path)
    with Stack(bundle=tmp_path, runner="examples.languages:LanguageRunner") as stack:
        scores = ask(stack, [*SENTENCES.values(), "?!"])
    languages = list(TEXTS)
    assert [languages[int(np.argmax(row))] for row in scores[:-1]] == list(SENTENCES)
    assert scores[-1] == [0.0] * len(languages)


@pytest.mark.parametrize(
    ("runner", "says"),
    [
        ("examples.languages:NoSuchRunner", "EMBEDLANE_RUNNER=examples.languages:NoSuchRunner cannot be imported"),
        ("onxx", "EMBEDLANE_RUNNER is not valid: choose onnx or torch"),
    ],
)
def test_a_runner_that_is_not_there_ends_the_start(tmp_path: Path, runner: str, says: str) -> None:
    build(tmp_path)
    stack = Stack(bundle=tmp_path, runner=runner)
    try:
        stack.start(wait=False)
        assert stack.process is not None
        assert stack.process.wait(START_SECONDS) == 3
        assert says in stack.log.read_text()
    finally:
        stack.__exit__()
