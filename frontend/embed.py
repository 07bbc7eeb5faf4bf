"""The core every dialect stands on: texts → tokens → engine → encoded vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import ClientDisconnect

from frontend.admission import Admission
from frontend.cache import CachedEngine
from frontend.client import EngineClient
from frontend.flight import Call, Take
from frontend.limits.quota import Quota
from frontend.protocol import CONNECTION_LOST
from frontend.request import Request
from frontend.request_log import FACTS, Facts
from frontend.responses import raw_vector, sliced, unit_length
from frontend.token_ids import REFUSAL, Decoder, IdLists, accept, decode
from frontend.tokenizer import Side, Token, Tokenizer, Tokens
from ipc.bundle import Bundle
from ipc.errors import InvalidRequest
from ipc.messages import Priority
from ipc.settings import Settings

PRIORITIES = {"interactive": Priority.INTERACTIVE, "bulk": Priority.BULK}


@dataclass(frozen=True, slots=True)
class Embedded:
    """One encoded vector a text, in order; tokens counted after truncation; times in ns.

    `cache` is "hit" where every vector came from a cache, "miss" where one did not, None where there is no cache.
    """

    call: Call
    tokens: int
    truncated: int
    total_ns: int
    tokenize_ns: int
    deadline: int
    cache: str | None

    @property
    def parts(self) -> list[bytes]:
        """The encoded vectors."""
        return self.call.parts

    def headers(self) -> dict[str, str]:
        """text-embeddings-inference's headers (milliseconds), which suit the other dialects as well."""
        headers = {
            "x-compute-tokens": str(self.tokens),
            "x-total-time": f"{self.total_ns / 1e6:.3f}",
            "x-tokenization-time": f"{self.tokenize_ns / 1e6:.3f}",
            "x-queue-time": f"{self.call.wait_ns / 1e6:.3f}",
            "x-inference-time": f"{self.call.compute_ns / 1e6:.3f}",
        }
        if self.cache is not None:
            headers["x-cache"] = self.cache
        if self.truncated:
            headers["x-truncated-texts"] = str(self.truncated)
        return headers


class Terms(NamedTuple):
    """What a request's headers ask for and what limits its key has; times are CLOCK_MONOTONIC in ns."""

    began: int
    deadline: int
    priority: Priority
    quota: Quota | None


