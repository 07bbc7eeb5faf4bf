"""What a server says of its requests: one line each, true, and no secret, text or vector in any line of any process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from frontend.app import OPEN_PATHS
from frontend.keys import ID_DIGITS
from frontend.request_log import NAME
from perf.redis_server import RedisServer
from perf.stack import KEY, ROOT, Stack
from tests.system.processes import PATIENCE_SECONDS, POLL_SECONDS, log_records, unread_bytes, wait_for
from tests.system.wire import Answer, Connection, openai_bits, openai_body

pytestmark = pytest.mark.system

# In every text and wherever else a client can put words that are nobody's business.
MARK = "zyxquartz"
PASSWORD = f"{MARK}-redis-password"
WRONG_KEY = f"el-{MARK}-wrong-key"
# What the start prints for the person who started it, key and all; it is no log.
BLOCK = re.compile(r"\n─+\n  Embedlane is ready.*?\n─+\n", re.DOTALL)
FIELDS = {
    "level",
    "logger",
    "message",
    "process",
    "correlation_id",
    "method",
    "path",
    "status",
    "key",
    "texts",
    "tokens",
    "queue_ms",
    "inference_ms",
    "total_ms",
    "cache",
    "error",
    "time",
}
CLIENT_LEFT = 499


@dataclass(frozen=True)
class Told:
    """What a client knows of a request of its own; its line must say the same."""

    method: str
    path: str
    status: int
    key: str | None
    tokens: int | None
    cache: str | None


@dataclass
class Client:
    """Sends requests and keeps what their lines must say, by the correlation ids of the answers."""

    connection: Connection
    key: str = KEY
    name: str = "default"
    told: dict[str, Told] = field(default_factory=dict)
    vectors: list[bytes] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        given = {"Authorization": f"Bearer {self.key}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        answer = await self.connection.request(method, path, body, given)
        identity = answer.headers["x-correlation-id"]
        assert identity not in self.told, "an id of its own for each request"
        tokens = answer.headers.get("x-compute-tokens")
        is_open = method == "GET" and path.partition("?")[0] in OPEN_PATHS
        self.told[identity] = Told(
            method,
            path.partition("?")[0],
            answer.status,
            None if is_open or answer.status == 401 else self.name,
            int(tokens) if tokens else None,
            answer.headers.get("x-cache"),
        )
        return answer

    async def post(self, path: str, content: object, **headers: str) -> Answer:
        return await self.ask("POST", path, json.dumps(content).encode(), **headers)

    async def vector(self, text: str) -> None:
        self.vectors += openai_bits(await self.post("/v1/embeddings", openai_body(text)))


@dataclass
class Run:
    """What happened, and what all processes said of it."""

    output: str
    told: Mapping[str, Told]
    vectors: list[bytes]
    secrets: list[str]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those of requests, but not the ones with which the start waits until all is ready."""
        return [r for r in self.records if r["logger"] == NAME and r["path"] != "/ready"]


