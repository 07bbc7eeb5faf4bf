"""The gRPC front end over a real engine, or one that answers only what a test tells it to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tokenizers
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from frontend.keys import KEYS_FILE, create_key, digest_of, revoke_key
from frontend.rpc.protos import embedlane_pb2 as own
from frontend.rpc.protos import tei_pb2 as tei
from frontend.rpc.server import PATHS, serving
from frontend.rpc.streams import MOST_UNDER_WAY
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import StartError
from ipc.liveness import living_frontends
from ipc.messages import Status
from perf.stack import free_port
from tests.frontend.peer import EnginePeer, eventually, vector
from tests.frontend.rpc.caller import (
    EMBED,
    KEYED,
    METHODS,
    STREAM,
    TEI_EMBED,
    TEI_STREAM,
    Caller,
    called,
    detail,
    field,
    trailing,
)
from tests.frontend.served import KEY, drawn_engine, small_bounds

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("poller")]

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def real(run_dir: Path, bundle: Bundle) -> AsyncIterator[Caller]:
    """With an engine that answers."""
    with drawn_engine(run_dir, bundle):
        async with called(run_dir, bundle) as caller:
            yield caller


@pytest.fixture
async def told(peer: EnginePeer, run_dir: Path, bundle: Bundle) -> AsyncIterator[Caller]:
    """Where `peer` is the engine, and answers what it is told to."""
    async with called(run_dir, bundle, queue_items=1000) as caller:
        await peer.joined()
        yield caller


def expected(bundle: Bundle, *texts: str) -> bytes:
    library = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
    return b"".join(vector(library.encode(text).ids, bundle.dim).tobytes() for text in texts)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value


def stream_text(number: int) -> own.EmbedStreamRequest:
    return own.EmbedStreamRequest(id=str(number), text=f"text {number}")


# what comes back


async def test_vectors_come_as_bytes_in_the_order_of_the_texts(real: Caller, bundle: Bundle) -> None:
    texts = ["one text", "another", "one text"]
    answer = await real.call(EMBED, own.EmbedRequest(texts=texts))
    assert answer.embeddings == expected(bundle, *texts)
    assert (answer.dimensions, answer.model, answer.truncated_texts) == (bundle.dim, bundle.id, 0)
    assert answer.tokens == 2 * 4 + 3
    assert answer.total_ns > answer.tokenize_ns > 0
    assert not answer.HasField("cached")


async def test_a_part_of_each_vector(real: Caller, bundle: Bundle) -> None:
    answer = await real.call(EMBED, own.EmbedRequest(texts=["a", "b"], dimensions=5))
    rows = np.frombuffer(answer.embeddings, "<f4").reshape(2, answer.dimensions)
    whole = np.frombuffer(expected(bundle, "a", "b"), "<f4").reshape(2, -1)[:, :5]
    assert np.allclose(rows, whole / np.linalg.norm(whole, axis=1, keepdims=True))


async def test_where_there_is_a_cache_it_is_told(run_dir: Path, bundle: Bundle) -> None:
    with drawn_engine(run_dir, bundle):
        async with called(run_dir, bundle, cache_mb=1) as caller:
            answers = [await caller.call(EMBED, own.EmbedRequest(texts=texts)) for texts in (["a"], ["a"], ["a", "b"])]
    assert [answer.cached for answer in answers] == [False, True, False]
    assert [answer.embeddings for answer in answers] == [
        expected(bundle, *texts) for texts in (["a"], ["a"], ["a", "b"])
    ]


async def test_tei_gets_floats_and_times(real: Caller, bundle: Bundle) -> None:
    answer = await real.call(TEI_EMBED, tei.EmbedRequest(inputs="one text"))
    assert np.array(answer.embeddings, np.float32).tobytes() == expected(bundle, "one text")
    assert (answer.metadata.compute_chars, answer.metadata.compute_tokens) == (8, 4)
    assert answer.metadata.total_time_ns > answer.metadata.tokenization_time_ns > 0


async def test_tei_is_told_of_the_model_and_its_tokens(real: Caller, bundle: Bundle) -> None:
    info = await real.call("/tei.v1.Info/Info", tei.InfoRequest())
    assert (info.model_id, info.model_dtype, info.max_input_length) == (bundle.id, "float32", bundle.max_tokens)
    request = tei.EncodeRequest(inputs="gold é", add_special_tokens=True)
    tokens = (await real.call("/tei.v1.Tokenize/Tokenize", request)).tokens
    assert [(token.text, token.special) for token in tokens] == [
        ("[CLS]", True),
        ("gold", False),
        ("é", False),
        ("[SEP]", True),
    ]
    assert [(token.start, token.stop) for token in tokens if token.HasField("start")] == [(0, 4), (5, 7)]


async def test_an_id_is_taken_or_made_and_told(real: Caller) -> None:
    for given in ("mine-1", "not sane"):
        call = real.call(EMBED, own.EmbedRequest(texts=["a"]), metadata=(*KEYED, ("x-correlation-id", given)))
        await call
        told = dict(await call.trailing_metadata())["x-correlation-id"]
        assert told == given if given == "mine-1" else len(told) == 32


# what is refused


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_every_method_is_served_and_needs_a_key(real: Caller, path: str) -> None:
    kind, _, is_stream = METHODS[path]
    for metadata, says in (((), "No API key"), ((("x-api-key", "wrong"),), "not valid")):
        call = real.stream(path, metadata=metadata) if is_stream else real.call(path, kind(), metadata=metadata)
        error = await refused(call.read() if is_stream else call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert says in str(error.details())
        assert trailing(error)["x-correlation-id"]


async def test_without_a_key_no_message_is_waited_for(real: Caller) -> None:
    method: Any = real.channel.stream_unary(EMBED)
    assert (await refused(method())).code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("metadata", [(("x-api-key", KEYED[0][1][7:]),), (("authorization", KEYED[0][1][7:]),)])
async def test_other_forms_of_the_key(real: Caller, metadata: tuple[tuple[str, str], ...]) -> None:
    assert (await real.call(EMBED, own.EmbedRequest(texts=["a"]), metadata=metadata)).embeddings


BAD = [
    (EMBED, own.EmbedRequest(), "texts"),
    (EMBED, own.EmbedRequest(texts=["a", ""]), "texts"),
    (EMBED, own.EmbedRequest(texts=["a"] * 65), "texts"),
    (EMBED, own.EmbedRequest(texts=["word " * 300]), "texts"),
    (EMBED, own.EmbedRequest(texts=["a"], dimensions=100_000), "dimensions"),
    (EMBED, own.EmbedRequest(texts=["a"], dimensions=0), "dimensions"),
    (EMBED, own.EmbedRequest(texts=["a"], prompt_name="none"), "prompt_name"),
    (EMBED, own.EmbedRequest(texts=["a"], normalize=False), "normalize"),
    (EMBED, b"\x0a\x01\xff", "texts"),
    (TEI_EMBED, tei.EmbedRequest(), "inputs"),
    (TEI_EMBED, tei.EmbedRequest(inputs="word " * 300), "inputs"),
    ("/tei.v1.Tokenize/Tokenize", tei.EncodeRequest(), "inputs"),
]


@pytest.mark.parametrize(("path", "request_", "name"), BAD, ids=[f"{path}-{n}" for n, (path, _, _) in enumerate(BAD)])
async def test_what_is_not_valid_is_told_by_its_field(real: Caller, path: str, request_: Any, name: str) -> None:
    error = await refused(real.call(path, request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field(error) == name


async def test_a_call_without_a_message_and_one_that_is_too_large(real: Caller) -> None:
    method: Any = real.channel.stream_unary(EMBED)
    call = method(metadata=KEYED)
    await call.done_writing()
    assert (await refused(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
    error = await refused(real.call(EMBED, own.EmbedRequest(texts=["x" * 200_000])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("path", ["/tei.v1.Rerank/Rerank", "/tei.v1.Embed/EmbedSparse", "/none/such", "/"])
async def test_what_is_not_served_is_unimplemented(real: Caller, path: str) -> None:
    method: Any = real.channel.unary_unary(path)
    error = await refused(method(b"", metadata=KEYED))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_limit_is_told_on_every_answer_and_ends_with_a_time_to_come_back(run_dir: Path, bundle: Bundle) -> None:
    with drawn_engine(run_dir, bundle):
        async with called(run_dir, bundle, limit_rpm=2) as caller:
            for left in ("1", "0"):
                call = caller.call(EMBED, own.EmbedRequest(texts=["a", "b"]))
                await call
                assert dict(await call.trailing_metadata())["x-ratelimit-remaining"] == left
            error = await refused(caller.call(TEI_EMBED, tei.EmbedRequest(inputs="a")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait = detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
    assert trailing(error)["grpc-retry-pushback-ms"] == str(wait)
    assert wait > 0


# time


async def test_grpcs_deadline_is_the_texts_and_ends_the_call(told: Caller, peer: EnginePeer) -> None:
    error = await refused(told.call(EMBED, own.EmbedRequest(texts=["a"]), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (patient,) = (told.call(EMBED, own.EmbedRequest(texts=["a"])),)
    first, second = await peer.received(2)
    # 30 s is the most there is, where nobody asks for less.
    assert 29 < (second.deadline - first.deadline) / 1e9 < 60
    await eventually(lambda: first.sequence in peer.cancelled)
    peer.answer(second)
    await patient


async def test_a_deadline_in_the_metadata_counts_where_grpc_has_none(told: Caller) -> None:
    metadata = (*KEYED, ("x-request-timeout-ms", "50"))
    error = await refused(told.call(EMBED, own.EmbedRequest(texts=["a"]), metadata=metadata))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "allow more time" in str(error.details()), "it is the server's own answer"


async def test_a_call_that_is_cancelled_takes_its_texts_back(told: Caller, peer: EnginePeer) -> None:
    call = told.call(EMBED, own.EmbedRequest(texts=["a", "b"]))
    texts = await peer.received(2)
    call.cancel()
    await eventually(lambda: len(peer.cancelled) == 2)
    assert set(peer.cancelled) == {text.sequence for text in texts}


async def test_a_priority_is_taken_and_another_is_refused(told: Caller, peer: EnginePeer) -> None:
    call = told.call(EMBED, own.EmbedRequest(texts=["a"]), metadata=(*KEYED, ("x-priority", "bulk")))
    (text,) = await peer.received(1)
    peer.answer(text)
    await call
    assert text.priority == 1
    error = await refused(told.call(EMBED, own.EmbedRequest(texts=["a"]), metadata=(*KEYED, ("x-priority", "high"))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_would_wait_too_long_is_resource_exhausted(told: Caller, peer: EnginePeer) -> None:
    call = told.call(EMBED, own.EmbedRequest(texts=["a"]))
    peer.answer(*await peer.received(1))
    await call
    peer.pile_up(3000, digest_of(KEY.encode())[0])
    error = await refused(told.call(EMBED, own.EmbedRequest(texts=["a"])))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again later" in str(error.details())


async def test_what_the_engine_refuses_has_its_status(told: Caller, peer: EnginePeer) -> None:
    for status, code in (
        (Status.REFUSED, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Status.FAILED, grpc.StatusCode.INTERNAL),
    ):
        call = told.call(EMBED, own.EmbedRequest(texts=["a"]))
        texts = await peer.received(len(peer.texts) + 1)
        peer.answer(texts[-1], status=status)
        assert (await refused(call)).code() is code


async def test_no_engine_is_unavailable(run_dir: Path, bundle: Bundle) -> None:
    async with called(run_dir, bundle, engine_grace_ms=0) as caller:
        error = await refused(caller.call(EMBED, own.EmbedRequest(texts=["a"])))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


# streams


async def test_answers_come_as_they_are_computed(told: Caller, peer: EnginePeer) -> None:
    call = told.stream(STREAM)
    for number in range(3):
        await call.write(stream_text(number))
    texts = await peer.received(3)
    for place in (2, 0, 1):
        peer.answer(texts[place])
        answer = await call.read()
        assert (answer.id, answer.tokens, answer.truncated) == (str(place), len(texts[place].ids), False)
        assert answer.embedding == vector(texts[place].ids, peer.welcome.dim).tobytes()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_tei_has_no_ids_and_gets_its_answers_in_order(told: Caller, peer: EnginePeer) -> None:
    call = told.stream(TEI_STREAM)
    for number in range(3):
        await call.write(tei.EmbedRequest(inputs=f"text {number}"))
    texts = await peer.received(3)
    for place in (2, 0, 1):
        peer.answer(texts[place])
    for text in texts:
        answer = await call.read()
        assert np.array(answer.embeddings, np.float32).tobytes() == vector(text.ids, peer.welcome.dim).tobytes()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_text_that_fails_says_so_and_the_stream_goes_on(real: Caller, bundle: Bundle) -> None:
    call = real.stream(STREAM)
    bad = [
        own.EmbedStreamRequest(id="empty"),
        own.EmbedStreamRequest(id="long", text="word " * 300),
        own.EmbedStreamRequest(id="cut", text="word " * 300, truncate=True),
        own.EmbedStreamRequest(id="part", text="a", dimensions=100_000),
    ]
    for request in bad:
        await call.write(request)
    await call.done_writing()
    answers = {answer.id: answer async for answer in call}
    assert await call.code() is grpc.StatusCode.OK
    errors = {id_: answer.error for id_, answer in answers.items() if answer.HasField("error")}
    assert {id_: (error.code, error.reason, error.field) for id_, error in errors.items()} == {
        "empty": (3, "VALIDATION_ERROR", "text"),
        "long": (3, "INPUT_TOO_LONG", "text"),
        "part": (3, "VALIDATION_ERROR", "dimensions"),
    }
    assert not errors["long"].HasField("retry_after_ms")
    assert answers["cut"].truncated and len(answers["cut"].embedding) == 4 * bundle.dim


async def test_teis_stream_ends_with_its_first_error_after_what_came_before(told: Caller, peer: EnginePeer) -> None:
    call = told.stream(TEI_STREAM)
    await call.write(tei.EmbedRequest(inputs="good"))
    await call.write(tei.EmbedRequest())
    (text,) = await peer.received(1)
    peer.answer(text)
    assert (await call.read()).embeddings
    assert field(await refused(call.read())) == "inputs"


async def test_a_stream_ends_where_a_message_is_none(real: Caller) -> None:
    method: Any = real.channel.stream_stream(STREAM)
    call = method(metadata=KEYED)
    await call.write(b"\xff")
    assert field(await refused(call.read())) == "text"


async def test_a_client_that_reads_nothing_is_read_from_no_further(told: Caller, peer: EnginePeer) -> None:
    call = told.stream(STREAM)
    more = MOST_UNDER_WAY + 50

    async def write_all() -> None:
        for number in range(more):
            await call.write(stream_text(number))
        await call.done_writing()

    writing = asyncio.create_task(write_all())
    texts = await peer.received(MOST_UNDER_WAY)
    peer.answer(texts[0])
    # That left room for one more, and for no more than that.
    await peer.received(MOST_UNDER_WAY + 1)
    assert len(peer.texts) == MOST_UNDER_WAY + 1
    answering = asyncio.create_task(answer_all(peer, 1))
    ids = {answer.id async for answer in call}
    answering.cancel()
    await writing
    assert ids == {str(number) for number in range(more)}


async def answer_all(peer: EnginePeer, answered: int = 0) -> None:
    """Answer each text, from this one on, and wait until its row is free again."""
    while True:
        peer.answer((await peer.received(answered + 1))[answered])
        answered += 1
        await eventually(lambda: not peer.leased)


async def test_a_stream_that_is_cancelled_takes_its_texts_back(told: Caller, peer: EnginePeer) -> None:
    call = told.stream(STREAM)
    for number in range(3):
        await call.write(stream_text(number))
    texts = await peer.received(3)
    call.cancel()
    await eventually(lambda: len(peer.cancelled) == 3)
    assert set(peer.cancelled) == {text.sequence for text in texts}


async def test_each_text_of_a_stream_is_charged(run_dir: Path, bundle: Bundle) -> None:
    with drawn_engine(run_dir, bundle):
        async with called(run_dir, bundle, limit_rpm=2) as caller:
            call = caller.stream(STREAM)
            for number in range(3):
                await call.write(stream_text(number))
            await call.done_writing()
            answers = [answer async for answer in call]
    (error,) = (answer.error for answer in answers if answer.HasField("error"))
    assert (error.code, error.reason) == (8, "RATE_LIMIT_EXCEEDED")
    assert error.retry_after_ms > 0


async def test_a_key_that_is_revoked_ends_its_streams(run_dir: Path, bundle: Bundle) -> None:
    path = run_dir / "data" / KEYS_FILE
    key = create_key(path, "guest")
    with drawn_engine(run_dir, bundle):
        async with called(run_dir, bundle) as caller:
            call = caller.stream(STREAM, metadata=(("x-api-key", key),))
            await call.write(stream_text(0))
            assert (await call.read()).embedding
            revoke_key(path, "guest")

            async def write_on() -> None:
                for number in range(1, 1000):
                    await call.write(stream_text(number))
                    await asyncio.sleep(0.01)

            writing = asyncio.create_task(write_on())
            with pytest.raises(grpc.aio.AioRpcError) as error:
                while await call.read() is not grpc.aio.EOF:
                    pass
            writing.cancel()
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


# health


def check(caller: Caller, service: str = "") -> Any:
    method = caller.channel.unary_unary(
        CHECK,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return method(health_pb2.HealthCheckRequest(service=service))


def watch(caller: Caller, service: str = "") -> Any:
    method = caller.channel.unary_stream(
        WATCH,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return method(health_pb2.HealthCheckRequest(service=service))


@pytest.mark.parametrize("service", ["", "embedlane.v1.Embeddings", "tei.v1.Embed"])
async def test_it_is_serving_where_an_embedding_goes_through(real: Caller, service: str) -> None:
    assert (await check(real, service)).status == SERVING


async def test_a_service_that_is_not_there_is_not_found_but_may_be_watched(real: Caller) -> None:
    assert (await refused(check(real, "none.such"))).code() is grpc.StatusCode.NOT_FOUND
    call = watch(real, "none.such")
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    call.cancel()


async def test_a_watch_tells_when_that_changes(told: Caller, peer: EnginePeer) -> None:
    call = watch(told)
    assert (await call.read()).status == NOT_SERVING, "nobody answers"
    answering = asyncio.create_task(answer_all(peer))
    assert (await call.read()).status == SERVING
    assert (await check(told)).status == SERVING
    answering.cancel()
    assert (await call.read()).status == NOT_SERVING
    call.cancel()


# the end


async def test_a_stop_answers_what_is_under_way_and_ends_streams(
    peer: EnginePeer, run_dir: Path, bundle: Bundle
) -> None:
    settings = msgspec.structs.replace(small_bounds(run_dir), grpc_port=free_port())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
        caller = Caller(channel)
        async with serving(settings, bundle, KEY, "grpc-0"):
            await peer.joined()
            single = caller.call(EMBED, own.EmbedRequest(texts=["a"]))
            stream = caller.stream(STREAM)
            await stream.write(stream_text(1))
            over = caller.stream(STREAM)
            await over.write(stream_text(2))
            await over.done_writing()
            texts = list(await peer.received(3))
            watched = watch(caller)
            assert (await watched.read()).status == NOT_SERVING, "nothing was answered yet"

            async def answer_late() -> None:
                assert await watched.read() is grpc.aio.EOF, "it ends with the server"
                peer.answer(*texts)

            late = asyncio.create_task(answer_late())
        await late
        assert (await single).embeddings
        assert (await stream.read()).embedding
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        assert [answer.id async for answer in over] == ["2"]
        assert await over.code() is grpc.StatusCode.OK, "it had nothing more to send"
        error = await refused(caller.call(EMBED, own.EmbedRequest(texts=["a"])))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_stops_the_start(run_dir: Path, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = msgspec.structs.replace(small_bounds(run_dir), grpc_port=taken.getsockname()[1])
        with pytest.raises(StartError, match="EMBEDLANE_GRPC_PORT"):
            async with serving(settings, bundle, KEY, "grpc-0"):
                raise AssertionError
    assert not living_frontends(run_dir)
