"""A server that misbehaves as it is told: what can hardly be had from a real one. The real one: tests/system."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipc.errors import StartError
from perf.texts import make_texts
from tools.embed.job import Model, Options, embed
from tools.embed.journal import Mark
from tools.embed.remote import Remote

DIM = 2
INFO = {
    "dimensions": DIM,
    "prompts": [],
    "max_client_batch_size": 8,
    "model_id": "tiny",
    "model_sha": "1",
    "model_dtype": "float32",
}
# What an answer is: a status, headers and a body; or nothing, and the connection ends.
Answer = tuple[int, dict[str, str], bytes] | None
Answers = Callable[[int, list[str]], Answer]


def vectors(texts: list[str]) -> Answer:
    rows = np.array([(len(text), sum(text.encode())) for text in texts], "<f4")
    return 200, {"x-compute-tokens": "5", "x-truncated-texts": "1"}, rows.tobytes()


@contextmanager
def server(answers: Answers, info: object = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Gives its URL and the headers and bodies of the requests for vectors."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._give((200, {}, json.dumps(INFO if info is None else info).encode()))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append({**{name.lower(): value for name, value in self.headers.items()}, **body})
            self._give(answers(len(seen), body["input"]))

        def _give(self, answer: Answer) -> None:
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/", seen
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


TEXTS = make_texts("short", 40)


def run(url: str, folder: Path, patience: float = 30.0, texts: list[str] = TEXTS, **options: Any) -> Mark:
    if not (folder / "in.txt").exists():
        (folder / "in.txt").write_text("\n".join(texts))
    given = Options(source=str(folder / "in.txt"), out=folder / "out.npy", window=16, quiet=True, **options)
    return embed(given, Remote(url, "secret", 2, patience), Model("tiny", 8))[0]


def expected(texts: list[str]) -> Any:
    return [[len(text), sum(text.encode())] for text in texts]


def error(status: int, message: str, code: str = "x", **headers: str) -> Answer:
    body = {"error": {"message": message, "code": code}}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()


@pytest.mark.parametrize(
    "trouble",
    [
        None,
        error(503, "no engine"),
        error(503, "no engine", retry_after_ms="1"),
        error(429, "too much", retry_after_ms="1"),
        error(429, "too much at once"),
        error(504, "no vector in time"),
        error(502, "a proxy"),
        error(413, "too large"),
        error(500, "the model failed"),
    ],
)
def test_trouble_passes(tmp_path: Path, trouble: Answer) -> None:
    """The second request and the fifth fail, whoever's they are."""
    with server(lambda number, texts: trouble if number in {2, 5} else vectors(texts)) as (url, seen):
        mark = run(url, tmp_path)
    assert np.load(tmp_path / "out.npy").tolist() == expected(TEXTS)
    assert (mark.rows, mark.bad) == (40, 0)
    first = seen[0]
    assert (first["x-priority"], first["authorization"], first["truncate"]) == ("bulk", "Bearer secret", True)
    assert first["accept"] == "application/octet-stream"
    assert len(first["input"]) <= 8


def test_a_text_that_is_refused_is_found_among_others(tmp_path: Path) -> None:
    def answers(_: int, texts: list[str]) -> Answer:
        return error(400, "I do not like it", "dislike") if TEXTS[21] in texts else vectors(texts)

    with server(answers) as (url, _):
        with pytest.raises(StartError, match=r"^Row 22 of the input .* the server says: I do not like it"):
            run(url, tmp_path)
        mark = run(url, tmp_path, skip_bad=True)
    found = np.load(tmp_path / "out.npy")
    assert mark.bad == 1
    assert np.isnan(found[21]).all()
    assert np.delete(found, 21, axis=0).tolist() == expected(TEXTS[:21] + TEXTS[22:])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(503, "no engine"), "answered nothing for 0.2 s (503: no engine)"),
        (error(503, "no engine", retry_after_ms="1"), "answered nothing for 0.2 s (503: no engine)"),
        (None, "answered nothing for 0.2 s (Remote end closed"),
        (error(401, "no such key"), "The server says: no such key (401); check --server and --key."),
        ((200, {}, b"{}"), "no 8 raw vectors of 2 numbers"),
    ],
)
def test_what_does_not_pass_ends_the_run_with_a_sentence(tmp_path: Path, answer: Answer, says: str) -> None:
    with server(lambda number, texts: answer if number > 3 else vectors(texts)) as (url, _):
        with pytest.raises(StartError) as error:
            run(url, tmp_path, patience=0.2)
        assert says in str(error.value)


def test_what_was_done_before_is_not_asked_for_again(tmp_path: Path) -> None:
    with server(lambda number, texts: vectors(texts) if number <= 4 else error(401, "no")) as (url, seen):
        with pytest.raises(StartError):
            run(url, tmp_path)
        done = len(seen)
    with server(lambda _, texts: vectors(texts)) as (url, seen):
        run(url, tmp_path)
    assert done + len(seen) <= 6
    assert np.load(tmp_path / "out.npy").tolist() == expected(TEXTS)


def test_requests_of_a_batch_are_asked_for_one_by_one(tmp_path: Path) -> None:
    lines = [{"custom_id": f"r{n}", "body": {"input": TEXTS[n : n + 3], "truncate": n == 1}} for n in range(4)]
    with server(lambda _, texts: vectors(texts)) as (url, seen):
        run(url, tmp_path, texts=[json.dumps(line) for line in lines], input="openai")
    assert sorted(each["input"] for each in seen) == sorted(TEXTS[n : n + 3] for n in range(4))
    assert [each["truncate"] for each in seen].count(True) == 1
    found = [json.loads(line)["response"]["body"] for line in (tmp_path / "out.npy").read_bytes().splitlines()]
    assert [each["usage"]["total_tokens"] for each in found] == [5] * 4


@pytest.mark.parametrize(
    ("url", "info", "says"),
    [
        ("ftp://x", INFO, "is no URL"),
        (None, {"name": "another server"}, "is no Embedlane server"),
        (None, [], "is no Embedlane server"),
    ],
)
def test_what_is_no_server_of_ours_is_refused(url: str | None, info: object, says: str) -> None:
    with server(lambda _, texts: vectors(texts), info) as (there, _), pytest.raises(StartError, match=says):
        Remote(url or there, "", 1, 1.0)


def test_a_server_that_changes_its_model_is_not_believed(tmp_path: Path) -> None:
    def answers(count: int, texts: list[str]) -> Answer:
        answer = vectors(texts)
        assert answer is not None
        status, headers, body = answer
        return status, {**headers, "x-model": "tiny" if count == 1 else "another/model"}, body

    with (
        server(answers) as (url, _),
        pytest.raises(StartError, match=r"changed its model from tiny to another/model: .*--restart"),
    ):
        run(url, tmp_path)
