"""grpc.health.v1: whether an embedding went through lately, as `/ready` has it, for the server and each service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container

import grpc
from grpc_health.v1 import health_pb2 as proto

from frontend.embed import Embedder
from frontend.health import LATELY_NS, why_not_ready

Context = grpc.aio.ServicerContext[proto.HealthCheckRequest, proto.HealthCheckResponse]

NAME = "grpc.health.v1.Health"
# The service without a name is the server.
SERVER = ""
WATCH_SECONDS = LATELY_NS / 1e9


class Health:
    """The service. All who ask at once share one embedding."""

    def __init__(self, embedder: Embedder, services: Container[str]) -> None:
        self._embedder = embedder
        self._services = services
        self._asking = asyncio.Lock()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Tell everybody that this server serves no longer, and end all watches."""
        self._stopping.set()

    async def check(self, request: proto.HealthCheckRequest, context: Context) -> proto.HealthCheckResponse:
        """One answer; NOT_FOUND for a service that is none of ours."""
        if not self._is_known(request.service):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"There is no service {request.service[:200]!r}.")
        return proto.HealthCheckResponse(status=await self._status())

    async def watch(
        self, request: proto.HealthCheckRequest, context: Context
    ) -> AsyncIterator[proto.HealthCheckResponse]:
        """An answer at once, and another whenever it is no longer the same."""
        last = None
        while True:
            is_over = self._stopping.is_set()
            status = (
                await self._status() if self._is_known(request.service) else proto.HealthCheckResponse.SERVICE_UNKNOWN
            )
            if status != last:
                last = status
                yield proto.HealthCheckResponse(status=status)
            if is_over:
                return
            await self._pause()

    def _is_known(self, service: str) -> bool:
        return service == SERVER or service in self._services

    async def _status(self) -> proto.HealthCheckResponse.ServingStatus:
        if self._stopping.is_set():
            return proto.HealthCheckResponse.NOT_SERVING
        async with self._asking:
            reason = await why_not_ready(self._embedder)
        return proto.HealthCheckResponse.SERVING if reason is None else proto.HealthCheckResponse.NOT_SERVING

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)
        except TimeoutError:
            return
