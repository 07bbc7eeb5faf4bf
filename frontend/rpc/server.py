"""All services on one screen, and the server from its first connection to its last."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry

from frontend.embed import Embedder
from frontend.keys import KEYS_FILE, KeyRing
from frontend.limits.embedded import EmbeddedWindows
from frontend.metrics import RequestMetrics, StateMetrics
from frontend.model import Model
from frontend.redis_link import RedisLink
from frontend.request_log import RequestLog
from frontend.rpc import embeddings, health, tei
from frontend.rpc.calls import Calls
from frontend.rpc.embeddings import Embeddings
from frontend.rpc.health import Health
from frontend.rpc.protos import embedlane_pb2, tei_pb2
from frontend.rpc.tei import Tei
from frontend.services import open_embedder
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.settings import Settings

Handlers: TypeAlias = "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"

STOP_GRACE_SECONDS: Final = 15
REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
# Each method's path, as `routes` has it too.
PATHS: Final = frozenset(
    f"/{service.full_name}/{method.name}"
    for file in (embedlane_pb2.DESCRIPTOR, tei_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
)
SERVICES: Final = (embeddings.NAME, tei.INFO, tei.EMBED, tei.TOKENIZE, health.NAME)


class Routes(grpc.GenericRpcHandler):
    """Path → handler. Were they registered in gRPC one by one, its loop would wait for each anew at every call."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """None is UNIMPLEMENTED."""
        return self._handlers.get(handler_call_details.method)


def options(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's own settings, by its names."""
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        # What texts and dimensions bound.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", 1024),
        # A client that is gone without a word is noticed, also behind a stream that rests; one that asks more often
        # than every ten seconds whether this server is there is sent away.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        # So that clients find processes and machines that came later. Calls under way, streams too, are let end.
        ("grpc.max_connection_age_ms", 1_800_000),
    ]


def routes(calls: Calls, embedder: Embedder) -> Handlers:
    """What needs a key, and is counted."""
    own, compatible = Embeddings(embedder), Tei(embedder)
    single = {
        f"/{embeddings.NAME}/Embed": (own.embed, embeddings.TEXTS),
        f"/{tei.INFO}/Info": (compatible.info, tei.FIELD),
        f"/{tei.EMBED}/Embed": (compatible.embed, tei.FIELD),
        f"/{tei.TOKENIZE}/Tokenize": (compatible.tokenize, tei.FIELD),
    }
    as_computed = {f"/{embeddings.NAME}/EmbedStream": (own.embed_one, embeddings.TEXT)}
    in_order = {
        f"/{tei.EMBED}/EmbedStream": (compatible.embed, tei.FIELD),
        f"/{tei.TOKENIZE}/TokenizeStream": (compatible.tokenize, tei.FIELD),
    }
    return {
        **{path: calls.unary(path, *each) for path, each in single.items()},
        **{path: calls.stream(path, *each, in_order=False) for path, each in as_computed.items()},
        **{path: calls.stream(path, *each, in_order=True) for path, each in in_order.items()},
    }


def open_routes(checks: Health) -> Handlers:
    """What needs none: health, and reflection under its name of today and the one that older clients know."""
    reader, writer = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    described = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer([*SERVICES, *REFLECTION]).ServerReflectionInfo,
        request_deserializer=reader.FromString,
        response_serializer=writer.SerializeToString,
    )
    asked, told = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
    return {
        f"/{health.NAME}/Check": grpc.unary_unary_rpc_method_handler(checks.check, asked, told),
        f"/{health.NAME}/Watch": grpc.unary_stream_rpc_method_handler(checks.watch, asked, told),
        **{f"/{name}/ServerReflectionInfo": described for name in REFLECTION},
    }


@asynccontextmanager
async def serving(settings: Settings, bundle: Bundle, key: str, process: str) -> AsyncIterator[None]:
    """Serve on the running loop until the block ends; what is under way then is answered first.

    `process` is its name in metrics, `key` is the server's own. Raises StartError.
    """
    async with AsyncExitStack() as ends:
        request_log = RequestLog()
        ends.callback(request_log.close)
        model = Model.load(bundle, settings)
        keys = KeyRing(key, settings.data_path / KEYS_FILE)
        link = RedisLink(settings.redis_url) if settings.redis_url else None
        windows = EmbeddedWindows(settings.run_path)
        embedder = await ends.enter_async_context(open_embedder(settings, model, None, windows, link))
        registry = CollectorRegistry()
        state = StateMetrics(registry, process, embedder, link)
        ends.callback(state.close)
        state.start()
        ends.callback(keys.close)
        keys.watch()
        calls, checks = Calls(keys, request_log, RequestMetrics(registry, PATHS)), Health(embedder, SERVICES)
        handlers = {**routes(calls, embedder), **open_routes(checks)}
        server = grpc.aio.server(handlers=[Routes(handlers)], options=options(settings))
        _bind(server, settings)
        await server.start()
        try:
            yield
        finally:
            checks.stop()
            calls.stop()
            await server.stop(STOP_GRACE_SECONDS)


async def serve(settings: Settings, bundle: Bundle, key: str, process: str) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with serving(settings, bundle, key, process):
        await told.wait()


def _bind(server: grpc.aio.Server, settings: Settings) -> None:
    address = f"{settings.host}:{settings.grpc_port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise StartError(
            f"{address} cannot be listened on: stop what uses it, or set EMBEDLANE_HOST or EMBEDLANE_GRPC_PORT."
        ) from None
