"""Redis as a front end sees it: shared by limits and cache, bounded in time, and never needed."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from ipc.errors import StartError

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_SECONDS = 0.025
# While Redis is away one call in this time tries it again; all others do without at once.
RETRY_SECONDS = 1.0
# A Redis that is full refuses some calls and serves others, for hours: it is told once in this time.
REFUSAL_LOG_SECONDS = 60.0
MOST_REASON_CHARS = 300
DATABASE: Final = re.compile(r"/?[0-9]*")


class RedisLink:
    """A pool of connections behind a breaker: what fails or takes longer than 25 ms counts as "Redis is away".

    An error that Redis itself answers with (memory is full, a replica takes no writes) fails that call alone. Raises
    StartError for a URL that is none.
    """

    def __init__(self, url: str) -> None:
        pool = _make_pool(url)
        self._redis: Redis = Redis.from_pool(pool)
        password = str(pool.connection_kwargs.get("password") or "")
        # As it is, and as it looks among bytes that are told.
        self._secrets = {password, repr(password.encode())[2:-1]} - {""}
        self._retry_at = self._silent_until = 0.0
        self.is_up = True
        self.failures = 0
        # Calls that the caller did without: those that failed, and those not tried while Redis is away.
        self.fallbacks = 0

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def call(self, work: Callable[[Redis], Awaitable[T]]) -> T | None:
        """What `work` gives (let it not be None), or None while Redis is away: the caller does without it."""
        if not self.is_up and not self._may_try():
            self.fallbacks += 1
            return None
        result = None
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                result = await work(self._redis)
        except ResponseError as error:
            self._note_refusal(error)
        except Exception as error:
            # Whatever listens there may answer anything, and a reply that is none ends in any kind of error.
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
        self.fallbacks += 1
        if self.is_up:
            self.is_up = False
            self._retry_at = time.monotonic() + RETRY_SECONDS
            log.warning("redis is away", extra={"reason": self._reason(error)})

    def _note_refusal(self, error: ResponseError) -> None:
        self.failures += 1
        self.fallbacks += 1
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + REFUSAL_LOG_SECONDS
            log.warning("redis refuses a command", extra={"reason": self._reason(error)})

    def _reason(self, error: Exception) -> str:
        # A timeout says nothing of itself.
        reason = str(error) or type(error).__name__
        # What is no Redis may send back what it was sent.
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        return reason[:MOST_REASON_CHARS]


def _make_pool(url: str) -> ConnectionPool:
    """Connections as the URL says, opened when they are needed. Raises StartError."""
    try:
        options: dict[str, Any] = {**parse_url(url)}
        parts = urlsplit(url)
        # A password with one of / ? # in it looks like a path; what is wrong must not be told with any part of it.
        if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
            raise ValueError
        if parts.scheme != "unix" and not DATABASE.fullmatch(parts.path):
            raise ValueError
        options |= {
            # Vectors are no text.
            "decode_responses": False,
            # With RESP3 redis-py listens for maintenance, and no longer sees that an idle connection was closed.
            "protocol": 2,
            # Retries would outlast the timeout: the caller does without instead.
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": TIMEOUT_SECONDS,
        }
        pool = ConnectionPool(**options)
        # It opens nothing, but says which options are none.
        example = pool.connection_class(**pool.connection_kwargs)
        if isinstance(example, SSLConnection):
            pool.connection_class = _sharing_context(example)
    except (ValueError, TypeError, OSError, RedisError):
        raise StartError(
            "EMBEDLANE_REDIS_URL is not valid: give redis://:password@host:port/number, or rediss:// for TLS, with "
            "%-codes for what is no letter or digit in the password, and only options that redis-py knows."
        ) from None
    return pool


def _sharing_context(example: SSLConnection) -> type[SSLConnection]:
    """As `example`, with its TLS context: one for each connection would take most of the timeout to make."""
    context = example.ssl_context
    context.get()

    class SharingConnection(SSLConnection):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.ssl_context = context

    return SharingConnection
