"""Redis as a front end sees it: shared by limits and cache, bounded in time, and never needed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ipc.errors import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_SECONDS = 0.025
# While Redis is away one call in this time tries it again; all others do without at once.
RETRY_SECONDS = 1.0


class RedisLink:
    """A pool of connections behind a breaker: what fails or takes longer than 25 ms counts as "Redis is away"."""

    def __init__(self, url: str) -> None:
        try:
            # Retries would outlast the timeout: the caller does without instead.
            self._redis: Redis = Redis.from_url(
                url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=TIMEOUT_SECONDS
            )
        except ValueError:
            # The reason may quote a part of the password, where that has a `/` or `#` in it.
            raise StartError(
                "EMBEDLANE_REDIS_URL is not valid: give redis://:password@host:port/number, with what is special in "
                "the password percent-encoded."
            ) from None
        self._retry_at = 0.0
        self.is_up = True
        self.failures = 0

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def call(self, work: Callable[[Redis], Awaitable[T]]) -> T | None:
        """What `work` gives (let it not be None), or None while Redis is away: the caller does without it."""
        if not self.is_up and not self._may_try():
            return None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                result = await work(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(error)
            return None
        if not self.is_up:
            self.is_up = True
            log.info("redis is back")
        return result

    def _may_try(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_SECONDS
        return True

    def _note_failure(self, error: Exception) -> None:
        self.failures += 1
        if self.is_up:
            self.is_up = False
            self._retry_at = time.monotonic() + RETRY_SECONDS
            # Of a command it does not know, Redis repeats the arguments: of AUTH that is the password.
            reason, _, _ = str(error).partition(", with args")
            # A timeout says nothing of itself.
            log.warning("redis is away", extra={"reason": reason or type(error).__name__})
