"""Vectors from a server, as low-priority work: several requests under way, each on a connection of its own."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from ipc.errors import StartError
from tools.embed.window import Fault, Job, Terms, Window

ROUTE: Final = "/v1/embeddings"
REQUEST_TEXTS = 256
TIMEOUT_SECONDS = 120.0
# What may be otherwise the next time: no engine, no room, a limit, a proxy that gave up.
AGAIN = frozenset({408, 425, 429, 502, 503, 504})
NEVER = frozenset({401, 403, 404, 405})
SHORTEST_WAIT, LONGEST_WAIT = 0.25, 30.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """What its body says is wrong."""
        try:
            error = orjson.loads(self.body)["error"]
            return str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            return f"status {self.status}"

    @property
    def code(self) -> str:
        """The machine-readable name of what is wrong."""
        try:
            return str(orjson.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return "error"

    @property
    def wait(self) -> float | None:
        """Seconds after which to come back, where it says so."""
        for name, unit in (("retry-after-ms", 1e3), ("retry-after", 1.0)):
            try:
                return max(0.0, float(self.headers[name]) / unit)
            except (KeyError, ValueError):  # it may be a date, too
                continue
        return None


class Remote:
    """A Backend around a server of ours. `patience` is how many seconds it may go on answering nothing.

    Raises StartError where it cannot be used.
    """

    def __init__(self, url: str, key: str, workers: int, patience: float) -> None:
        self._url = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if self._url.scheme not in {"http", "https"} or not self._url.hostname:
            raise StartError(f"--server {url} is no URL: give one such as http://127.0.0.1:8000.")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._patience = patience
        self._answered = time.monotonic()
        self._closed = threading.Event()
        self.workers = workers
        self.status = ""
        info = self._info()
        self.dim = int(info["dimensions"])
        self.prompts = frozenset(info["prompts"])
        self.most_texts = int(info["max_client_batch_size"])
        self.model = str(info["model_id"])
        self.identity = {
            "model": f"{info['model_id']} {info['model_sha']}",
            "precision": f"{info['model_dtype']} on a server",
        }

    def plan(self, window: Window) -> list[Job]:
        """Requests of neighbouring texts, of one row only where rows are requests."""
        window.vectors = np.full((len(window.texts), self.dim), np.nan, np.float32)
        jobs = []
        for texts in window.by_terms().values():
            numbers = np.array(texts, np.int64)
            borders = np.flatnonzero(np.diff(window.row_of[numbers])) + 1
            for part in np.split(numbers, borders) if window.has_requests else [numbers]:
                most = min(REQUEST_TEXTS, self.most_texts)
                jobs += [Job(window, part[first : first + most], []) for first in range(0, len(part), most)]
        return jobs

    @contextmanager
    def worker(self, number: int) -> Iterator[Callable[[Job], int]]:
        """See Backend."""
        with closing(Connection(self._url, self._headers)) as connection:
            yield lambda job: self._embed(connection, job.window, job.texts)

    def close(self) -> None:
        """See Backend."""
        self._closed.set()

    def _embed(self, connection: Connection, window: Window, texts: NDArray[np.int64]) -> int:
        """Ask for these texts, or, where the server refuses them together, for each half of them; down to one."""
        terms = window.rows[window.row_of[texts[0]]].terms
        body = _body([window.texts[text] for text in texts], terms)
        answer = self._ask(lambda: connection.post(ROUTE, body), can_split=len(texts) > 1)
        if answer is None:
            return 0
        if answer.status == 200:
            window.vectors[texts] = self._vectors(answer, len(texts))
            window.tokens[texts[0]] = int(answer.headers.get("x-compute-tokens", 0))
            return int(answer.headers.get("x-truncated-texts", 0))
        if answer.status in NEVER:
            raise StartError(f"The server says: {answer.reason} ({answer.status}); check --server and --key.")
        if len(texts) == 1:
            window.faults[int(texts[0])] = Fault(f"the server says: {answer.reason}", answer.status, answer.code)
            return 0
        return sum(self._embed(connection, window, half) for half in np.array_split(texts, 2))

    def _vectors(self, answer: Answer, count: int) -> NDArray[np.float32]:
        model = urllib.parse.unquote(answer.headers.get("x-model", self.model))
        if model != self.model:
            raise StartError(
                f"The server has changed its model from {self.model} to {model}: embed all with that one (--restart), "
                "or have the server change back."
            )
        if len(answer.body) != count * self.dim * 4:
            raise StartError(
                f"The server gave no {count} raw vectors of {self.dim} numbers: is it an Embedlane server, with the "
                "model that it had?"
            )
        return np.frombuffer(answer.body, "<f4").reshape(count, self.dim)

    def _info(self) -> Any:
        with closing(Connection(self._url, self._headers)) as connection:
            answer = self._ask(lambda: connection.get("/info"))
        assert answer is not None, "nobody has closed this yet"
        if answer.status != 200:
            raise StartError(f"The server says: {answer.reason} ({answer.status}); check --server and --key.")
        try:
            info = orjson.loads(answer.body)
            if not {"dimensions", "prompts", "max_client_batch_size", "model_id", "model_sha"} <= info.keys():
                raise ValueError
        except (ValueError, AttributeError):
            raise StartError("What answers at --server is no Embedlane server: /info is not as it should be.") from None
        return info

    def _ask(self, send: Callable[[], Answer], *, can_split: bool = False) -> Answer | None:
        """Send until there is an answer that will not be another one later; None where the work is given up.

        A request that `can_split` is not sent again where it was too large for its deadline or its key's limit.

        Raises StartError once the server has answered nothing for `patience` seconds. Waiting that a limit asks for
        (429 with Retry-After) does not count.
        """
        wait = SHORTEST_WAIT
        while not self._closed.is_set():
            try:
                answer = send()
            except (OSError, http.client.HTTPException) as error:
                reason, told = str(error) or type(error).__name__, None
            else:
                is_too_large = answer.status == 504 or (answer.status == 429 and answer.wait is None)
                if answer.status not in AGAIN or (can_split and is_too_large):
                    self._answered, self.status = time.monotonic(), ""
                    return answer
                reason, told = f"{answer.status}: {answer.reason}", answer.wait
                if answer.status == 429 and told is not None:
                    self._answered = max(self._answered, time.monotonic() + told)
            if time.monotonic() - self._answered >= self._patience:
                raise StartError(
                    f"The server has answered nothing for {self._patience:g} s ({reason}): see that it runs, and run "
                    "the same command again to go on."
                )
            pause = told if told is not None else wait
            self.status = f"waits {pause:.0f} s ({reason})" if pause >= 1 else ""
            self._closed.wait(pause)
            wait = min(2 * wait, LONGEST_WAIT)
        return None


class Connection:
    """One connection that is kept, and opened anew where it broke."""

    def __init__(self, url: urllib.parse.SplitResult, headers: Mapping[str, str]) -> None:
        assert url.hostname is not None, "the caller looks"
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(url.hostname, url.port, timeout=TIMEOUT_SECONDS)
        self._path = url.path.rstrip("/")
        self._headers = dict(headers)

    def get(self, path: str) -> Answer:
        """Raises OSError or HTTPException where there is no answer."""
        return self._send("GET", path, None, {})

    def post(self, path: str, body: bytes) -> Answer:
        """As `get`, for raw vectors and after everybody else's requests."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/octet-stream",
            "X-Priority": "bulk",
        }
        return self._send("POST", path, body, headers)

    def close(self) -> None:
        """End it; a later request opens it anew."""
        self._connection.close()

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        try:
            self._connection.request(method, self._path + path, body, {**self._headers, **headers})
            answer = self._connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        except BaseException:
            self.close()
            raise


def _body(texts: list[str], terms: Terms) -> bytes:
    said: dict[str, object] = {"input": texts, "truncate": terms.truncate}
    if terms.prompt_name is not None:
        said["prompt_name"] = terms.prompt_name
    return orjson.dumps(said)
