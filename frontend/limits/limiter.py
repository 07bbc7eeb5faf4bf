"""The limiter that the gateway asks: the embedded store always, and Redis as well where there is one.

What this machine used can never be more than what all machines used, so what the embedded store refuses is refused,
and the limits of one machine hold while Redis is away, hung, or back and empty.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import msgspec

from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.quota import Quota, Store, Verdict

# More keys than this are not in use at once, and all that is lost is what spares work.
MOST_BLOCKED: Final = 4096
UNLIMITED: Final = Verdict(True)


class Blocked(msgspec.Struct, frozen=True):
    """A refusal to repeat; times are seconds of the monotonic clock."""

    quota: Quota
    verdict: Verdict
    since: float
    until: float


class Limiter:
    """Requests an hour and a minute, and tokens a minute, for each key."""

    def __init__(self, embedded: EmbeddedWindows, shared: Store | None = None) -> None:
        self._embedded = embedded
        self._shared = shared
        self._blocked: dict[str, Blocked] = {}

    async def admit(self, key_id: str, quota: Quota, tokens: int, requests: int = 1) -> Verdict:
        """Charge all rules of the key, or none where one of them has too little left."""
        if quota == Quota():
            return UNLIMITED
        verdict = await self._embedded.admit(key_id, quota, tokens, requests)
        if self._shared is not None and verdict.admitted:
            verdict = await self._admit_shared(self._shared, verdict, key_id, quota, tokens, requests)
        if not verdict.admitted:
            self._remember(key_id, quota, verdict)
        return verdict

    async def usage(self, key_id: str, quota: Quota) -> Verdict:
        """What is left; charges nothing."""
        verdict = await self._embedded.usage(key_id, quota)
        shared = await self._shared.usage(key_id, quota) if self._shared is not None else None
        return verdict if shared is None else verdict.tighter(shared)

    def blocked_until(self, key_id: str, quota: Quota) -> Verdict | None:
        """The key's last refusal while no request whatever can pass, so that it need not even be tokenized."""
        blocked = self._blocked.get(key_id)
        if blocked is None:
            return None
        now = monotonic()
        if now >= blocked.until or quota != blocked.quota:
            del self._blocked[key_id]
            return None
        return blocked.verdict.after(now - blocked.since)

    def close(self) -> None:
        """Unmap the embedded store; the link to Redis is its owner's."""
        self._embedded.close()

    async def _admit_shared(
        self, shared: Store, verdict: Verdict, key_id: str, quota: Quota, tokens: int, requests: int
    ) -> Verdict:
        found = await shared.admit(key_id, quota, tokens, requests)
        if found is None:
            return verdict
        if found.admitted:
            return verdict.tighter(found)
        await self._embedded.refund(key_id, quota, tokens, requests, verdict.at)
        return found

    def _remember(self, key_id: str, quota: Quota, verdict: Verdict) -> None:
        if verdict.blocked_for <= 0:
            return
        if len(self._blocked) >= MOST_BLOCKED:
            self._blocked.clear()
        now = monotonic()
        self._blocked[key_id] = Blocked(quota, verdict, now, now + verdict.blocked_for)
