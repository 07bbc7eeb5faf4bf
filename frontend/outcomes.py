"""What a request is told for which no vector came, a new error each time."""

from __future__ import annotations

from ipc.errors import (
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    ModelChanged,
    Overloaded,
    PoisonRequest,
    RequestError,
)
from ipc.messages import Status

RETRY_AFTER_SECONDS = 1.0


def error_of(status: int) -> RequestError:
    """For the status of a REPLY's item, other than OK."""
    match status:
        case Status.EXPIRED:
            return DeadlineExceeded("The request's deadline passed while it waited: allow more time or send less.")
        case Status.REFUSED:
            return Overloaded("The engine's queue is full: try again later.", retry_after=RETRY_AFTER_SECONDS)
        case _:
            return EngineFailure("The model could not be run on this text: the engine's log has the reason.")


def unavailable(reason: str) -> EngineUnavailable:
    """Where no engine can be asked."""
    return EngineUnavailable(reason, retry_after=RETRY_AFTER_SECONDS)


def model_changed() -> ModelChanged:
    """For token ids of a model that is served no longer."""
    return ModelChanged(
        "The server changed its model, and the request's token ids are of the one before: make them anew.",
        retry_after=RETRY_AFTER_SECONDS,
    )


def too_many() -> Overloaded:
    """Where this front end has as many texts under way as it may."""
    return Overloaded("Too many texts are waiting: try again later.", retry_after=RETRY_AFTER_SECONDS)


def too_late(wait_s: float, excess_s: float) -> Overloaded:
    """Where the engine would not come to the request in time; `excess_s` is by how much."""
    return Overloaded(
        f"The server is overloaded, a request waits {wait_s:.1f} s: try again later.",
        retry_after=max(RETRY_AFTER_SECONDS, excess_s),
    )


def too_long(seconds: float) -> DeadlineExceeded:
    """Where the request's own texts would not be done by its deadline."""
    return DeadlineExceeded(
        f"The request would take about {seconds:.1f} s, which is past its deadline: allow more time or send less."
    )


def poison() -> PoisonRequest:
    """For a text that the engine died of too often."""
    return PoisonRequest("The engine died whenever it ran this request: do not repeat it.")


def late(*, is_engine_away: bool) -> RequestError:
    """For a request whose deadline has passed."""
    if is_engine_away:
        return unavailable("The engine did not come back before the request's deadline: try again.")
    return DeadlineExceeded("No answer before the request's deadline: allow more time or send less.")
