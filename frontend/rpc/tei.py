"""tei.v1: what text-embeddings-inference's clients ask for, one text a message."""

from __future__ import annotations

from frontend.dialects.tei import DTYPES
from frontend.embed import Embedder
from frontend.rpc.calls import Rpc
from frontend.rpc.messages import Options, parse, with_vectors
from frontend.rpc.protos import tei_pb2 as proto
from frontend.tokenizer import Token

INFO, EMBED, TOKENIZE = "tei.v1.Info", "tei.v1.Embed", "tei.v1.Tokenize"
FIELD = "inputs"
# The one thread of `frontend.tokenizer`.
TOKENIZATION_WORKERS = 1


class Tei:
    """The services Info, Embed and Tokenize."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def info(self, rpc: Rpc, data: bytes) -> bytes:
        """InfoRequest → InfoResponse, as `/info`; what does not apply here is left out."""
        embedder = self._embedder
        bundle, settings, engine = embedder.model.bundle, embedder.settings, embedder.client.engine
        return proto.InfoResponse(
            model_id=bundle.id,
            model_sha=bundle.revision,
            model_dtype=DTYPES.get(engine.precision, engine.precision) if engine else None,
            model_type=proto.MODEL_TYPE_EMBEDDING,
            max_concurrent_requests=settings.queue_items // 2,
            max_input_length=bundle.max_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_requests=settings.max_batch_rows,
            max_client_batch_size=settings.max_inputs,
            tokenization_workers=TOKENIZATION_WORKERS,
        ).SerializeToString()

    async def embed(self, rpc: Rpc, data: bytes) -> bytes:
        """EmbedRequest → EmbedResponse. Raises a RequestError."""
        request = parse(proto.EmbedRequest, data)
        options = Options.of(request)
        done = await self._embedder.embed(
            rpc,
            [request.inputs],
            None,
            field=FIELD,
            truncate=options.truncate,
            side=options.side,
            prompt_name=options.prompt_name,
            # TEI's default is true.
            normalize=options.normalize is not False,
            dimensions=options.dimensions,
        )
        metadata = proto.Metadata(
            compute_chars=len(request.inputs),
            compute_tokens=done.tokens,
            total_time_ns=done.total_ns,
            tokenization_time_ns=done.tokenize_ns,
            queue_time_ns=done.call.wait_ns,
            inference_time_ns=done.call.compute_ns,
        )
        answer = proto.EmbedResponse(metadata=metadata)
        return with_vectors(answer, proto.EmbedResponse.EMBEDDINGS_FIELD_NUMBER, done.call)

    async def tokenize(self, rpc: Rpc, data: bytes) -> bytes:
        """EncodeRequest → EncodeResponse, as `/tokenize`. Raises a RequestError."""
        request = parse(proto.EncodeRequest, data)
        (tokens,) = await self._embedder.split(
            rpc,
            [request.inputs],
            _encoded,
            special=request.add_special_tokens,
            prompt_name=request.prompt_name if request.HasField("prompt_name") else None,
        )
        return tokens


def _encoded(tokens: list[Token]) -> bytes:
    simple = (
        proto.SimpleToken(id=each.id, text=each.text, special=each.special, start=each.start, stop=each.stop)
        for each in tokens
    )
    return proto.EncodeResponse(tokens=simple).SerializeToString()
