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
        self._is_off = settings.limits_bypass
        self._default = Quota(settings.limit_rpm, settings.limit_rph, settings.limit_tpm)

    def check(self, scope: Scope) -> None:
        """Refuse a key that nothing is left of, before its texts cost anything. Raises RateLimited."""
        key: Key = scope[SCOPE_KEY]
        quota = self.quota(key)
        if quota is NO_LIMIT:
            return
        verdict = self._limiter.blocked_until(key.id, quota)
        if verdict is not None:
            self._settle(scope, verdict)

    async def charge(self, scope: Scope, tokens: int) -> None:
        """Charge one request of so many tokens. Raises RateLimited."""
        key: Key = scope[SCOPE_KEY]
        quota = self.quota(key)
        if quota is not NO_LIMIT:
            self._settle(scope, await self._limiter.admit(key.id, quota, tokens))

    async def usage(self, key: Key) -> Verdict:
        """What is left of a key's limits."""
        return await self._limiter.usage(key.id, self.quota(key))

    def quota(self, key: Key) -> Quota:
        """The limits in force for a key; NO_LIMIT itself where there is none."""
        if self._is_off:
            return NO_LIMIT
        if key.rpm is None and key.rph is None and key.tpm is None:
            quota = self._default
        else:
            own = zip((key.rpm, key.rph, key.tpm), self._default.limits, strict=True)
            quota = Quota(*(default if limit is None else limit for limit, default in own))
        return NO_LIMIT if quota == NO_LIMIT else quota

    def _settle(self, scope: Scope, verdict: Verdict) -> None:
        scope[VERDICT] = verdict
        if verdict.admitted:
            return
        if verdict.never_fits:
            raise RateLimited("This request alone is more than the key's limit allows: send less at once.")
        raise RateLimited("The key's limit is used up: try again later.", retry_after=verdict.retry_after)
