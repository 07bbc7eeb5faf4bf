"""The original gateway: `POST /v1/embed`, `GET /v1/usage`. Its errors also answer for paths that no dialect owns."""

from __future__ import annotations

from typing import Annotated

import msgspec
import orjson
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from frontend.auth import SCOPE_KEY
from frontend.body import read_json
from frontend.embed import Embedder
from frontend.keys import Key
from frontend.raw import raw_media, raw_response
from frontend.responses import STATUS, json_response, json_vector
from ipc.errors import InvalidRequest, RequestError

__all__ = ["STATUS", "embed", "error_body", "usage"]

MOST_CHARS = 1024


class EmbedBody(msgspec.Struct):
    """The text is stripped; then it must have 1 to 1,024 characters."""

    input_text: Annotated[
        str,
        Meta(
            description="Cut where it is longer than the model takes.",
            extra_json_schema={"minLength": 1, "maxLength": MOST_CHARS, "pattern": r"\S"},
        ),
    ]


_decoder = msgspec.json.Decoder(EmbedBody)


async def embed(request: Request) -> Response:
    """`POST /v1/embed`: one text, truncated to what the model takes, as the original does."""
    embedder: Embedder = request.app.state.embedder
    body = await read_json(request, _decoder, embedder.settings.max_body_bytes)
    text = body.input_text.strip()
    if not 1 <= len(text) <= MOST_CHARS:
        raise InvalidRequest(
            f"`input_text` must have 1 to {MOST_CHARS} characters, and has {len(text)}.", param="input_text"
        )
    media = raw_media(request)
    take = None if media else json_vector
    done = await embedder.embed(request, [text], take, field="input_text", truncate=True)
    if media:
        return raw_response(done, media)
    return json_response(
        b'{"embedding":%b,"model":%b}' % (done.parts[0], orjson.dumps(done.model.bundle.id)), headers=done.headers()
    )


async def usage(request: Request) -> Response:
    """`GET /v1/usage`: the key's limits, and what is left of them; a limit of None is none."""
    embedder: Embedder = request.app.state.embedder
    key: Key = request.scope[SCOPE_KEY]
    verdict = await embedder.admission.usage(key)
    rules = {
        "requests_per_minute": verdict.rpm,
        "requests_per_hour": verdict.rph,
        "tokens_per_minute": verdict.tpm,
    }
    return json_response(
        orjson.dumps(
            {
                "key": key.name,
                "limits": {name: rule and rule.limit for name, rule in rules.items()},
                "remaining": {name: rule and rule.remaining for name, rule in rules.items()},
                "reset_seconds": {name: rule and rule.reset for name, rule in rules.items()},
            }
        )
    )


def error_body(error: RequestError, status: int, correlation_id: str) -> bytes:
    """`{error, detail, code, correlation_id}`, and `retry_after` in seconds where trying again helps."""
    body: dict[str, object] = {
        "error": type(error).__name__,
        "detail": error.message,
        "code": error.code,
        "correlation_id": correlation_id,
    }
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    return orjson.dumps(body)
