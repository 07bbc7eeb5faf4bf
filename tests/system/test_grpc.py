"""gRPC on a running server: found by reflection, asked by clients of both interfaces, as HTTP in all that counts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from frontend.rpc.protos import embedlane_pb2 as own
from frontend.rpc.streams import MOST_UNDER_WAY
from perf.stack import KEY, ROOT, Stack, free_port
from tests.system import tei_client
from tests.system.keyed import bearer, make_key
from tests.system.processes import log_records, wait_for
from tests.system.reference import Reference, differing
from tests.system.wire import AUTHORIZED, Connection

pytestmark = pytest.mark.system

DOCUMENT = (ROOT / "docs" / "grpc.md").read_text()
KEYED = (("authorization", f"Bearer {KEY}"),)
EMBED, STREAM = "/embedlane.v1.Embeddings/Embed", "/embedlane.v1.Embeddings/EmbedStream"
CHECK = "/grpc.health.v1.Health/Check"
WAIT = 30
CANNOT_START = 3


class Served:
    """A server with gRPC, and one connection to that."""

    def __init__(self, stack: Stack, port: int) -> None:
        self.stack = stack
        self.port = port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def embed(self, *texts: str, key: str = KEY, **options: Any) -> Any:
        """The future of a call."""
        method: Any = self.channel.unary_unary(EMBED, own.EmbedRequest.SerializeToString, own.EmbedResponse.FromString)
        metadata = (("x-api-key", key), *options.pop("metadata", ()))
        return method.future(own.EmbedRequest(texts=texts), metadata=metadata, **{"timeout": WAIT, **options})

    def health(self) -> int | None:
        """The server's state; None where there is no answer."""
        method: Any = self.channel.unary_unary(
            CHECK, health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
        )
        try:
            return int(method(health_pb2.HealthCheckRequest(), timeout=WAIT, wait_for_ready=True).status)
        except grpc.RpcError:
            return None

    def is_serving(self) -> bool:
        """Whether an embedding went through."""
        return self.health() == int(health_pb2.HealthCheckResponse.SERVING)

    def log_line(self, identity: str) -> dict[str, Any]:
        """The line of the call with this id."""

        def find() -> dict[str, Any] | None:
            lines = log_records(self.stack.log, "request")
            return next((line for line in lines if line["correlation_id"] == identity), None)

        return wait_for(find, f"the line of {identity}")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    port = free_port()
    with Stack(frontends=1, grpc_port=port, engine_grace_ms=500) as stack:
        served = Served(stack, port)
        wait_for(served.is_serving, "an embedding over gRPC")
        yield served
        served.channel.close()
        # pytest shows this where a test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


def http_raw(stack: Stack, texts: list[str]) -> bytes:
    """What `/embed` gives for these texts as octets."""

    async def ask() -> bytes:
        async with await Connection.open(stack.port) as connection:
            body = json.dumps({"inputs": texts, "truncate": True}).encode()
            headers = {**AUTHORIZED, "Accept": "application/octet-stream"}
            answer = await connection.request("POST", "/embed", body, headers)
            assert answer.status == 200, answer
            return answer.body

    return asyncio.run(ask())


def code_of(error: grpc.RpcError) -> Any:
    return error.code()


