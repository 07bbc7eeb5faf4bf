"""embedlane.v1: several texts in one call, or a stream of texts answered as they are computed."""

from __future__ import annotations

from frontend.embed import Embedder
from frontend.rpc.calls import Rpc
from frontend.rpc.messages import Options, dimensions, parse, with_vectors
from frontend.rpc.protos import embedlane_pb2 as proto
from frontend.rpc.status import field_of, number_of, retry_ms
from ipc.errors import RequestError

NAME = "embedlane.v1.Embeddings"
TEXTS, TEXT = "texts", "text"


class Embeddings:
    """The service."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def embed(self, rpc: Rpc, data: bytes) -> bytes:
        """EmbedRequest → EmbedResponse. Raises a RequestError."""
        request = parse(proto.EmbedRequest, data)
        options = Options.of(request)
        done = await self._embedder.embed(
            rpc,
            list(request.texts),
            None,
            field=TEXTS,
            truncate=options.truncate,
            side=options.side,
            prompt_name=options.prompt_name,
            normalize=options.normalize,
            dimensions=options.dimensions,
        )
        answer = proto.EmbedResponse(
            dimensions=dimensions(done.call),
            model=done.model.bundle.id,
            tokens=done.tokens,
            truncated_texts=done.truncated,
            total_ns=done.total_ns,
            tokenize_ns=done.tokenize_ns,
            queue_ns=done.call.wait_ns,
            inference_ns=done.call.compute_ns,
            cached=None if done.cache is None else done.cache == "hit",
        )
        return with_vectors(answer, proto.EmbedResponse.EMBEDDINGS_FIELD_NUMBER, done.call)

    async def embed_one(self, rpc: Rpc, data: bytes) -> bytes:
        """EmbedStreamRequest → EmbedStreamResponse, which tells an error of this text alone."""
        request = parse(proto.EmbedStreamRequest, data)
        try:
            options = Options.of(request)
            done = await self._embedder.embed(
                rpc,
                [request.text],
                None,
                field=TEXT,
                truncate=options.truncate,
                side=options.side,
                prompt_name=options.prompt_name,
                normalize=options.normalize,
                dimensions=options.dimensions,
            )
        except RequestError as error:
            rpc.failed(error)
            return proto.EmbedStreamResponse(id=request.id, error=_told(error)).SerializeToString()
        answer = proto.EmbedStreamResponse(
            id=request.id, tokens=done.tokens, truncated=bool(done.truncated), model=done.model.bundle.id
        )
        return with_vectors(answer, proto.EmbedStreamResponse.EMBEDDING_FIELD_NUMBER, done.call)


def _told(error: RequestError) -> proto.Error:
    return proto.Error(
        code=number_of(error),
        message=error.message,
        reason=error.code,
        field=field_of(error, TEXT),
        retry_after_ms=retry_ms(error),
    )
