"""The core every dialect stands on: texts → tokens → engine → encoded vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from frontend.client import EngineClient
from frontend.flight import Take
from frontend.protocol import CONNECTION_LOST
from frontend.request_log import FACTS, Facts
from frontend.responses import sliced
from frontend.tokenizer import Tokenizer
from ipc.bundle import Bundle
from ipc.errors import InvalidRequest
from ipc.messages import Priority
from ipc.settings import Settings

PRIORITIES = {"interactive": Priority.INTERACTIVE, "bulk": Priority.BULK}


@dataclass(frozen=True, slots=True)
class Embedded:
    """One encoded vector a text, in order; tokens counted after truncation; times in ns."""

    parts: list[bytes]
    tokens: int
    truncated: int
    total_ns: int
    tokenize_ns: int
    wait_ns: int
    compute_ns: int

    def headers(self) -> dict[str, str]:
        """text-embeddings-inference's headers (milliseconds), which suit the other dialects as well."""
        headers = {
            "x-compute-tokens": str(self.tokens),
            "x-total-time": f"{self.total_ns / 1e6:.3f}",
            "x-tokenization-time": f"{self.tokenize_ns / 1e6:.3f}",
            "x-queue-time": f"{self.wait_ns / 1e6:.3f}",
            "x-inference-time": f"{self.compute_ns / 1e6:.3f}",
        }
        if self.truncated:
            headers["x-truncated-texts"] = str(self.truncated)
        return headers


class Embedder:
    """Bounds, tokenizer and engine behind one call."""

    def __init__(self, settings: Settings, bundle: Bundle, tokenizer: Tokenizer, client: EngineClient) -> None:
        self.settings = settings
        self.bundle = bundle
        self.client = client
        self._tokenizer = tokenizer

    async def embed(
        self,
        request: Request,
        texts: Sequence[str],
        take: Take,
        *,
        field: str,
        truncate: bool,
        dimensions: int | None = None,
    ) -> Embedded:
        """Embed texts and encode each vector with `take`. `field` is what the dialect calls the texts.

        Raises a RequestError, or ClientDisconnect once nobody waits for the answer.
        """
        began = time.monotonic_ns()
        deadline = began + self._timeout_ns(request)
        priority = _priority(request)
        self._check(texts, field)
        if dimensions is not None:
            take = self._slice(take, dimensions)
        tokens = await self._tokenizer.encode(texts, truncate=truncate)
        tokenized = time.monotonic_ns()
        lost = _connection_lost(request)
        try:
            call = await self.client.embed(tokens.texts, take, deadline_ns=deadline, priority=priority, lost=lost)
        except asyncio.CancelledError:
            if lost is not None and lost.done():
                raise ClientDisconnect from None
            raise
        facts: Facts = request.scope[FACTS]
        facts.texts, facts.tokens = len(texts), tokens.total
        facts.wait_ns, facts.compute_ns = call.wait_ns, call.compute_ns
        return Embedded(
            parts=call.parts,
            tokens=tokens.total,
            truncated=tokens.truncated,
            total_ns=time.monotonic_ns() - began,
            tokenize_ns=tokenized - began,
            wait_ns=call.wait_ns,
            compute_ns=call.compute_ns,
        )

    async def probe(self, timeout_s: float) -> None:
        """Send one short text all the way. Raises a RequestError where no vector comes back in time."""
        tokens = await self._tokenizer.encode(["ready?"], truncate=True)
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        await self.client.embed(tokens.texts, bytes, deadline_ns=deadline, priority=Priority.INTERACTIVE)

    def _check(self, texts: Sequence[str], field: str) -> None:
        if not texts:
            raise InvalidRequest(f"`{field}` is empty: send at least one text.", param=field)
        if len(texts) > self.settings.max_inputs:
            raise InvalidRequest(
                f"`{field}` has {len(texts)} texts, the most is {self.settings.max_inputs}: send several requests.",
                param=field,
            )
        if "" in texts:
            raise InvalidRequest(f"Text {texts.index('')} of `{field}` is empty.", param=field)

    def _slice(self, take: Take, dimensions: int) -> Take:
        if dimensions > self.bundle.dim:
            raise InvalidRequest(
                f"`dimensions` is {dimensions}, the model has {self.bundle.dim}: ask for at most that many.",
                param="dimensions",
            )
        return sliced(take, dimensions)

    def _timeout_ns(self, request: Request) -> int:
        most = self.settings.request_timeout_ms
        given = request.headers.get("x-request-timeout-ms")
        if given is None:
            return most * 1_000_000
        if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given)):
            raise InvalidRequest("X-Request-Timeout-Ms must be a whole number of milliseconds, 1 or more.")
        return min(int(given), most) * 1_000_000


def _connection_lost(request: Request) -> asyncio.Future[None] | None:
    """Done once the client has hung up; None where the server is not `frontend.protocol.Protocol`."""
    found: asyncio.Future[None] | None = request.scope.get("extensions", {}).get(CONNECTION_LOST, {}).get("future")
    return found


def _priority(request: Request) -> Priority:
    given = request.headers.get("x-priority", "interactive")
    priority = PRIORITIES.get(given.lower())
    if priority is None:
        raise InvalidRequest("X-Priority must be `interactive` or `bulk`.")
    return priority