def refused(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        call.result()
    return error.value


# found, and asked


def test_who_has_no_definitions_finds_all_that_is_needed_by_reflection(served: Served) -> None:
    database = ProtoReflectionDescriptorDatabase(served.channel)
    services = set(database.get_services())
    assert services >= {"embedlane.v1.Embeddings", "tei.v1.Embed", "tei.v1.Info", "grpc.health.v1.Health"}
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("embedlane.v1.Embeddings").FindMethodByName("Embed")
    asked, told = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call: Any = served.channel.unary_unary(EMBED, asked.SerializeToString, told.FromString)
    answer = call(asked(texts=["found"]), metadata=KEYED, timeout=WAIT)
    assert answer.embeddings == http_raw(served.stack, ["found"])


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_has_both_its_names(served: Served, version: str) -> None:
    method: Any = served.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = method(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT)
    assert "embedlane.v1.Embeddings" in {each.name for each in answer.list_services_response.service}


def test_every_text_of_the_reference_has_its_vector_and_the_bits_of_http(
    served: Served, references: list[Reference]
) -> None:
    references = [reference for reference in references if reference.text]
    texts = [reference.text for reference in references]
    method: Any = served.channel.unary_unary(EMBED, own.EmbedRequest.SerializeToString, own.EmbedResponse.FromString)
    answer = method(own.EmbedRequest(texts=texts, truncate=True), metadata=KEYED, timeout=WAIT)
    rows = np.frombuffer(answer.embeddings, "<f4").reshape(-1, answer.dimensions)
    assert not differing(references, list(rows))
    assert answer.embeddings == http_raw(served.stack, texts)
    assert answer.tokens == sum(reference.tokens for reference in references)


def test_a_stream_of_more_texts_than_are_under_way_at_once(served: Served) -> None:
    texts = [f"text {number}" for number in range(2 * MOST_UNDER_WAY)]
    requests = (own.EmbedStreamRequest(id=str(n), text=text) for n, text in enumerate(texts))
    method: Any = served.channel.stream_stream(
        STREAM, own.EmbedStreamRequest.SerializeToString, own.EmbedStreamResponse.FromString
    )
    metadata = (*KEYED, ("x-correlation-id", "a-stream"))
    answers = {int(each.id): each for each in method(requests, metadata=metadata, timeout=WAIT)}
    assert b"".join(answers[n].embedding for n in range(len(texts))) == http_raw(served.stack, texts)
    line = served.log_line("a-stream")
    assert (line["path"], line["status"], line["texts"]) == (STREAM, 200, len(texts))
    assert line["tokens"] == sum(answer.tokens for answer in answers.values())


def test_a_client_of_tei_gets_the_same_bits(served: Served, references: list[Reference]) -> None:
    texts = [reference.text for reference in references[:20] if reference.text]
    info = tei_client.unary(served.channel, "Info/Info", "InfoRequest", "InfoResponse")
    assert info(tei_client.TYPES["InfoRequest"](), metadata=KEYED, timeout=WAIT).max_input_length == 256
    embed = tei_client.unary(served.channel, "Embed/Embed", "EmbedRequest", "EmbedResponse")
    stream = tei_client.stream(served.channel, "Embed/EmbedStream", "EmbedRequest", "EmbedResponse")
    requests = [tei_client.TYPES["EmbedRequest"](inputs=text, truncate=True) for text in texts]
    single = [embed(request, metadata=KEYED, timeout=WAIT).embeddings for request in requests]
    streamed = [each.embeddings for each in stream(iter(requests), metadata=KEYED, timeout=WAIT)]
    for vectors in (single, streamed):
        assert np.array(vectors, np.float32).tobytes() == http_raw(served.stack, texts)
    sparse = tei_client.unary(served.channel, "Embed/EmbedSparse", "EmbedRequest", "EmbedResponse")
    with pytest.raises(grpc.RpcError) as error:
        sparse(requests[0], metadata=KEYED, timeout=WAIT)
    assert code_of(error.value) is grpc.StatusCode.UNIMPLEMENTED


def test_the_client_of_the_document_works(served: Served, tmp_path: Path) -> None:
    protoc = next(line for line in DOCUMENT.splitlines() if "grpc_tools.protoc" in line).split()
    command = [sys.executable, *protoc[1:]]
    command = [f"--{part[2:].partition('=')[0]}={tmp_path}" if "_out=" in part else part for part in command]
    subprocess.run(command, cwd=ROOT, check=True)
    example = re.search(r"```python\n(.+?)```", DOCUMENT, re.DOTALL)
    assert example is not None
    script = example[1].replace("el-…", KEY).replace("127.0.0.1:8001", f"127.0.0.1:{served.port}")
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", script + "\nprint(vectors.shape)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT,
    )
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:3]} == {"first", "second", "third"}
    assert "third Text 0 of `text` is empty." in lines
    assert lines[3] == "(2, 384)"


# as over HTTP