class Embedder:
    """Bounds, limits, tokenizer, cache and engine behind one call. `cl100k` is there if `token_input` asks for it."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        tokenizer: Tokenizer,
        client: EngineClient,
        admission: Admission,
        cache: CachedEngine | None = None,
        cl100k: Decoder | None = None,
    ) -> None:
        self.settings = settings
        self.bundle = bundle
        self.client = client
        self.admission = admission
        self.cache = cache
        self._engine = cache or client
        self._tokenizer = tokenizer
        self._cl100k = cl100k

    async def embed(
        self,
        request: Request,
        texts: Sequence[str],
        take: Take | None,
        *,
        field: str,
        truncate: bool,
        side: Side = "right",
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Embedded:
        """Embed texts and encode each vector with `take`. `field` is what the dialect calls the texts.

        `normalize` scales to length 1 or not; None leaves that to the model. Raises a RequestError, or
        ClientDisconnect once nobody waits for the answer.
        """
        terms = self._terms(request)
        take = self._shape(take, normalize, dimensions)
        texts = self._prompted(texts, field, prompt_name)
        tokens = await self._tokenizer.encode(texts, truncate=truncate, side=side)
        return await self._submit(request, terms, tokens, take)

    async def embed_ids(
        self,
        request: Request,
        lists: IdLists,
        take: Take | None,
        *,
        truncate: bool,
        prompt_name: str | None = None,
        dimensions: int | None = None,
    ) -> Embedded:
        """Embed token ids as the setting `token_input` says. Raises as `embed` does."""
        match self.settings.token_input:
            case "reject":
                raise InvalidRequest(REFUSAL, param="input")
            case "model":
                return await self._embed_own_ids(request, lists, take, prompt_name, dimensions)
            case "cl100k":
                assert self._cl100k is not None, "the start loads it"
                self._check_count(lists, "input")
                texts = await self._tokenizer.off_loop(sum(map(len, lists)), decode, self._cl100k, lists)
                return await self.embed(
                    request,
                    texts,
                    take,
                    field="input",
                    truncate=truncate,
                    prompt_name=prompt_name,
                    dimensions=dimensions,
                )

    async def _embed_own_ids(
        self, request: Request, lists: IdLists, take: Take | None, prompt_name: str | None, dimensions: int | None
    ) -> Embedded:
        self._check_count(lists, "input")
        if prompt_name is not None and self._prompt(prompt_name):
            raise InvalidRequest("No prompt can be put before token ids: send text.", param="prompt_name")
        terms = self._terms(request)
        take = self._shape(take, None, dimensions)
        bounds = self.bundle.vocab_size, self.bundle.max_tokens
        ids = await self._tokenizer.off_loop(sum(map(len, lists)), accept, lists, *bounds)
        return await self._submit(request, terms, Tokens(ids, 0), take)

    async def split(
        self,
        request: Request,
        texts: Sequence[str],
        take: Callable[[list[Token]], bytes],
        *,
        special: bool,
        prompt_name: str | None,
    ) -> list[bytes]:
        """What `take` makes of the tokens of each text, under the same bounds and limits. Raises a RequestError."""
        quota = self.admission.check(request.scope)
        texts = self._prompted(texts, "inputs", prompt_name)
        if quota is not None:
            await self.admission.charge(request.scope, quota, 0)
        return await self._tokenizer.split(texts, take, special=special)

    async def _submit(self, request: Request, terms: Terms, tokens: Tokens, take: Take | None) -> Embedded:
        tokenized = time.monotonic_ns()
        total = tokens.total
        if terms.quota is not None:
            await self.admission.charge(request.scope, terms.quota, total)
        facts: Facts = request.scope[FACTS]
        # Before the engine is asked: the line of a request that fails tells what it was charged for.
        facts.texts, facts.tokens, facts.tokenize_ns = len(tokens.texts), total, tokenized - terms.began
        lost = _connection_lost(request)
        try:
            call = await self._engine.embed(
                tokens.texts, take, deadline_ns=terms.deadline, priority=terms.priority, lost=lost
            )
        except asyncio.CancelledError:
            if lost is not None and lost.done():
                raise ClientDisconnect from None
            raise
        facts.wait_ns, facts.compute_ns = call.wait_ns, call.compute_ns
        if self.cache is not None:
            facts.cache = "hit" if call.hits == len(tokens.texts) else "miss"
        return Embedded(
            call=call,
            tokens=total,
            truncated=tokens.truncated,
            total_ns=time.monotonic_ns() - terms.began,
            tokenize_ns=tokenized - terms.began,
            deadline=terms.deadline,
            cache=facts.cache,
        )

    async def probe(self, timeout_s: float) -> None:
        """Send one short text all the way. Raises a RequestError where no vector comes back in time."""
        tokens = await self._tokenizer.encode(["ready?"], truncate=True)
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        await self.client.embed(tokens.texts, bytes, deadline_ns=deadline, priority=Priority.INTERACTIVE)

    def _prompted(self, texts: Sequence[str], field: str, prompt_name: str | None) -> Sequence[str]:
        """The texts with their prompt, if any, once they are seen to be within bounds."""
        self._check_count(texts, field)
        if "" in texts:
            raise InvalidRequest(f"Text {texts.index('')} of `{field}` is empty.", param=field)
        prompt = self._prompt(prompt_name)
        return [prompt + text for text in texts] if prompt else texts

    def _prompt(self, name: str | None) -> str:
        prompts = self.bundle.prompts
        if name is None:
            name = self.bundle.default_prompt_name
        if name is None:
            return ""
        if name not in prompts:
            there = f"choose one of: {', '.join(sorted(prompts))}" if prompts else "leave it out, the model has none"
            raise InvalidRequest(f"`prompt_name` is no prompt of the model: {there}.", param="prompt_name")
        return prompts[name]

    def _check_count(self, texts: Sequence[object], field: str) -> None:
        if not texts:
            raise InvalidRequest(f"`{field}` is empty: send at least one text.", param=field)
        if len(texts) > self.settings.max_inputs:
            raise InvalidRequest(
                f"`{field}` has {len(texts)} texts, the most is {self.settings.max_inputs}: send several requests.",
                param=field,
            )

    def _shape(self, take: Take | None, normalize: bool | None, dimensions: int | None) -> Take | None:
        """`take` for the asked part and length of each vector. `dimensions` alone means a part of length 1.

        None is for the rows as they are in the slab; where another shape is asked for, the part is its bytes.
        """
        if normalize is False and self.bundle.normalize:
            raise InvalidRequest(
                "`normalize` must be true or left out: the model itself scales its vectors to length 1, and what they "
                "were before cannot be had.",
                param="normalize",
            )
        if dimensions is not None:
            if dimensions > self.bundle.dim:
                raise InvalidRequest(
                    f"`dimensions` is {dimensions}, the model has {self.bundle.dim}: ask for at most that many.",
                    param="dimensions",
                )
            return sliced(take or raw_vector, dimensions, normalize=normalize is not False)
        return unit_length(take or raw_vector) if normalize and not self.bundle.normalize else take

    def _terms(self, request: Request) -> Terms:
        began = time.monotonic_ns()
        quota = self.admission.check(request.scope)
        return Terms(began, began + self._timeout_ns(request), _priority(request), quota)

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
