"""The core every dialect stands on: texts → tokens → engine → encoded vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import ClientDisconnect

from frontend import outcomes
from frontend.admission import Admission
from frontend.auth import SCOPE_KEY
from frontend.cache import CachedEngine
from frontend.client import EngineClient
from frontend.flight import Call, Take
from frontend.keys import Key
from frontend.limits.quota import Quota
from frontend.model import Model, PromptName
from frontend.protocol import CONNECTION_LOST
from frontend.request import Request
from frontend.request_log import FACTS, Facts
from frontend.token_ids import REFUSAL, Decoder, IdLists, accept, decode
from frontend.tokenizer import Side, Token, Tokens
from frontend.wishes import read_wishes
from ipc.errors import InvalidRequest, ModelChanged
from ipc.messages import Welcome
from ipc.priority import Priority
from ipc.settings import Settings


@dataclass(frozen=True, slots=True)
class Embedded:
    """One encoded vector a text, in order; tokens counted after truncation; times in ns.

    `cache` is "hit" where every vector came from a cache, "miss" where one did not, None where there is no cache.
    """

    model: Model
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
        """text-embeddings-inference's headers (milliseconds), and which model it was."""
        headers = {
            "x-compute-tokens": str(self.tokens),
            "x-total-time": f"{self.total_ns / 1e6:.3f}",
            "x-tokenization-time": f"{self.tokenize_ns / 1e6:.3f}",
            "x-queue-time": f"{self.call.wait_ns / 1e6:.3f}",
            "x-inference-time": f"{self.call.compute_ns / 1e6:.3f}",
            "x-model": self.model.header,
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
    flow: int
    quota: Quota | None


class Embedder:
    """Bounds, limits, tokenizer, cache and engine behind one call. `cl100k` is there if `token_input` asks for it."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        client: EngineClient,
        admission: Admission,
        cache: CachedEngine | None = None,
        cl100k: Decoder | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.client = client
        self.admission = admission
        self.cache = cache
        self._engine = cache or client
        self._cl100k = cl100k

    def close(self) -> None:
        """Tokenize nothing more."""
        self.model.tokenizer.close()

    async def adopt(self, engine: Welcome) -> None:
        """Read texts for this engine's model from now on. Raises StartError where it cannot be loaded."""
        self.model = await asyncio.to_thread(Model.of_engine, engine, self.settings)
        if self.cache is not None:
            self.cache.change_model(self.model.origin, self.model.bundle.dim)

    async def embed(
        self,
        request: Request,
        texts: Sequence[str],
        take: Take | None,
        *,
        field: str,
        truncate: bool,
        side: Side = "right",
        prompt_name: PromptName = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Embedded:
        """Embed texts and encode each vector with `take`. `field` is what the dialect calls the texts.

        `normalize` scales to length 1 or not; None leaves that to the model. Raises a RequestError, or
        ClientDisconnect once nobody waits for the answer. Texts under way when the model changes are read again for
        the next one: an answer is of one model, and charged once.
        """
        terms = self._terms(request)
        self._check_texts(texts, field)
        while True:
            model = self.model
            shaped = model.shape(take, normalize, dimensions)
            prompt = model.prompt(prompt_name)
            tokens = await model.tokenizer.encode(
                [prompt + text for text in texts] if prompt else texts, truncate=truncate, side=side
            )
            try:
                return await self._submit(request, terms, model, tokens, shaped)
            except ModelChanged:
                continue

    async def embed_ids(
        self,
        request: Request,
        lists: IdLists,
        take: Take | None,
        *,
        truncate: bool,
        prompt_name: PromptName = None,
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
                texts = await self.model.tokenizer.off_loop(sum(map(len, lists)), decode, self._cl100k, lists)
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
        self, request: Request, lists: IdLists, take: Take | None, prompt_name: PromptName, dimensions: int | None
    ) -> Embedded:
        self._check_count(lists, "input")
        model = self.model
        if prompt_name is not None and model.prompt(prompt_name):
            raise InvalidRequest("No prompt can be put before token ids: send text.", param="prompt_name")
        terms = self._terms(request)
        take = model.shape(take, None, dimensions)
        bounds = model.bundle.vocab_size, model.bundle.max_tokens
        ids = await model.tokenizer.off_loop(sum(map(len, lists)), accept, lists, *bounds)
        return await self._submit(request, terms, model, Tokens(ids, 0), take)

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
        self._check_texts(texts, "inputs")
        model = self.model
        prompt = model.prompt(prompt_name)
        if quota is not None:
            await self.admission.charge(request.scope, quota, 0)
        return await model.tokenizer.split([prompt + text for text in texts], take, special=special)

    async def _submit(
        self, request: Request, terms: Terms, model: Model, tokens: Tokens, take: Take | None
    ) -> Embedded:
        """Raises ModelChanged where the model is another one before the last vector has come."""
        tokenized = time.monotonic_ns()
        total = tokens.total
        facts: Facts = request.scope[FACTS]
        if terms.quota is not None and not facts.texts:
            # What the gate refuses costs nothing, and others may have come while the texts were read.
            self.client.gate.check(terms.priority, terms.flow, terms.deadline)
            await self.admission.charge(request.scope, terms.quota, total)
        # Before the engine is asked: the line of a request that fails tells what it was charged for.
        facts.texts, facts.tokens, facts.tokenize_ns = len(tokens.texts), total, tokenized - terms.began
        facts.tokenized_ns = tokenized
        if self.model is not model:
            raise outcomes.model_changed()
        lost = _connection_lost(request)
        try:
            call = await self._engine.embed(
                tokens.texts,
                take,
                deadline_ns=terms.deadline,
                priority=terms.priority,
                flow=terms.flow,
                lost=lost,
            )
        except asyncio.CancelledError:
            if lost is not None and lost.done():
                raise ClientDisconnect from None
            raise
        facts.wait_ns, facts.compute_ns, facts.computed_ns = call.wait_ns, call.compute_ns, time.monotonic_ns()
        if self.cache is not None:
            facts.cache = "hit" if call.hits == len(tokens.texts) else "miss"
        return Embedded(
            model=model,
            call=call,
            tokens=total,
            truncated=tokens.truncated,
            total_ns=facts.computed_ns - terms.began,
            tokenize_ns=tokenized - terms.began,
            deadline=terms.deadline,
            cache=facts.cache,
        )

    async def probe(self, timeout_s: float) -> None:
        """Send one short text all the way. Raises a RequestError where no vector comes back in time."""
        tokens = await self.model.tokenizer.encode(["ready?"], truncate=True)
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        await self.client.embed(tokens.texts, bytes, deadline_ns=deadline, priority=Priority.INTERACTIVE)

    def _check_texts(self, texts: Sequence[str], field: str) -> None:
        self._check_count(texts, field)
        if "" in texts:
            raise InvalidRequest(f"Text {texts.index('')} of `{field}` is empty.", param=field)

    def _check_count(self, texts: Sequence[object], field: str) -> None:
        if not texts:
            raise InvalidRequest(f"`{field}` is empty: send at least one text.", param=field)
        if len(texts) > self.settings.max_inputs:
            raise InvalidRequest(
                f"`{field}` has {len(texts)} texts, the most is {self.settings.max_inputs}: send several requests.",
                param=field,
            )

    def _terms(self, request: Request) -> Terms:
        began = time.monotonic_ns()
        quota = self.admission.check(request.scope)
        key: Key = request.scope[SCOPE_KEY]
        wishes = read_wishes(request.headers, self.settings.request_timeout_ms)
        terms = Terms(began, began + wishes.timeout_ms * 1_000_000, wishes.priority, key.flow, quota)
        self.client.gate.check(terms.priority, terms.flow, terms.deadline)
        return terms


def _connection_lost(request: Request) -> asyncio.Future[None] | None:
    """Done once the client has hung up; None where the server is not `frontend.protocol.Protocol`."""
    found: asyncio.Future[None] | None = request.scope.get("extensions", {}).get(CONNECTION_LOST, {}).get("future")
    return found