def test_bad_input_is_told_by_its_field_with_the_status_of_http_in_the_log(served: Served) -> None:
    error: Any = refused(served.embed("a", "", metadata=(("x-correlation-id", "bad-input"),)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata = dict(error.trailing_metadata())
    assert metadata["x-correlation-id"] == "bad-input"
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert any(each.Unpack(bad) for each in status.details)
    assert [violation.field for violation in bad.field_violations] == ["texts"]
    line = served.log_line("bad-input")
    assert (line["path"], line["status"], line["key"], line["error"]) == (EMBED, 422, "default", "VALIDATION_ERROR")


def test_a_limit_holds_over_both(served: Served) -> None:
    key = asyncio.run(make_key(served.stack, "both", "--rpm", "3"))

    def is_taken() -> bool:
        return code_of(refused(served.embed(key=key))) is not grpc.StatusCode.UNAUTHENTICATED

    wait_for(is_taken, "the key")

    async def over_http() -> int:
        async with await Connection.open(served.stack.port) as connection:
            return (await connection.request("POST", "/embed", b'{"inputs":"a"}', bearer(key))).status

    # What is not valid is not charged.
    assert served.embed("a", key=key).result().tokens == 3
    assert asyncio.run(over_http()) == 200
    call = served.embed("a", key=key)
    assert call.result().tokens == 3
    assert dict(call.trailing_metadata())["x-ratelimit-remaining"] == "0"
    assert asyncio.run(over_http()) == 429
    assert code_of(refused(served.embed("a", key=key))) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_are_counted_where_requests_are(served: Served) -> None:
    served.embed("counted").result()

    async def metrics() -> str:
        async with await Connection.open(served.stack.port) as connection:
            return (await connection.request("GET", "/metrics", headers=AUTHORIZED)).body.decode()

    def is_counted() -> bool:
        text = asyncio.run(metrics())
        return all(
            found in text
            for found in (
                f'embedlane_requests_total{{key="default",route="{EMBED}",status="200"}}',
                f'embedlane_requests_total{{key="default",route="{STREAM}",status="200"}}',
                'embedlane_frontend_starts_total{process="grpc-0"}',
            )
        )

    wait_for(is_counted, "the counts")


def test_without_an_engine_it_is_not_serving_and_calls_end_by_their_deadline_or_the_grace(served: Served) -> None:
    engine = served.stack.signal("engine", signal.SIGSTOP)
    try:
        late = refused(served.embed("nobody answers", timeout=0.5, metadata=(("x-correlation-id", "late"),)))
        assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: served.health() == health_pb2.HealthCheckResponse.NOT_SERVING, "that to be noticed")
        gone = served.embed("cancelled", metadata=(("x-correlation-id", "gone"),))
        # What follows it on the same connection has come through, so it has too.
        assert code_of(refused(served.embed())) is grpc.StatusCode.INVALID_ARGUMENT
        gone.cancel()
        assert served.log_line("gone")["status"] == 499
        assert served.log_line("late")["status"] == 504
    finally:
        os.kill(engine, signal.SIGCONT)
    with served.stack.without_engine():
        assert code_of(refused(served.embed("nobody there"))) is grpc.StatusCode.UNAVAILABLE
    wait_for(served.is_serving, "an engine that answers again")


def test_it_comes_back_after_kill_9_and_http_notices_nothing(served: Served) -> None:
    killed = served.stack.signal("grpc", signal.SIGKILL)
    assert len(http_raw(served.stack, ["meanwhile"])) == 384 * 4
    (pid,) = wait_for(lambda: [pid for pid in served.stack.pids("grpc") if pid != killed], "another process")
    assert pid != killed
    wait_for(served.is_serving, "its answer")
    assert served.embed("again").result().embeddings == http_raw(served.stack, ["again"])


def test_the_block_says_where_it_is(served: Served) -> None:
    assert f"gRPC  127.0.0.1:{served.port}\n" in served.stack.log.read_text()


# the start


def start(tmp_path: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run the front end; gives its exit status and what it said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDLANE_")}
    done = subprocess.run(
        [sys.executable, "-m", "frontend.rpc"],
        cwd=ROOT,
        env={**inherited, "EMBEDLANE_RUN_DIR": str(tmp_path / "run"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    return done.returncode, done.stderr


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('it is not here', name='grpc')\n")
    status, said = start(tmp_path, {"EMBEDLANE_GRPC_PORT": str(free_port()), "PYTHONPATH": str(tmp_path)})
    assert status == CANNOT_START
    assert "grpc is missing" in said and "install the extra `grpc`" in said
    assert len(said.splitlines()) == 1


def test_http_needs_none_of_its_packages(tmp_path: Path) -> None:
    for name in ("grpc", "grpc_health", "grpc_reflection"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is not here')\n")
    command = [sys.executable, "-c", "import frontend.__main__, tools.serve, engine.__main__"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True, timeout=WAIT)


def test_without_a_port_it_says_what_to_set(tmp_path: Path) -> None:
    status, said = start(tmp_path, {})
    assert (status, len(said.splitlines())) == (CANNOT_START, 1)
    assert "EMBEDLANE_GRPC_PORT" in said


def test_a_port_that_is_taken_stops_the_whole_start(served: Served) -> None:
    stack = Stack(grpc_port=served.port)
    try:
        stack.start(wait=False)
        assert stack.process is not None
        assert stack.process.wait(WAIT) == CANNOT_START
        assert "EMBEDLANE_GRPC_PORT" in stack.log.read_text()
    finally:
        stack.__exit__()
