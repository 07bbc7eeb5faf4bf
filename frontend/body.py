"""The request's body: bounded, JSON, decoded straight into its type."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request

from ipc.errors import BodyTooLarge, InvalidRequest, UnsupportedMedia

T = TypeVar("T")

# Fields that dialects share. What is extra is for the document: the server refuses it later, in a better sentence.
Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
Texts = Annotated[list[Text], Meta(extra_json_schema={"minItems": 1})]
Truncate = Annotated[bool | None, Meta(description="Cut texts that are too long, instead of refusing them.")]
PromptName = Annotated[
    str | None, Meta(description="The prompt that is put before each text; the model's default unless given.")
]
Dimensions = Annotated[
    Annotated[int, Meta(ge=1)] | None,
    Meta(description="Keep so many numbers of each vector, scaled to length 1 again."),
]


async def read_json(request: Request, decoder: msgspec.json.Decoder[T], most_bytes: int) -> T:
    """Read and decode. Raises BodyTooLarge before a byte too many is kept, UnsupportedMedia or InvalidRequest."""
    _check_media(request)
    body = await _read(request, most_bytes)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise InvalidRequest("The body is not valid JSON: it is nested too deeply.") from None


def _check_media(request: Request) -> None:
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise UnsupportedMedia(f"The body is declared as {media[:80]!r}: send `Content-Type: application/json`.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("The body is compressed: send it as it is, without Content-Encoding.")


async def _read(request: Request, most_bytes: int) -> bytes:
    # A declared length is refused unread. uvicorn reads and drops the rest, so that the client sees the answer.
    declared = request.headers.get("content-length", "0")
    if len(declared) > 18 or int(declared) > most_bytes:
        raise _too_large(most_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most_bytes:
            raise _too_large(most_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(most_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {most_bytes} bytes: send fewer or shorter texts.")


def _explain(error: msgspec.ValidationError) -> InvalidRequest:
    """Turn msgspec's "Expected `str`, got `int` - at `$.inputs[3]`" into a sentence that begins with the field."""
    reason, _, path = str(error).partition(" - at ")
    field = path.strip("`").removeprefix("$").lstrip(".")
    named = re.search(r"required field `(\w+)`", reason)
    top = named[1] if named else re.split(r"[.\[]", field)[0]
    sentence = f"`{field}`: {reason[0].lower()}{reason[1:]}." if field else f"{reason}."
    return InvalidRequest(sentence, param=top or None)
