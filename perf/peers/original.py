"""The original project's two tiers, reconstructed from its description: its code is not at hand.

    uvicorn perf.peers.original:gateway --factory --workers 2
    uvicorn perf.peers.original:inference --factory

What the description leaves open is done in its favour: no metrics, no access log, tokenizers without a wrapper, uvloop.
Its known weak points are as described: a Redis client that blocks the gateway's loop, batches padded to their longest
text, one inference thread, hidden states copied to the host and pooled there by numpy. Runs in an environment of its
own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import numpy as np
import onnxruntime as ort
import redis
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, StringConstraints
from tokenizers import Tokenizer

MODEL = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
MAX_BATCH, MAX_WAIT_SECONDS, COLLECTORS = 32, 0.010, 4
# As described 60 a minute and 1,000 an hour; here so many that none is reached, counted all the same.
LIMITS = ((60, 10**9), (3600, 10**9))

log = logging.getLogger("original")


class EmbedRequest(BaseModel):
    """One text."""

    input_text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1024)]


class EmbedResponse(BaseModel):
    """Its vector."""

    embedding: list[float]
    model: str


class Limiter:
    """Sliding windows in Redis, asked for synchronously: the loop waits."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)

    def allow(self, key: str) -> bool:
        """Whether the key may send another request; counts it."""
        now = time.time()
        for seconds, limit in LIMITS:
            name = f"limit:{key}:{seconds}"
            with self._redis.pipeline() as pipeline:
                pipeline.zremrangebyscore(name, 0, now - seconds)
                pipeline.zcard(name)
                pipeline.zadd(name, {uuid.uuid4().hex: now})
                pipeline.expire(name, seconds)
                if pipeline.execute()[1] >= limit:
                    return False
        return True


class Batcher:
    """Two thresholds, items and time; several collectors, one inference thread."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(os.environ["PEER_TOKENIZER"])
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._session = ort.InferenceSession(os.environ["PEER_GRAPH"], providers=["CPUExecutionProvider"])
        self._queue: asyncio.Queue[tuple[str, asyncio.Future[list[float]]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._collectors = [asyncio.create_task(self._collect()) for _ in range(COLLECTORS)]

    async def embed(self, text: str) -> list[float]:
        """The vector of one text."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((text, future))
        return list(await future)

    def close(self) -> None:
        """End the collectors and the thread."""
        for task in self._collectors:
            task.cancel()
        self._thread.shutdown()

    async def _collect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            until = loop.time() + MAX_WAIT_SECONDS
            while len(batch) < MAX_BATCH and (left := until - loop.time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
                except TimeoutError:
                    break
            try:
                vectors = await loop.run_in_executor(self._thread, self._run, [text for text, _ in batch])
            except Exception as error:
                log.exception("inference failed")
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), vector in zip(batch, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)

    def _run(self, texts: list[str]) -> Any:
        encodings = self._tokenizer.encode_batch(texts)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        inputs = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        hidden = self._session.run(None, inputs)[0]
        weights = mask[:, :, None].astype(np.float32)
        vectors = (hidden * weights).sum(axis=1) / np.clip(weights.sum(axis=1), 1e-9, None)
        return (vectors / np.clip(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12, None)).tolist()


def inference() -> FastAPI:
    """The inner tier."""
    _log_json()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher()
        yield
        app.state.batcher.close()

    async def embed(body: EmbedRequest, request: Request) -> EmbedResponse:
        began = time.perf_counter()
        vector = await request.app.state.batcher.embed(body.input_text)
        _note(request.headers.get("X-Correlation-ID", ""), began)
        return EmbedResponse(embedding=vector, model=MODEL)

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/embed", embed, methods=["POST"], response_model=EmbedResponse)
    return app


def gateway() -> FastAPI:
    """The public tier: key, limits, one request to the inner tier for each."""
    _log_json()
    key = os.environ["PEER_KEY"]
    limiter = Limiter(os.environ["PEER_REDIS"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=os.environ["PEER_INFERENCE"], timeout=30.0) as client:
            app.state.client = client
            yield

    async def embed(body: EmbedRequest, request: Request) -> EmbedResponse:
        began = time.perf_counter()
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != key:
            raise HTTPException(401)
        if not limiter.allow(given):
            raise HTTPException(429)
        correlation = request.headers.get("X-Correlation-ID") or str(uuid.uuid4())
        answer = await request.app.state.client.post(
            "/embed", json={"input_text": body.input_text}, headers={"X-Correlation-ID": correlation}
        )
        answer.raise_for_status()
        _note(correlation, began)
        return EmbedResponse(**answer.json())

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/v1/embed", embed, methods=["POST"], response_model=EmbedResponse)
    return app


def _log_json() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A line from the client for each request would be a second one.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _note(correlation: str, began: float) -> None:
    log.info(json.dumps({"correlation_id": correlation, "ms": round((time.perf_counter() - began) * 1e3, 2)}))
