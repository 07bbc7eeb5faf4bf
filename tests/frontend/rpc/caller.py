"""A gRPC front end on the test's own loop, and calls to it as any client makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import msgspec
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from frontend.rpc.protos import embedlane_pb2 as own
from frontend.rpc.protos import tei_pb2 as tei
from frontend.rpc.server import serving
from ipc.bundle import Bundle
from perf.stack import free_port
from tests.frontend.served import KEY, small_bounds

M = TypeVar("M", bound=Message)

KEYED = (("authorization", f"Bearer {KEY}"),)
EMBED = "/embedlane.v1.Embeddings/Embed"
STREAM = "/embedlane.v1.Embeddings/EmbedStream"
TEI_EMBED = "/tei.v1.Embed/Embed"
TEI_STREAM = "/tei.v1.Embed/EmbedStream"
# By path: what is asked, what is answered, and whether it is a stream.
METHODS: dict[str, tuple[type[Message], type[Message], bool]] = {
    EMBED: (own.EmbedRequest, own.EmbedResponse, False),
    STREAM: (own.EmbedStreamRequest, own.EmbedStreamResponse, True),
    "/tei.v1.Info/Info": (tei.InfoRequest, tei.InfoResponse, False),
    TEI_EMBED: (tei.EmbedRequest, tei.EmbedResponse, False),
    TEI_STREAM: (tei.EmbedRequest, tei.EmbedResponse, True),
    "/tei.v1.Tokenize/Tokenize": (tei.EncodeRequest, tei.EncodeResponse, False),
    "/tei.v1.Tokenize/TokenizeStream": (tei.EncodeRequest, tei.EncodeResponse, True),
}


class Caller:
    """One connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def call(self, path: str, request: Message | bytes, **options: Any) -> Any:
        """Begin a unary call; `bytes` are sent as they are."""
        method: Any = self.channel.unary_unary(path, response_deserializer=METHODS[path][1].FromString)
        data: Any = request if isinstance(request, bytes) else request.SerializeToString()
        return method(data, **{"metadata": KEYED, **options})

    def stream(self, path: str, **options: Any) -> Any:
        """Begin a stream."""
        method: Any = self.channel.stream_stream(
            path,
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=METHODS[path][1].FromString,
        )
        return method(**{"metadata": KEYED, **options})


@asynccontextmanager
async def called(run_dir: Path, bundle: Bundle, **changes: Any) -> AsyncIterator[Caller]:
    """A server of this loop, until the block ends; `changes` are settings."""
    settings = msgspec.structs.replace(small_bounds(run_dir), grpc_port=free_port(), **changes)
    async with (
        serving(settings, bundle, KEY, "grpc-0"),
        grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
    ):
        yield Caller(channel)


def trailing(error: Any) -> dict[str, Any]:
    """The trailing metadata of a call or an error."""
    return dict(error.trailing_metadata())


def detail(error: Any, kind: type[M]) -> M:
    """The google.rpc detail of this kind, which must be there."""
    status = status_pb2.Status.FromString(trailing(error)["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found = kind()
    (packed,) = (each for each in status.details if each.Is(kind.DESCRIPTOR))
    packed.Unpack(found)
    return found


def field(error: Any) -> str:
    """The field that is said to be at fault."""
    (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
    assert violation.description == error.details()
    return str(violation.field)