def keys(stack: Stack, *arguments: str) -> str:
    command = [sys.executable, "-m", "tools.keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=True).stdout.strip()


async def every_dialect(client: Client) -> None:
    await client.vector(f"{MARK} openai")
    await client.vector(f"{MARK} openai")
    await client.post("/embeddings", {"input": [f"{MARK} a", f"{MARK} b"], "user": MARK, "model": MARK})
    await client.post("/embed", {"inputs": [f"{MARK} {n}" for n in range(40)], MARK: MARK})
    await client.post("/embed", {"inputs": f"{MARK} raw"}, Accept="application/octet-stream")
    await client.post("/", {"inputs": f"{MARK} root"})
    await client.post("/", {"inputs": {"source_sentence": f"{MARK} x", "sentences": [f"{MARK} y"]}})
    await client.post("/similarity", {"inputs": {"source_sentence": f"{MARK} x", "sentences": [f"{MARK} y"]}})
    await client.post("/tokenize", {"inputs": f"{MARK} tokens"})
    await client.post("/v1/embed", {"input_text": f"{MARK} original"})
    for path in ("/v1/usage", "/v1/models", "/info", f"/health?{MARK}={MARK}", "/docs", "/openapi.json"):
        assert (await client.ask("GET", path)).status == 200


async def everything_wrong(client: Client) -> None:
    """Each status that a client can bring about, with the word in whatever is refused."""
    for path, name in (("/v1/embeddings", "input"), ("/embed", "inputs"), ("/v1/embed", "input_text")):
        for body in (
            f'{{"{name}": "{MARK}"',
            f"{MARK}",
            f'{{"{name}": {{"{MARK}": 1}}}}',
            f'{{"{name}": ["{MARK}", 1.5]}}',
            f'{{"{name}": "{MARK}\\ud800"}}',
            json.dumps({name: f"{MARK} " * 1000}),
            json.dumps({name: [f"{MARK} {n}" for n in range(65)]}),
        ):
            assert (await client.ask("POST", path, body.encode())).status in {400, 422}
        assert (await client.ask("POST", path, b"{}", Content_Type=f"text/{MARK}")).status == 415
        assert (await client.ask("POST", path, MARK.encode() * 12_000)).status == 413
        assert (await client.ask("POST", f"{path}?key={MARK}", b"{}")).status in {400, 422}
    await client.post("/embed", {"inputs": MARK, "prompt_name": MARK, "truncation_direction": MARK})
    await client.post("/embed", {"inputs": MARK}, X_Priority=MARK)
    await client.post("/embed", {"inputs": MARK}, X_Request_Timeout_Ms=MARK)
    assert (await client.ask("GET", f"/nowhere?{MARK}")).status == 404
    assert (await client.ask("DELETE", f"/embed?{MARK}")).status == 405
    assert (await client.post("/embed", {"inputs": f"{MARK} late"}, X_Request_Timeout_Ms="1")).status in {200, 504}


async def every_header(client: Client, secrets: list[str]) -> None:
    """Keys that are not valid, in every form, and correlation ids that are none."""
    for number, (name, form) in enumerate(
        [("Authorization", "Bearer %s"), ("Authorization", "%s"), ("Authorization", "Basic %s"), ("X_API_Key", "%s")]
    ):
        key = f"{WRONG_KEY}-{number}"
        secrets += [key, base64.b64encode(key.encode()).decode()]
        headers = {"Authorization": "Bearer"} | {name: form % (secrets[-1] if "Basic" in form else key)}
        assert (await client.ask("POST", "/embed", b"{}", **headers)).status == 401
    for given in (f"{MARK} with spaces", MARK * 40, f'"{MARK}"', f"{MARK};{MARK}"):
        answer = await client.ask("GET", "/health", X_Correlation_ID=given, X_Request_ID=given)
        assert MARK not in answer.headers["x-correlation-id"]
    answer = await client.post("/embed", {"inputs": MARK}, X_Correlation_ID="sane-1", Cookie=MARK, User_Agent=MARK)
    assert answer.headers["x-correlation-id"] == "sane-1"


async def limited(client: Client) -> None:
    """The last request is refused before it is tokenized."""
    answers = [await client.post("/embed", {"inputs": f"{MARK} {n}"}) for n in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def hang_up(stack: Stack) -> None:
    """A client that leaves while the engine has its texts."""
    leaver = await Connection.open(stack.port)
    await leaver.send("POST", "/embed", json.dumps({"inputs": [f"{MARK} leaves {n}" for n in range(50)]}).encode())
    await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "all read")
    leaver.abort()


async def killed_engine(stack: Stack, client: Client) -> None:
    """kill -9 of the engine while texts run."""
    asked = asyncio.ensure_future(
        client.post("/embed", {"inputs": [f"{MARK} {n} " * 60 for n in range(64)], "truncate": True})
    )
    await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "all read")
    stack.signal("engine", signal.SIGKILL)
    assert (await asked).status in {200, 503}


async def in_vain(client: Client) -> None:
    """No engine for longer than the grace."""
    assert (await client.post("/v1/embed", {"input_text": f"{MARK} in vain"})).status in {503, 504}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Everything, on one server."""
    with RedisServer() as redis:
        yield serve_and_ask(redis)


def serve_and_ask(redis: RedisServer) -> Run:
    secrets = [PASSWORD, KEY]
    stack = Stack(
        frontends=2,
        log_level="debug",
        cache_mb=1,
        redis_url=redis.url.replace("//", f"//:{PASSWORD}@"),
        max_body_bytes=100_000,
        max_inputs=64,
        engine_grace_ms=500,
    )
    with stack:
        made, revoked = keys(stack, "create", "made", "--rpm", "2"), keys(stack, "create", "revoked")
        secrets += [made, revoked]
        told, vectors = asyncio.run(ask(stack, made, revoked, secrets))
        redis.kill()
        told |= asyncio.run(ask_once(stack.port))
        assert log_records(stack.log, "redis is away")
        stack.stop()
        output = stack.log.read_text()
    return Run(BLOCK.sub("", output), told, vectors, secrets)


async def ask_once(port: int) -> dict[str, Told]:
    async with await Connection.open(port) as connection:
        client = Client(connection)
        assert (await client.post("/embed", {"inputs": f"{MARK} without redis"})).status == 200
        return client.told


async def ask(stack: Stack, made: str, revoked: str, secrets: list[str]) -> tuple[dict[str, Told], list[bytes]]:
    async with await Connection.open(stack.port) as connection:
        own = Client(connection)
        await every_dialect(own)
        await everything_wrong(own)
        await every_header(own, secrets)
        for_made = Client(connection, made, "made", own.told)
        await becomes(for_made, 200)
        await limited(for_made)
        for_revoked = Client(connection, revoked, "revoked", own.told)
        await becomes(for_revoked, 200)
        await asyncio.to_thread(keys, stack, "revoke", "revoked")
        await becomes(for_revoked, 401)
        await hang_up(stack)
        await killed_engine(stack, own)
        await asyncio.to_thread(wait_for, lambda: len(log_records(stack.log, "ready")) == 2, "another engine")
        with stack.without_engine():
            await in_vain(own)
        await asyncio.to_thread(wait_for, lambda: len(log_records(stack.log, "ready")) == 3, "an engine again")
        await asyncio.to_thread(stack.wait_ready)
        return own.told, own.vectors


async def becomes(client: Client, status: int) -> None:
    """Wait until the client's key is known, or no longer."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while (await client.ask("GET", "/v1/models")).status != status:
        assert time.monotonic() < give_up
        await asyncio.sleep(POLL_SECONDS)


