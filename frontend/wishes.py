"""What a request's headers ask for: how long it may take, and how urgent it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ipc.errors import InvalidRequest
from ipc.priority import Priority

PRIORITIES = {"interactive": Priority.INTERACTIVE, "bulk": Priority.BULK}


class Wishes(NamedTuple):
    """The time until its deadline in ms, and its queue."""

    timeout_ms: int
    priority: Priority


def read_wishes(headers: Mapping[str, str], most_ms: int) -> Wishes:
    """What is asked for, `most_ms` at most. Raises InvalidRequest."""
    return Wishes(_timeout_ms(headers.get("x-request-timeout-ms"), most_ms), _priority(headers.get("x-priority")))


def _timeout_ms(given: str | None, most_ms: int) -> int:
    if given is None:
        return most_ms
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given)):
        raise InvalidRequest("X-Request-Timeout-Ms must be a whole number of milliseconds, 1 or more.")
    return min(int(given), most_ms)


def _priority(given: str | None) -> Priority:
    priority = Priority.INTERACTIVE if given is None else PRIORITIES.get(given.lower())
    if priority is None:
        raise InvalidRequest("X-Priority must be `interactive` or `bulk`.")
    return priority
