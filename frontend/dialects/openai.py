"""OpenAI: `POST /v1/embeddings`, `GET /v1/models`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from frontend.body import SOME, Text, read_json
from frontend.embed import Embedder
from frontend.responses import OPENAI_STATUS as STATUS
from frontend.responses import base64_vector, json_response, json_vector
from ipc.errors import InvalidRequest, RequestError, Unauthorized

__all__ = ["STATUS", "embeddings", "error_body", "models"]

REFUSE_IDS = (
    "`input` holds token ids, which are another model's unless the client knows this one: send text. "
    "With langchain-openai, pass check_embedding_ctx_length=False."
)


class EmbeddingsBody(msgspec.Struct):
    """Other fields, `user` among them, are ignored. `truncate` is an extension: `extra_body` in OpenAI's client."""

    input: Annotated[
        Text | Annotated[list[Text | int | list[int]], Meta(extra_json_schema=SOME)],
        Meta(description="One text, or several."),
    ]
    model: Annotated[str | None, Meta(description="Any name: this server has one model, and says which.")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`float` unless given; `base64` is of little-endian float32."),
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Keep so many numbers of each vector, scaled to length 1 again."),
    ] = None
    truncate: Annotated[bool | None, Meta(description="Cut texts that are too long, instead of 400.")] = None

    def texts(self) -> list[str]:
        """The input as a list of texts. Raises InvalidRequest for token ids."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [text for text in self.input if isinstance(text, str)]
        if len(texts) != len(self.input):
            raise InvalidRequest(REFUSE_IDS, param="input")
        return texts


_decoder = msgspec.json.Decoder(EmbeddingsBody)


async def embeddings(request: Request) -> Response:
    """`POST /v1/embeddings`."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _decoder, embedder.settings.max_body_bytes)
    take = json_vector if body.encoding_format == "float" or body.encoding_format is None else base64_vector
    done = await embedder.embed(
        request,
        body.texts(),
        take,
        field="input",
        truncate=bool(body.truncate),
        dimensions=body.dimensions,
    )
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, part) for index, part in enumerate(done.parts)
    )
    return json_response(
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (data, orjson.dumps(embedder.bundle.id), done.tokens, done.tokens),
        headers=done.headers(),
    )


async def models(request: Request) -> Response:
    """`GET /v1/models`."""
    bundle = request.app.state.embedder.bundle
    model = {"id": bundle.id, "object": "model", "created": 0, "owned_by": "embedlane"}
    return json_response(orjson.dumps({"object": "list", "data": [model]}))


def error_body(error: RequestError, status: int, correlation_id: str) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    if isinstance(error, Unauthorized):
        kind, code = "invalid_request_error", "invalid_api_key"
    elif status == 429:
        kind, code = "rate_limit_error", error.code.lower()
    else:
        kind, code = ("server_error" if status >= 500 else "invalid_request_error"), error.code.lower()
    return orjson.dumps({"error": {"message": error.message, "type": kind, "param": error.param, "code": code}})
