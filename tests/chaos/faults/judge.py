"""What each request's outcome is worth, when one knows what was done to the server meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.faults.world import World
from tests.chaos.load import NOTICED_SECONDS, Outcome

# Three deaths at least while a text runs, before it may be taken for their cause.
POISON_DEATHS = 3


def unfair(world: World, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Those that should not be: anything but a right answer that the faults do not account for."""
    return (outcome for outcome in outcomes if outcome.verdict != "right" and not _is_fair(world, outcome))


def _is_fair(world: World, outcome: Outcome) -> bool:
    if outcome.verdict == "lost":
        return (
            any(port == outcome.port and _is_during(outcome, at, at) for port, at in world.severed)
            or any(_is_during(outcome, *span) for span in world.outages)
            # libuv accepts and closes what a process without descriptors cannot take.
            or any(_is_during(outcome, *span) for span in world.starved)
        )
    if outcome.verdict == "503":
        return any(_is_during(outcome, *span) for span in world.away)
    return outcome.verdict == "poison" and outcome.spans(world.deaths) >= POISON_DEATHS


def _is_during(outcome: Outcome, begin: float, end: float) -> bool:
    return outcome.began - NOTICED_SECONDS <= end and begin <= outcome.ended + NOTICED_SECONDS
