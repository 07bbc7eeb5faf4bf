"""Whether a key's request may pass: looked up before the tokenizer, charged after it, told on the answer."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from frontend.auth import SCOPE_KEY
from frontend.keys import Key
from frontend.limits.limiter import Limiter
from frontend.limits.quota import Quota, Verdict
from ipc.errors import RateLimited
from ipc.settings import Settings

# Where the scope has the limiter's Verdict, for the answer's headers.
VERDICT: Final = "embedlane.verdict"
NO_LIMIT: Final = Quota()


class Admission:
    """Charges each request to its key, under the key's own limits or else the server's."""

    def __init__(self, limiter: Limiter, settings: Settings) -> None:
        self._limiter = limiter
        # Decisions on requests of keys with limits.
        self.passed = self.refused = 0
        self._is_off = settings.limits_bypass
        limits = settings.limit_rpm, settings.limit_rph, settings.limit_tpm
        self._default = NO_LIMIT if self._is_off else Quota(*limits)

    def check(self, scope: Scope) -> Quota | None:
        """The limits to charge, or None. Refuses a key that has nothing left, before its texts cost anything.

        Raises RateLimited.
        """
        key: Key = scope[SCOPE_KEY]
        quota = self._quota(key)
        if quota == NO_LIMIT:
            return None
        verdict = self._limiter.blocked_until(key.id, quota)
        if verdict is not None:
            self._settle(scope, verdict)
        return quota

    def is_spent(self, key: Key) -> bool:
        """Whether the key has nothing left, as far as this process knows."""
        quota = self._quota(key)
        return quota != NO_LIMIT and self._limiter.blocked_until(key.id, quota) is not None

    async def charge(self, scope: Scope, quota: Quota, tokens: int) -> None:
        """Charge one request of so many tokens. Raises RateLimited."""
        key: Key = scope[SCOPE_KEY]
        self._settle(scope, await self._limiter.admit(key.id, quota, tokens))

    async def usage(self, key: Key) -> Verdict:
        """What is left of a key's limits."""
        return await self._limiter.usage(key.id, self._quota(key))

    def _quota(self, key: Key) -> Quota:
        if self._is_off or (key.rpm is None and key.rph is None and key.tpm is None):
            return self._default
        own = zip((key.rpm, key.rph, key.tpm), self._default.limits, strict=True)
        return Quota(*(default if limit is None else limit for limit, default in own))

    def _settle(self, scope: Scope, verdict: Verdict) -> None:
        scope[VERDICT] = verdict
        if verdict.admitted:
            self.passed += 1
            return
        self.refused += 1
        if verdict.never_fits:
            raise RateLimited("This request alone is more than the key's limit allows: send less at once.")
        raise RateLimited("The key's limit is used up: try again later.", retry_after=verdict.retry_after)
