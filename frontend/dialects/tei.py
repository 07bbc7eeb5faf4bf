"""text-embeddings-inference: `POST /embed`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from frontend.body import SOME, Text, read_json
from frontend.embed import Embedder
from frontend.responses import STATUS, json_response, json_vector
from ipc.errors import InvalidRequest, RequestError

__all__ = ["STATUS", "embed", "error_body"]

# TEI's own names for the kinds of error, by status.
ERROR_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


class EmbedBody(msgspec.Struct):
    """Fields that are not here are ignored."""

    inputs: Annotated[
        Text | Annotated[list[Text], Meta(extra_json_schema=SOME)], Meta(description="One text, or several.")
    ]
    truncate: Annotated[bool | None, Meta(description="Cut texts that are too long, instead of 422.")] = None
    truncation_direction: Annotated[
        Annotated[str, Meta(extra_json_schema={"pattern": "^[Rr][Ii][Gg][Hh][Tt]$"})] | None,
        Meta(description="`right`, in either case."),
    ] = None
    normalize: Annotated[
        Annotated[bool, Meta(extra_json_schema={"enum": [True]})] | None,
        Meta(description="The model's vectors are always normalized."),
    ] = None
    prompt_name: Annotated[
        str | None, Meta(extra_json_schema={"enum": [None]}, description="The model has no prompts.")
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Keep so many numbers of each vector, scaled to length 1 again."),
    ] = None

    def check(self) -> None:
        """Refuse what this server cannot do, for doing something else instead would give wrong vectors."""
        if self.truncation_direction is not None and self.truncation_direction.lower() != "right":
            raise InvalidRequest("Only `right` truncation is supported.", param="truncation_direction")
        if self.normalize is False:
            raise InvalidRequest("The model's vectors are always normalized.", param="normalize")
        if self.prompt_name is not None:
            raise InvalidRequest("The model has no prompts.", param="prompt_name")


_decoder = msgspec.json.Decoder(EmbedBody)


async def embed(request: Request) -> Response:
    """`POST /embed`: a bare list of vectors."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _decoder, embedder.settings.max_body_bytes)
    body.check()
    done = await embedder.embed(
        request,
        [body.inputs] if isinstance(body.inputs, str) else body.inputs,
        json_vector,
        field="inputs",
        truncate=bool(body.truncate),
        dimensions=body.dimensions,
    )
    return json_response(b"[%b]" % b",".join(done.parts), headers=done.headers())


def error_body(error: RequestError, status: int, correlation_id: str) -> bytes:
    """`{"error", "error_type"}`."""
    return orjson.dumps({"error": error.message, "error_type": ERROR_TYPES.get(status, error.code.title())})