def test_every_line_of_every_process_is_whole(run: Run) -> None:
    """`records` parses each that begins as JSON does."""
    assert {record["process"] for record in run.records} == {"frontend", "engine"}
    assert {"uvicorn.error", "frontend.client", "frontend.keys", "engine.loop", NAME} <= {
        r["logger"] for r in run.records
    }
    assert not [line for line in run.output.splitlines() if line and not line.startswith("{")]
    assert not [record for record in run.records if "Traceback" in json.dumps(record)]


def test_no_secret_and_no_text_is_in_the_output(run: Run) -> None:
    assert MARK not in run.output
    for secret in run.secrets:
        assert secret not in run.output
        digest = hashlib.sha256(secret.encode()).hexdigest()
        assert digest[: ID_DIGITS + 1] not in run.output


def test_no_vector_is_in_the_output(run: Run) -> None:
    assert len(run.vectors) == 2
    for bits in run.vectors:
        numbers = np.frombuffer(bits, np.float32)
        # Shorter ones are other figures as well.
        telling = [text for text in map(str, numbers) if len(text) >= 9]
        assert len(telling) > 300
        assert not [text for text in telling if text in run.output]
        assert base64.b64encode(bits[:12]).decode() not in run.output


def test_each_request_has_one_line_that_is_true(run: Run) -> None:
    lines = {line["correlation_id"]: line for line in run.lines}
    assert len(lines) == len(run.lines) == len(run.told) + 1, "and one of the client that hung up"
    assert {told.status for told in run.told.values()} >= {200, 400, 401, 404, 405, 413, 415, 422, 429, 503}
    for identity, told in run.told.items():
        line = lines.pop(identity)
        assert line.keys() == FIELDS
        assert (line["method"], line["path"], line["status"]) == (told.method, told.path, told.status)
        assert (line["key"], line["cache"]) == (told.key, told.cache)
        assert (line["error"] is None) == (told.status < 400)
        assert line["total_ms"] >= line["queue_ms"] >= 0
        if told.tokens is not None:
            assert (line["tokens"], line["texts"] > 0, line["inference_ms"] > 0) == (
                told.tokens,
                True,
                told.cache != "hit",
            )
        elif told.status in {400, 401, 404, 405, 413, 415, 422, 429}:
            assert (line["tokens"], line["texts"]) == (0, 0), "nothing was charged"
    (left,) = lines.values()
    assert (left["status"], left["key"], left["texts"]) == (CLIENT_LEFT, "default", 50)


def test_lines_of_busy_front_ends_do_not_cut_each_other(server: Stack) -> None:
    """Front ends share one pipe to their supervisor, and it one file."""
    connections, each = 40, 100

    async def one(number: int) -> None:
        async with await Connection.open(server.port) as connection:
            for request in range(each):
                await connection.request("GET", f"/health/{number}/{request}/{'x' * 150}")

    async def run() -> None:
        await asyncio.gather(*(one(number) for number in range(connections)))

    def ours() -> list[str]:
        return [line for line in server.log.read_text(errors="replace").splitlines() if "/health/" in line]

    asyncio.run(run())
    wait_for(lambda: len(ours()) >= connections * each, "all lines")
    paths = {json.loads(line)["path"] for line in ours()}
    assert len(paths) == len(ours()) == connections * each
