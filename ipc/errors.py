"""Everything that can go wrong, as one tree.

EmbedlaneError
├── StartError             this process can never start: exit 3, the supervisor must not restart it
│   └── NoRoom             the run directory has too little room, for now at least
├── MalformedFrame         bytes on the ipc socket that are no message of this version
└── RequestError           the client gets an answer that says so
    ├── InvalidRequest     a field is missing, of the wrong type or out of range
    │   └── InputTooLong   more tokens than the model takes, and truncation was not asked for
    ├── UnsupportedMedia   the body is not declared as JSON
    ├── BodyTooLarge
    ├── Unauthorized
    ├── UnknownRoute
    ├── MethodNotAllowed
    ├── RateLimited        the key's limit is used up
    ├── Overloaded         the queue is full: come back later
    ├── EngineUnavailable  there is no engine now, or the one there is serves a model that cannot be loaded here
    │   └── ModelChanged   the tokens were of the model before; the text is tokenized again where there is one
    ├── DeadlineExceeded   no answer before the request's deadline
    ├── EngineFailure      the model run failed, or gave something that is not a number
    ├── PoisonRequest      the engine died whenever it ran this request
    └── InternalError      a bug of ours; the log has the traceback under the correlation id

Statuses are not here: `frontend.responses` has the one table, for HTTP and for gRPC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class EmbedlaneError(Exception):
    """Root of the tree. The message is one sentence for a person, and says what to do."""


class StartError(EmbedlaneError):
    """This process can never start as it is configured."""

    EXIT_CODE: ClassVar = 3


class NoRoom(StartError):
    """The run directory has no room for what must be there; there may be later."""


class MalformedFrame(EmbedlaneError):
    """Bytes that are no message of this version; the frame is dropped and counted."""


class RequestError(EmbedlaneError):
    """A request that gets an error answer.

    `code` is the machine-readable name, in the original gateway's upper case; `param` names the field at fault;
    `retry_after` is in seconds, or None where trying again is useless.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type or out of range."""

    code = "VALIDATION_ERROR"


class InputTooLong(InvalidRequest):
    """More tokens than the model takes, and truncation was not asked for."""

    code = "INPUT_TOO_LONG"


class UnsupportedMedia(RequestError):
    """The body is not declared as JSON, or is compressed."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class BodyTooLarge(RequestError):
    """The body is over EMBEDLANE_MAX_BODY_BYTES."""

    code = "BODY_TOO_LARGE"


class Unauthorized(RequestError):
    """No key, or a wrong one."""

    code = "UNAUTHORIZED"


class UnknownRoute(RequestError):
    """No such path."""

    code = "NOT_FOUND"


class MethodNotAllowed(RequestError):
    """The path exists, with another method; `allow` lists those it has, as the header of that name does."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RateLimited(RequestError):
    """The key's limit is used up, or the request alone is more than it."""

    code = "RATE_LIMIT_EXCEEDED"


class Overloaded(RequestError):
    """The queue is full."""

    code = "OVERLOADED"


class EngineUnavailable(RequestError):
    """No engine is connected, or it serves a model that this front end cannot load."""

    code = "ENGINE_UNAVAILABLE"


class ModelChanged(EngineUnavailable):
    """The engine that joined serves another model than the one the request's token ids are of."""


class DeadlineExceeded(RequestError):
    """No answer before the request's deadline."""

    code = "DEADLINE_EXCEEDED"


class EngineFailure(RequestError):
    """The model run failed, or gave something that is not a number."""

    code = "ENGINE_FAILURE"


class PoisonRequest(RequestError):
    """The engine died each of the three times it ran this request, twice with nothing else running: no fourth time."""

    code = "POISON_REQUEST"


class InternalError(RequestError):
    """A bug of ours."""

    code = "INTERNAL_ERROR"


def codes(error: type[RequestError] = RequestError) -> Iterator[str]:
    """The code of every RequestError there is, some more than once."""
    yield error.code
    for kind in error.__subclasses__():
        yield from codes(kind)
