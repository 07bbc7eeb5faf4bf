"""text-embeddings-inference: `POST /embed`, `/similarity`, `/tokenize` and `/`, `GET /info`."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import numpy as np
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from frontend.body import Dimensions, PromptName, Text, Texts, Truncate, read_json
from frontend.embed import Embedder
from frontend.raw import raw_media, raw_response
from frontend.responses import STATUS, json_response, json_vector
from frontend.tokenizer import Side
from ipc.errors import InvalidRequest, RequestError

__all__ = ["STATUS", "embed", "error_body", "info", "root", "similarity", "tokenize"]

# TEI's own names for the kinds of error, by status.
ERROR_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
DTYPES = {"fp32": "float32", "fp16": "float16"}
SIDE_PATTERN: Final = "^([Ll][Ee][Ff][Tt]|[Rr][Ii][Gg][Hh][Tt])$"
SIDES: Final[dict[str, Side]] = {"left": "left", "right": "right"}

# Keeps a vector of zeros what it is; any other is far longer.
SHORTEST = 1e-30

Inputs = Annotated[Text | Texts, Meta(description="One text, or several.")]


class Truncation(msgspec.Struct):
    """What `/embed` has at its root and `/similarity` among its `parameters`. Fields that are not here are ignored."""

    truncate: Truncate = None
    truncation_direction: Annotated[
        Annotated[str, Meta(extra_json_schema={"pattern": SIDE_PATTERN})] | None,
        Meta(description="Where a text that is cut loses tokens: `right` unless given, or `left`; in either case."),
    ] = None
    prompt_name: PromptName = None

    def side(self) -> Side:
        """Where a text that is too long loses tokens. Raises InvalidRequest."""
        if self.truncation_direction is None:
            return "right"
        side = SIDES.get(self.truncation_direction.lower())
        if side is None:
            raise InvalidRequest("`truncation_direction` must be `left` or `right`.", param="truncation_direction")
        return side


Parameters = Annotated[Truncation | None, Meta(description="How texts that are too long are treated.")]


class Comparison(msgspec.Struct):
    """What a text is compared with."""

    source_sentence: Annotated[Text, Meta(description="The text to compare.")]
    sentences: Annotated[Texts, Meta(description="The texts that it is compared with.")]


class SimilarityBody(msgspec.Struct):
    """The body of `/similarity`."""

    inputs: Annotated[Comparison, Meta(description="What is compared.")]
    parameters: Parameters = None


class EmbedBody(Truncation, kw_only=True):
    """The body of `/embed`."""

    inputs: Inputs
    normalize: Annotated[
        bool | None, Meta(description="Scale vectors to length 1, which some models do in any case; true unless given.")
    ] = None
    dimensions: Dimensions = None


class RootBody(EmbedBody, kw_only=True):
    """The body of `/`: what `/embed` or what `/similarity` takes."""

    inputs: str | list[str] | Comparison  # type: ignore[assignment]  # wider than in `/embed`
    parameters: Parameters = None


class TokenizeBody(msgspec.Struct):
    """The body of `/tokenize`."""

    inputs: Inputs
    add_special_tokens: Annotated[
        bool | None, Meta(description="With the tokens that the model puts around a text; true unless given.")
    ] = None
    prompt_name: PromptName = None


_embed_decoder = msgspec.json.Decoder(EmbedBody)
_similarity_decoder = msgspec.json.Decoder(SimilarityBody)
_root_decoder = msgspec.json.Decoder(RootBody)
_tokenize_decoder = msgspec.json.Decoder(TokenizeBody)


async def embed(request: Request) -> Response:
    """`POST /embed`: a bare list of vectors."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _embed_decoder, embedder.settings.max_body_bytes)
    return await _embed(request, embedder, body, _as_list(body.inputs))


async def similarity(request: Request) -> Response:
    """`POST /similarity`: the cosine of a sentence with each of others."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _similarity_decoder, embedder.settings.max_body_bytes)
    return await _compare(request, embedder, body.inputs, body.parameters)


async def root(request: Request) -> Response:
    """`POST /`: `/similarity` where `inputs` is an object, else `/embed`. Hugging Face's client posts here."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _root_decoder, embedder.settings.max_body_bytes)
    if isinstance(body.inputs, Comparison):
        return await _compare(request, embedder, body.inputs, body.parameters)
    return await _embed(request, embedder, body, _as_list(body.inputs))


async def tokenize(request: Request) -> Response:
    """`POST /tokenize`: each text's tokens; `start` and `stop` count bytes of the text with its prompt."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _tokenize_decoder, embedder.settings.max_body_bytes)
    parts = await embedder.split(
        request,
        _as_list(body.inputs),
        msgspec.json.encode,
        special=body.add_special_tokens is not False,
        prompt_name=body.prompt_name,
    )
    return json_response(b"[%b]" % b",".join(parts))


async def info(request: Request) -> Response:
    """`GET /info`: the model and the limits, by TEI's names; `dimensions` and `prompts` are extensions."""
    embedder: Embedder = request.app.state.embedder
    bundle, settings, engine = embedder.model.bundle, embedder.settings, embedder.client.engine
    return json_response(
        orjson.dumps(
            {
                "model_id": bundle.id,
                "model_sha": bundle.revision,
                "model_dtype": DTYPES.get(engine.precision, engine.precision) if engine else None,
                "model_type": {"embedding": {"pooling": bundle.pooling}},
                "max_concurrent_requests": settings.queue_items // 2,
                "max_input_length": bundle.max_tokens,
                "max_batch_tokens": settings.max_batch_tokens,
                "max_batch_requests": settings.max_batch_rows,
                "max_client_batch_size": settings.max_inputs,
                "auto_truncate": False,
                "dimensions": bundle.dim,
                "prompts": sorted(bundle.prompts),
                "default_prompt_name": bundle.default_prompt_name,
            }
        )
    )


def error_body(error: RequestError, status: int, correlation_id: str) -> bytes:
    """`{"error", "error_type"}`."""
    return orjson.dumps({"error": error.message, "error_type": ERROR_TYPES.get(status, error.code.title())})


def _as_list(inputs: Inputs) -> list[str]:
    return [inputs] if isinstance(inputs, str) else inputs


async def _embed(request: Request, embedder: Embedder, body: EmbedBody, texts: list[str]) -> Response:
    media = raw_media(request)
    done = await embedder.embed(
        request,
        texts,
        None if media else json_vector,
        field="inputs",
        truncate=bool(body.truncate),
        side=body.side(),
        prompt_name=body.prompt_name,
        # TEI's default is true.
        normalize=body.normalize is not False,
        dimensions=body.dimensions,
    )
    if media:
        return raw_response(done, media)
    return json_response(b"[%b]" % b",".join(done.parts), headers=done.headers())


async def _compare(request: Request, embedder: Embedder, inputs: Comparison, parameters: Truncation | None) -> Response:
    options = parameters or Truncation()
    if not inputs.sentences:
        raise InvalidRequest("`inputs.sentences` is empty: send at least one sentence.", param="inputs")
    done = await embedder.embed(
        request,
        [inputs.source_sentence, *inputs.sentences],
        bytes,
        field="inputs",
        truncate=bool(options.truncate),
        side=options.side(),
        prompt_name=options.prompt_name,
    )
    rows = np.frombuffer(b"".join(done.parts), np.float32).reshape(len(done.parts), -1).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST)
    # Rounding must not give a cosine that is none.
    cosines = np.clip(rows[1:] @ rows[0], -1, 1)
    return json_response(orjson.dumps(cosines, option=orjson.OPT_SERIALIZE_NUMPY), headers=done.headers())
