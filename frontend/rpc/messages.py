"""Messages on the wire: parsed into their types, and encoded with vectors that were never a message's field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from frontend import raw
from frontend.flight import Call
from frontend.tokenizer import Side
from ipc.errors import InvalidRequest

M = TypeVar("M", bound=Message)

# By the number of TruncationDirection in both packages.
SIDES: Final[tuple[Side, ...]] = ("right", "left")
# protobuf's wire type of bytes, and of packed numbers.
LENGTH_DELIMITED: Final = 2


class Asking(Protocol):
    """The fields that all requests for vectors have."""

    truncate: bool
    prompt_name: str
    normalize: bool
    dimensions: int

    @property
    def truncation_direction(self) -> int: ...  # noqa: D102 - see Asking

    def HasField(self, field_name: str, /) -> bool: ...  # noqa: D102, N802


@dataclass(frozen=True, slots=True)
class Options:
    """How texts are embedded, as `Embedder.embed` takes it; None for what was not given."""

    truncate: bool
    side: Side
    prompt_name: str | None
    normalize: bool | None
    dimensions: int | None

    @classmethod
    def of(cls, request: Asking) -> Self:
        """Read them. Raises InvalidRequest."""
        if not 0 <= request.truncation_direction < len(SIDES):
            raise InvalidRequest("`truncation_direction` must be RIGHT or LEFT.", param="truncation_direction")
        has = request.HasField
        dimensions = request.dimensions if has("dimensions") else None
        if dimensions == 0:
            raise InvalidRequest("`dimensions` must be 1 or more.", param="dimensions")
        return cls(
            truncate=request.truncate,
            side=SIDES[request.truncation_direction],
            prompt_name=request.prompt_name if has("prompt_name") else None,
            normalize=request.normalize if has("normalize") else None,
            dimensions=dimensions,
        )


def parse(kind: type[M], data: bytes) -> M:
    """Raises InvalidRequest for bytes that are no such message."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest(f"The message is no {name}, or a text of it is not UTF-8.") from None


def with_vectors(message: Message, field: int, call: Call) -> bytes:
    """The encoding of `message` with all vectors of a call, one after another, as its field of this number.

    A message's encoding is that of its fields one after another, in any order, and bytes and packed floats are the
    same there. So the rows are copied once, from the slab; after that they are given back.
    """
    assert 0 < field < 16, "its tag is one byte"
    pieces = list(raw.pieces(call))
    try:
        rows = [piece.data for piece in pieces]
        head = bytes([field << 3 | LENGTH_DELIMITED]) + varint(sum(map(len, rows)))
        return b"".join((message.SerializeToString(), head, *rows))
    finally:
        for piece in pieces:
            piece.release()


def dimensions(call: Call) -> int:
    """Numbers in each vector of a call that has one at least."""
    lent = call.held.get(0)
    return lent.rows.shape[1] if lent else len(call.parts[0]) // raw.VALUE_BYTES


def varint(number: int) -> bytes:
    """protobuf's encoding of a length: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
