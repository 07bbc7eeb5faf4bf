"""OpenAI's batch format."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from ipc.bundle import Bundle
from perf.alone import token_ids
from tests.tools.embed.words import MODEL, run, vectors
from tools.embed.local import Local


def line(custom_id: str, body: object, **other: object) -> str:
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body, **other}, ensure_ascii=False
    )


def answers(backend: Local, folder: Path, lines: list[str]) -> list[dict[str, Any]]:
    (folder / "in.jsonl").write_text("\n".join(lines))
    mark = run(backend, folder / "in.jsonl", folder / "out.jsonl", input="openai", window=3)
    assert mark.rows == len(lines)
    found = [json.loads(each) for each in (folder / "out.jsonl").read_bytes().splitlines()]
    assert mark.bad == sum(not each["response"] or each["response"]["status_code"] != 200 for each in found)
    return found


def test_each_request_gets_the_answer_that_a_server_would_give(backend: Local, bundle: Bundle, tmp_path: Path) -> None:
    inputs = [["one", "two words", "αβγ"], ["four"], ["five, six", "seven"]]
    bodies: list[dict[str, object]] = [
        {"model": "any", "input": inputs[0]},
        {"input": "four", "encoding_format": "base64"},
        {"input": inputs[2], "dimensions": 2, "user": "u"},
    ]
    found = answers(backend, tmp_path, [line(f"r{n}", body) for n, body in enumerate(bodies)])
    assert [each["custom_id"] for each in found] == ["r0", "r1", "r2"]
    assert len({each["id"] for each in found} | {each["response"]["request_id"] for each in found}) == 6
    assert all(each["error"] is None for each in found)
    for each, texts, shape in zip(found, inputs, (None, "base64", 2), strict=True):
        body = each["response"]["body"]
        if shape == "base64":
            # As OpenAI's client does before it makes this of an answer.
            for entry in body["data"]:
                entry["embedding"] = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").tolist()
        answer = CreateEmbeddingResponse.model_validate(body)
        assert answer.model == MODEL.name
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, token_ids(bundle, texts)))
        assert [entry.index for entry in answer.data] == list(range(len(texts)))
        expected = vectors(bundle, texts)
        if shape == 2:
            expected = expected[:, :2] / np.linalg.norm(expected[:, :2], axis=1, keepdims=True)
        got = np.array([entry.embedding for entry in answer.data], np.float32)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


BAD = [
    ("{", "invalid_line", None),
    (line("x", {"input": "a"}, url="/v1/chat/completions"), "invalid_url", None),
    (json.dumps({"method": "POST", "body": {}}), "invalid_line", None),
    (line("x", {"input": "a"}, method="GET"), "invalid_line", None),
    (line("x", {}), "invalid_request", 400),
    (line("x", {"input": ""}), "invalid_request", 400),
    (line("x", {"input": [1, 2]}), "invalid_request", 400),
    (line("x", {"input": ["a"] * 17}), "invalid_request", 400),
    (line("x", {"input": "a", "dimensions": 4}), "invalid_request", 400),
    (line("x", {"input": "a", "prompt_name": "query"}), "invalid_request", 400),
    (line("x", {"input": ["a", "a " * 400]}), "input_too_long", 400),
    (line("x", {"input": ["a", "a tornado"]}), "engine_failure", 500),
]


@pytest.mark.parametrize(("bad", "code", "status"), BAD)
def test_a_bad_line_gets_an_error_and_the_others_their_vectors(
    backend: Local, tmp_path: Path, bad: str, code: str, status: int | None
) -> None:
    found = answers(backend, tmp_path, [line("first", {"input": "a"}), bad, line("last", {"input": ["b", "c"]})])
    assert [each["response"]["status_code"] for each in (found[0], found[2])] == [200, 200]
    assert len(found[2]["response"]["body"]["data"]) == 2
    if status is None:
        assert found[1]["response"] is None
        assert found[1]["error"]["code"] == code
        assert found[1]["error"]["message"]
    else:
        assert found[1]["error"] is None
        assert found[1]["custom_id"] == "x"
        assert found[1]["response"]["status_code"] == status
        assert found[1]["response"]["body"]["error"]["code"] == code


def test_a_request_may_ask_for_truncation(backend: Local, tmp_path: Path) -> None:
    found = answers(backend, tmp_path, [line("x", {"input": "a " * 400, "truncate": True})])
    assert found[0]["response"]["body"]["usage"]["total_tokens"] == 256
