"""Heads of requests that came before, byte for byte, and what they ask for."""

from __future__ import annotations

import hashlib
from typing import Final, Generic, TypeVar

from frontend.protocol import RawHeaders

MOST_HEADS: Final = 1024
END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length"
# Where the length does not say how far the request goes.
SPECIAL: Final = frozenset({b"transfer-encoding", b"upgrade"})

T = TypeVar("T")


class Heads(Generic[T]):
    """Most of what a flood's clients send differs in the texts alone, which are in the body.

    Kept by digest, for a head has a key in it and can be long, and by the length of the body, which has to be there.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, int], T] = {}

    def keep(self, whole: bytes, headers: RawHeaders, asked: T) -> None:
        """What the head of a request asks for, if `whole` is all of one and its head was read as `headers`."""
        end = _end(whole)
        if not end or not SPECIAL.isdisjoint(name for name, _ in headers) or not _has_length(headers, len(whole) - end):
            return
        if len(self._kept) >= MOST_HEADS:
            self._kept.clear()
        self._kept[_name(whole, end)] = asked

    def find(self, whole: bytes) -> T | None:
        """What it asks for, if `whole` is all of a request and its head was kept."""
        end = _end(whole)
        return self._kept.get(_name(whole, end)) if end else None


def _end(whole: bytes) -> int:
    """Where the head that `whole` begins with ends; 0 if it has no end, or is none."""
    # Empty lines before a request are allowed, and would look like the head's end.
    at = whole.find(END) if whole.startswith(b"POST ") else -1
    return 0 if at < 0 else at + len(END)


def _name(whole: bytes, end: int) -> tuple[bytes, int]:
    return hashlib.sha256(memoryview(whole)[:end]).digest(), len(whole) - end


def _has_length(headers: RawHeaders, length: int) -> bool:
    return [value for name, value in headers if name == LENGTH] == [b"%d" % length]
