"""OpenAI: `POST /v1/embeddings`, `GET /v1/models`."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Final, Literal

import msgspec
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from frontend.body import Dimensions, PromptName, Text, Truncate, read_json
from frontend.embed import Embedder
from frontend.raw import raw_media, raw_response
from frontend.responses import OPENAI_STATUS as STATUS
from frontend.responses import base64_vector, json_response, json_vector
from ipc.errors import InvalidRequest, RequestError, Unauthorized

__all__ = ["STATUS", "embeddings", "error_body", "models"]

# What models call the prompts of queries and of the texts that are searched.
PROMPTS_OF: Final = {
    "query": ("query",),
    "passage": ("passage", "document"),
    "document": ("document", "passage"),
}


class EmbeddingsBody(msgspec.Struct):
    """Other fields, `user` among them, are ignored.

    `truncate`, `prompt_name` and `input_type` are extensions: `extra_body` in OpenAI's client.
    """

    input: Annotated[
        Text | Annotated[list[Text | int | list[int]], Meta(extra_json_schema={"minItems": 1})],
        Meta(description="One text, or several; token ids only where EMBEDLANE_TOKEN_INPUT allows them."),
    ]
    model: Annotated[str | None, Meta(description="Any name: this server has one model, and says which.")] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`float` unless given; `base64` is of little-endian float32."),
    ] = None
    dimensions: Dimensions = None
    truncate: Truncate = None
    prompt_name: PromptName = None
    input_type: Annotated[
        Literal["query", "passage", "document"] | None,
        Meta(description="Take the model's prompt for texts of this kind, if it has one."),
    ] = None

    def texts(self) -> list[str] | None:
        """The input as a list of texts; None if it holds token ids."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [text for text in self.input if isinstance(text, str)]
        return texts if len(texts) == len(self.input) else None

    def id_lists(self) -> list[list[int]]:
        """The input as lists of token ids, one a text. Raises InvalidRequest for a mixture."""
        lists = [ids for ids in self.input if isinstance(ids, list)]
        if len(lists) == len(self.input):
            return lists
        ids = [one for one in self.input if isinstance(one, int)]
        if len(ids) != len(self.input):
            raise InvalidRequest(
                "`input` mixes texts, token ids and lists of token ids (with langchain-openai, pass "
                "check_embedding_ctx_length=False): send texts.",
                param="input",
            )
        return [ids]

    def prompt(self, prompts: Container[str]) -> str | None:
        """The name of the prompt that is asked for, by its name or by the kind of text, where the model has one."""
        if self.prompt_name is not None or self.input_type is None:
            return self.prompt_name
        return next((name for name in PROMPTS_OF[self.input_type] if name in prompts), None)


_decoder = msgspec.json.Decoder(EmbeddingsBody)


async def embeddings(request: Request) -> Response:
    """`POST /v1/embeddings`."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _decoder, embedder.settings.max_body_bytes)
    media = raw_media(request)
    take = None if media else base64_vector if body.encoding_format == "base64" else json_vector
    texts = body.texts()
    truncate = bool(body.truncate)
    if texts is not None:
        done = await embedder.embed(
            request,
            texts,
            take,
            field="input",
            truncate=truncate,
            prompt_name=body.prompt,
            dimensions=body.dimensions,
        )
    else:
        done = await embedder.embed_ids(
            request, body.id_lists(), take, truncate=truncate, prompt_name=body.prompt, dimensions=body.dimensions
        )
    if media:
        return raw_response(done, media)
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, part) for index, part in enumerate(done.parts)
    )
    return json_response(
        b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (data, orjson.dumps(done.model.bundle.id), done.tokens, done.tokens),
        headers=done.headers(),
    )


async def models(request: Request) -> Response:
    """`GET /v1/models`."""
    bundle = request.app.state.embedder.model.bundle
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
